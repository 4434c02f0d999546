"""One table of several runs, a row a protocol, a column a model, in percent; and plots and a report of the same.

    python segmentation/table.py --column before results/demo/kmeans-before-embedding \\
        --column after results/demo/kmeans-after --output results/demo --pretraining results/demo/pretrain

Reads each run's results.json. Writes table.md, table.csv, classes.png (bars per class) and, where a run
of K-means has it, overclustering.png (mIoU over the number of clusters). report.html joins the table, the
pictures of the runs and, with --pretraining, the curves of the training that they share.
"""
from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
from PIL import Image

from segmentation.story import write_story
from utils.config.cli import ArgumentParser
from utils.report.page import REPORT
from utils.report.pictures import montage
from utils.report.plots import class_bars, cluster_curves, to_image
from utils.report.results import read_results
from utils.report.run import CURVE, TASKS
from utils.run.errors import UserError, name_some
from utils.run.files import save_image, write_text
from utils.run.script import run_script

Column = dict[str, Any]  # {task: its entry in results.json}


class Cell(NamedTuple):
    """A result in percent, and where it is a mean of several runs their standard deviation and number."""
    mean: float
    std: float | None
    runs: int | None


class Row(NamedTuple):
    """One line of the table."""
    protocol: str
    figure: str  # mIoU, or IoU and a class
    cells: list[Cell | None]  # of each column


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--column', nargs='+', action='append', required=True, metavar=('NAME', 'DIR'),
                        help='name of a column and the output directories of its runs; of several runs of one '
                             'protocol the best counts')
    parser.add_argument('--output', type=Path, required=True, help='folder for the tables and pictures')
    parser.add_argument('--per-class', action='store_true', help='also a row a class')
    parser.add_argument('--pretraining', type=Path, nargs='+', default=[], metavar='DIR',
                        help='output directories of pretraining runs, whose curves the report shows')
    parser.add_argument('--note', default='', metavar='TEXT', help='what the columns are, shown under the title of the '
                                                                   'report (default: nothing)')
    parser.add_argument('--pictures', type=Path, help='folder of PNGs to join into pictures.png')
    return parser.parse_args(argv)


def best_miou(entry: Any) -> float:
    """The mIoU of an entry, or the highest of a curve."""
    return max(point['mIoU'] for point in entry) if isinstance(entry, list) else entry['mIoU']


def read_column(folders: Sequence[str]) -> Column:
    """The entries of the results.json of the folders; of several of one task that of the best mIoU.

    Raises:
        UserError: one is missing or is no results.json.
    """
    best: Column = {}
    for folder in folders:
        path = Path(folder) / 'results.json'
        if not path.is_file():
            raise UserError(f'{path} does not exist; run the protocol whose output directory this is first.')
        try:
            for task, entry in read_results(path.parent).items():
                if isinstance(entry, dict) and 'mIoU' not in entry:
                    continue  # clusters without ground truth
                if best_miou(entry) >= (best_miou(best[task]) if task in best else 0):
                    best[task] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} does not hold the results of a protocol; run it again.') from error
    if not best:
        raise UserError(f'no result against ground truth in {name_some(folders)} (clusters of unlabelled images have '
                        'no mIoU); give runs on labelled data.')
    return best


def sources(folders: Sequence[str], column: Column) -> dict[str, Path]:
    """{task: the folder whose results.json holds the column's entry}."""
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        for task, entry in read_results(folder).items():
            if entry == column.get(task):
                found.setdefault(task, folder)
    return found


def read_columns(columns: Sequence[Sequence[str]]) -> dict[str, Column]:
    """{name: column} of (name, folders...). Raises UserError for a name without folders or given twice."""
    read: dict[str, Column] = {}
    for name, *folders in columns:
        if not folders:
            raise UserError(f'--column {name} has no folder; give the output directories of its runs after the name.')
        if name in read:
            raise UserError(f'--column {name} is given twice; give all its folders after one.')
        read[name] = read_column(folders)
    return read


def task_names(columns: dict[str, Column]) -> dict[str, str]:
    """{task: its name in the table} of the tasks that any column has."""
    present = dict.fromkeys(task for column in columns.values() for task in column if task != CURVE)
    return {task: TASKS.get(task, task) for task in (*(t for t in TASKS if t in present),
                                                     *(t for t in present if t not in TASKS))}


def cell_of(entry: Column, name: str | None = None) -> Cell | None:
    """The mIoU of an entry, or the IoU of a class; a deviation without its n, of an earlier version, is left out."""
    values, deviations = (entry, entry.get('std')) if name is None else (
        entry.get('IoU', {}), (entry.get('IoU_std') or {}).get(name))
    runs = entry.get('num_runs')
    key = 'mIoU' if name is None else name
    return Cell(values[key], None if runs is None else deviations, runs) if key in values else None


def rows_of(columns: dict[str, Column], per_class: bool) -> list[Row]:
    """The rows of the table; a cell is None where a column lacks the figure."""
    rows = []
    for task, protocol in task_names(columns).items():
        entries = [column.get(task, {}) for column in columns.values()]
        rows.append(Row(protocol, 'mIoU', [cell_of(e) for e in entries]))
        for name in dict.fromkeys(name for e in entries for name in e.get('IoU', {})) if per_class else ():
            rows.append(Row(protocol, f'IoU {name}', [cell_of(e, name) for e in entries]))
    curves = [{point['num_clusters']: point for point in column.get(CURVE, [])} for column in columns.values()]
    for count in sorted({count for curve in curves for count in curve}):
        rows.append(Row(f'{TASKS["kmeans"]}, {count} clusters', 'mIoU', [cell_of(curve.get(count, {}))
                                                                         for curve in curves]))
    return rows


def cell_text(cell: Cell | None) -> str:
    """'45.68 ± 1.50 (n = 5)': a result with its standard deviation over n runs, if it has one."""
    if cell is None:
        return '-'
    return f'{cell.mean:.2f}' + ('' if cell.std is None else f' ± {cell.std:.2f} (n = {cell.runs})')


def markdown(columns: dict[str, Column], per_class: bool = False) -> str:
    """The table in Markdown: two decimals, ± the sample standard deviation over n runs where there is one."""
    lines = [['%', 'figure', *columns], ['---', '---'] + ['---:'] * len(columns)]
    lines += [[row.protocol, row.figure, *map(cell_text, row.cells)] for row in rows_of(columns, per_class)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join('| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + ' |'
                     for line in lines) + '\n'


def csv_table(columns: dict[str, Column], per_class: bool = False) -> str:
    """The same as CSV, in full precision; standard deviations and numbers of runs have columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['protocol', 'figure', *(name + suffix for name in columns for suffix in ('', ' std', ' n'))])
    for row in rows_of(columns, per_class):
        cells = (cell or (None, None, None) for cell in row.cells)
        writer.writerow([row.protocol, row.figure, *(value for cell in cells for value in cell)])
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    columns = read_columns(args.column)
    table = markdown(columns, args.per_class)
    write_text(args.output / 'table.md', table)
    write_text(args.output / 'table.csv', csv_table(columns, args.per_class))
    print(table)
    bars = {name: {column: entries[task] for column, entries in columns.items() if 'IoU' in entries.get(task, {})}
            for task, name in task_names(columns).items()}
    bars = {name: entries for name, entries in bars.items() if entries}
    pictures = {'classes.png': to_image(partial(class_bars, bars))} if bars else {}
    if curves := {name: column[CURVE] for name, column in columns.items() if CURVE in column}:
        pictures['overclustering.png'] = to_image(partial(cluster_curves, curves))
    if args.pictures is not None:
        panels = [np.array(Image.open(path).convert('RGB')) for path in sorted(args.pictures.glob('*.png'))]
        if not panels:
            raise UserError(f'no PNG in {args.pictures}; give the visualizations/ folder of a run.')
        pictures['pictures.png'] = montage(panels, 2)
    for name, picture in pictures.items():
        save_image(picture, args.output / name)
    text = [(row.protocol, row.figure, *map(cell_text, row.cells)) for row in rows_of(columns, per_class=False)]
    runs = {name: {TASKS.get(task, task): folder for task, folder in sources(folders, columns[name]).items()}
            for name, *folders in args.column}
    write_story(args.output, text, bars, curves, runs, args.pretraining, args.note)
    print(f'Written to {args.output}: {", ".join(["table.md", "table.csv", *pictures, REPORT])}')


if __name__ == '__main__':
    run_script(main)
