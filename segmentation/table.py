"""One table of several runs: a row a protocol, a column a model, mIoU in percent.

    python segmentation/table.py --column before results/demo/kmeans_before \\
        --column after results/demo/kmeans --output results/demo
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
from PIL import Image

from utils.errors import UserError, run_script
from utils.pictures import montage, save_image
from utils.results import write_text

TASKS = {'linear': 'Linear classifier', 'linear_crf': 'Linear classifier + CRF', 'kmeans': 'K-means',
         'retrieval': 'Retrieval'}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--column', nargs='+', action='append', required=True, metavar=('NAME', 'DIR'),
                        help='name of a column and the output directories of its runs; of several runs of one '
                             'protocol the best counts')
    parser.add_argument('--output', type=Path, required=True, help='folder for table.md and pictures.png')
    parser.add_argument('--pictures', type=Path, help='folder of PNGs to join into pictures.png')
    return parser.parse_args(argv)


def read_column(folders: Sequence[str]) -> dict[str, float]:
    """{task: best mIoU} over the results.json of the folders. Raises UserError when one is missing."""
    best: dict[str, float] = {}
    for folder in folders:
        path = Path(folder) / 'results.json'
        if not path.is_file():
            raise UserError(f'{path} does not exist; run the protocol whose output directory this is first.')
        for task, entry in json.loads(path.read_text()).items():
            best[task] = max(best.get(task, 0.0), entry['mIoU'])
    return best


def markdown(columns: dict[str, dict[str, float]]) -> str:
    """Table of the tasks that any column has."""
    tasks = [task for task in TASKS if any(task in column for column in columns.values())]
    rows = [['mIoU, %', *columns], ['---'] + ['---:'] * len(columns)]
    rows += [[TASKS[task], *(f'{column[task]:.2f}' if task in column else '-' for column in columns.values())]
             for task in tasks]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |'
                     for row in rows) + '\n'


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    table = markdown({name: read_column(folders) for name, *folders in args.column})
    write_text(args.output / 'table.md', table)
    print(table)
    if args.pictures is not None:
        panels = [np.array(Image.open(path).convert('RGB')) for path in sorted(args.pictures.glob('*.png'))]
        if not panels:
            raise UserError(f'no PNG in {args.pictures}; give the visualizations/ folder of a run.')
        save_image(montage(panels, 2), args.output / 'pictures.png')
        print(f'Pictures: {args.output / "pictures.png"}')


if __name__ == '__main__':
    run_script(main)
