"""One table of several runs, a row a protocol, a column a model, in percent; and plots and a report of the same.

    python segmentation/table.py --column before results/demo/kmeans-before-embedding \\
        --column after results/demo/kmeans-after --output results/demo --pretraining results/demo/pretrain

Reads each run's results.json. Writes table.md, table.csv, classes.png (bars per class) and, where a run
of K-means has it, overclustering.png (mIoU over the number of clusters). report.html joins the table, the
pictures of the runs and, with --pretraining, the curves of the training that they share.
"""
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
from PIL import Image

from utils.config.cli import ArgumentParser
from utils.report import page
from utils.report import run as report
from utils.report.pictures import class_bars, curve_of_clusters, montage, to_image
from utils.report.results import csv_text, markdown, pivot, read_results, with_spread
from utils.run.errors import UserError, name_some
from utils.run.files import save_image, write_text
from utils.run.script import run_script

SHOWN = 4  # images of a protocol in the report
# {((protocol, metric), column): mean in percent, standard deviation, number of runs}
Cells = dict[tuple[tuple[str, str], str], tuple[float, float | None, int | None]]
# {task: {column: (mIoU, output directory, entry of results.json, for over-clustering a list of them)}}
Results = Mapping[str, Mapping[str, tuple[float, Path, Any]]]


def read_columns(columns: Sequence[Sequence[str]]) -> Results:
    """The results of (name, folders...) of each column; of several of one task that of the best mIoU.

    Raises UserError if a name has no folder or is given twice, and if a results.json is missing, is none or has no
    result against ground truth.
    """
    names, results = [name for name, *_ in columns], {task: {} for task in report.TASKS}  # type: ignore[var-annotated]
    for name, *folders in columns:
        if not folders:
            raise UserError(f'--column {name} has no folder; give the output directories of its runs after the name.')
        if names.count(name) > 1:
            raise UserError(f'--column {name} is given twice; give all its folders after one.')
        for folder in map(Path, folders):
            path = folder / 'results.json'
            if not path.is_file():
                raise UserError(f'{path} does not exist; run the protocol whose output directory this is first.')
            try:
                for task, entry in read_results(folder).items():
                    if isinstance(entry, dict) and 'mIoU' not in entry:
                        continue  # clusters without ground truth
                    best = max(point['mIoU'] for point in (entry if isinstance(entry, list) else [entry]))
                    of_task = results.setdefault(task, {})
                    if name not in of_task or best >= of_task[name][0]:
                        of_task[name] = best, folder, entry
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{path} does not hold the results of a protocol; run it again.') from error
        if not any(name in of_task for of_task in results.values()):
            raise UserError(f'no result against ground truth in {name_some(folders)} (clusters of unlabelled images '
                            'have no mIoU); give runs on labelled data.')
    return {task: of_task for task, of_task in results.items() if of_task}


def unlike(results: Results) -> list[str]:
    """A sentence for each protocol whose columns were scored on different data or classes."""
    sentences = []
    for task, columns in results.items():
        scored = {}
        for name, (*_, entry) in columns.items():
            point = entry[0] if isinstance(entry, list) else entry
            made, classes = point.get('made_with', {}), point.get('IoU', {})
            scored[name] = f'{made.get("data")}, {made.get("images")} images', tuple(classes)
        if len(set(scored.values())) > 1:
            found = '; '.join(f'{name}: {data}, {len(classes)} classes' for name, (data, classes) in scored.items())
            sentences.append(f'{report.TASKS.get(task, task)}: the columns are not of the same data ({found}).')
    return sentences


def cells_of(protocols: Mapping[str, Mapping[str, Mapping[str, Any]]], per_class: bool) -> Cells:
    """Of {protocol: {column: entry}}, where an entry holds 'mIoU' and may hold its spread and the same of classes."""
    cells: Cells = {}
    for protocol, columns in protocols.items():
        for column, entry in columns.items():
            runs = entry.get('num_runs')  # of an earlier version without it: its deviation was another
            cells[(protocol, 'mIoU'), column] = entry['mIoU'], entry.get('std') if runs else None, runs
            for name, iou in entry.get('IoU', {}).items() if per_class else ():
                std = (entry.get('IoU_std') or {}).get(name) if runs else None
                cells[(protocol, f'IoU {name}'), column] = iou, std, runs
    return cells


def picture_blocks(results: Results, classes: Sequence[str]) -> Iterator[page.Block]:
    """The first few predictions of each protocol, of all columns in turn, and the nearest neighbours of retrieval.

    Of protocols with one folder the predictions of the first are shown.
    """
    seen = []
    for task, columns in results.items():
        folders = {name: folder / 'visualizations' for name, (_, folder, _) in columns.items()}
        if folders not in seen:
            seen.append(folders)
            files = sorted({path.name for folder in folders.values() for path in folder.glob('*.png')})[:SHOWN]
            shown = [(f'{name}: {Path(file).stem}', folder / file) for file in files
                     for name, folder in folders.items() if (folder / file).is_file()]
            yield report.picture_block(report.PREDICTIONS, shown, classes, f': {report.TASKS.get(task, task)}',
                                       len(folders) if len(folders) > 1 else 0)
    neighbours = dict.fromkeys((name, folder / report.NEIGHBOURS_FILE) for columns in results.values()
                               for name, (_, folder, _) in columns.items())
    yield report.picture_block(report.NEIGHBOURS, [(name, path) for name, path in neighbours if path.is_file()])


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--column', nargs='+', action='append', required=True, metavar=('NAME', 'DIR'),
                        help='name of a column and the output directories of its runs; of several runs of one '
                             'protocol the best counts')
    parser.add_argument('--output', type=Path, required=True, help='folder for the tables and pictures')
    parser.add_argument('--per-class', action='store_true', help='also a row a class')
    parser.add_argument('--pretraining', type=Path, nargs='+', default=[], metavar='DIR',
                        help='output directories of pretraining runs, whose curves the report shows')
    parser.add_argument('--note', default='', metavar='TEXT',
                        help='what the columns are, for the top of the report (default: nothing)')
    parser.add_argument('--pictures', type=Path, help='folder of PNGs to join into pictures.png')
    args = parser.parse_args(argv)
    results, names = read_columns(args.column), [name for name, *_ in args.column]
    protocols = {report.TASKS.get(task, task): {name: entry for name, (*_, entry) in columns.items()}
                 for task, columns in results.items()}
    curves = protocols.pop(report.CURVE, {})
    bars = {protocol: with_classes for protocol, columns in protocols.items() if (
        with_classes := {name: entry for name, entry in columns.items() if 'IoU' in entry})}
    for count in sorted({point['num_clusters'] for curve in curves.values() for point in curve}):
        protocols[f'{report.TASKS["kmeans"]}, {count} clusters'] = {
            name: {**point, 'IoU': {}} for name, curve in curves.items() for point in curve
            if point['num_clusters'] == count}
    cells = cells_of(protocols, args.per_class)
    texts = pivot({place: with_spread(*cell) for place, cell in cells.items()}, names)
    table = markdown(['%', 'metric', *names], texts, len(names))
    write_text(args.output / 'table.md', table)
    values = [[*row[:2], *chain(*row[2:])] for row in pivot(cells, names, (None, None, None))]
    head = ['protocol', 'metric', *(f'{name}{kind}' for name in names for kind in ('', ' std', ' n'))]
    write_text(args.output / 'table.csv', csv_text(head, values))
    others = unlike(results)
    print(table, *others, sep='\n')
    pictures = {'classes.png': to_image(partial(class_bars, bars))} if bars else {}
    if curves:
        pictures['overclustering.png'] = to_image(partial(curve_of_clusters, curves))
    if args.pictures is not None:
        panels = [np.array(Image.open(path).convert('RGB')) for path in sorted(args.pictures.glob('*.png'))]
        if not panels:
            raise UserError(f'no PNG in {args.pictures}; give the visualizations/ folder of a run.')
        pictures['pictures.png'] = montage(panels, 2)
    for name, picture in pictures.items():
        save_image(picture, args.output / name)
    classes = max((list(entry['IoU']) for columns in bars.values() for entry in columns.values()), key=len, default=[])
    page.write_page(args.output, f'Results: {" · ".join(names)}', args.note or 'What each model knows, side by side' + (
        ', and how it was trained without labels' if args.pretraining else ''), [
        page.table('Results', ('protocol', 'metric', *names), [row for row in texts if row[1] == 'mIoU'],
                   ' '.join([f'In percent; {report.SPREAD}.', *others])),
        *report.plot_blocks(bars, curves), *picture_blocks(results, classes),
        *(block for folder in args.pretraining for block in report.training_blocks(folder, f': {folder.name}'))])
    print(f'Written to {args.output}: {", ".join(["table.md", "table.csv", *pictures, page.REPORT])}')


if __name__ == '__main__':
    run_script(main)
