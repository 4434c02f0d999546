"""One table of several runs, a row a protocol, a column a model, in percent; and plots and a report of the same.

    python segmentation/table.py --column before results/demo/kmeans-before-embedding \\
        --column after results/demo/kmeans-after --output results/demo --pretraining results/demo/pretrain

Reads each run's results.json. Writes table.md, table.csv, classes.png (bars per class) and, where a run
of K-means has it, overclustering.png (mIoU over the number of clusters). report.html joins the table, the
pictures of the runs and, with --pretraining, the curves of the training that they share.
"""
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
from PIL import Image

from utils.config.cli import ArgumentParser
from utils.report import page
from utils.report.pictures import montage
from utils.report.plots import class_bars, curve_of_clusters, to_image
from utils.report.results import read_results
from utils.report.run import (
    CURVE,
    NEIGHBOURS,
    NEIGHBOURS_FILE,
    NOTES,
    PREDICTIONS,
    SPREAD,
    TASKS,
    class_block,
    training_blocks,
)
from utils.report.tables import csv_text, markdown, with_spread
from utils.run.errors import UserError, name_some
from utils.run.files import save_image, write_text
from utils.run.script import run_script

SHOWN = 4  # images of a protocol in the report


class Result(NamedTuple):
    """An entry of a results.json, and the folder that it lies in."""
    entry: Any
    folder: Path


class Cell(NamedTuple):
    """A result in percent, and where it is a mean of several runs their standard deviation and number."""
    mean: float
    std: float | None = None
    runs: int | None = None


class Row(NamedTuple):
    """One line of the table; a cell is None where a column lacks the result."""
    protocol: str
    metric: str  # mIoU, or IoU and a class
    cells: list[Cell | None]  # of each column

    def text(self) -> list[str]:
        return [self.protocol, self.metric, *('-' if cell is None else with_spread(*cell) for cell in self.cells)]


Column = dict[str, Result]  # {task: result}


def best_miou(entry: Any) -> float:
    """The mIoU of an entry, or the highest of a curve."""
    return max(point['mIoU'] for point in entry) if isinstance(entry, list) else entry['mIoU']


def read_column(folders: Sequence[str]) -> Column:
    """The results of the folders; of several of one task that of the best mIoU.

    Raises:
        UserError: a results.json is missing or is none, or there is no result in any.
    """
    best: Column = {}
    for folder in map(Path, folders):
        path = folder / 'results.json'
        if not path.is_file():
            raise UserError(f'{path} does not exist; run the protocol whose output directory this is first.')
        try:
            for task, entry in read_results(folder).items():
                if isinstance(entry, dict) and 'mIoU' not in entry:
                    continue  # clusters without ground truth
                miou = best_miou(entry)
                if task not in best or miou >= best_miou(best[task].entry):
                    best[task] = Result(entry, folder)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} does not hold the results of a protocol; run it again.') from error
    if not best:
        raise UserError(f'no result against ground truth in {name_some(folders)} (clusters of unlabelled images have '
                        'no mIoU); give runs on labelled data.')
    return best


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


def cell_of(entry: Mapping[str, Any], name: str | None = None) -> Cell | None:
    """The mIoU of an entry, or the IoU of a class."""
    mean, std = (entry.get('mIoU'), entry.get('std')) if name is None else (
        entry.get('IoU', {}).get(name), (entry.get('IoU_std') or {}).get(name))
    runs = entry.get('num_runs')  # of an earlier version without it: its deviation was another
    return None if mean is None else Cell(mean, None if runs is None else std, runs)


def entries_of(columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """{task: {column: entry}} of the columns that have it, in the order of TASKS."""
    present = dict.fromkeys(task for column in columns.values() for task in column)
    return {task: {name: column[task].entry for name, column in columns.items() if task in column}
            for task in dict.fromkeys((*(task for task in TASKS if task in present), *present))}


def rows_of(columns: Mapping[str, Column], per_class: bool = False) -> list[Row]:
    """The rows of the table, those of over-clustering last."""
    tasks = entries_of(columns)
    curves = {name: {point['num_clusters']: point for point in curve} for name, curve in tasks.pop(CURVE, {}).items()}
    rows = []
    for task, entries in tasks.items():
        classes = dict.fromkeys(name for entry in entries.values() for name in entry.get('IoU', {}))
        rows += [Row(TASKS.get(task, task), f'IoU {name}' if name else 'mIoU', [
            cell_of(entries.get(column, {}), name) for column in columns]) for name in (None, *classes)
            if name is None or per_class]
    for count in sorted({count for curve in curves.values() for count in curve}):
        rows.append(Row(f'{TASKS["kmeans"]}, {count} clusters', 'mIoU', [
            cell_of(curves.get(column, {}).get(count, {})) for column in columns]))
    return rows


def write_comparison(output: Path, rows: Sequence[Row], protocols: Mapping[str, Mapping[str, Any]],
                     curves: Mapping[str, Any], columns: Mapping[str, Column], pretraining: Sequence[Path],
                     note: str) -> None:
    """Write report.html: what the models of each column know, and how they were pretrained.

    Args:
        protocols: {protocol: {column: its entry}} of those with results of classes.
        curves: {column: its curve of over-clustering}.
        pretraining: output directories of pretraining runs.
        note: what the columns are.
    """
    blocks = [page.table('Results', ('protocol', 'metric', *columns), [row.text() for row in rows],
                         f'In percent; {SPREAD}.')]
    if protocols:
        blocks.append(class_block(protocols))
    if curves:
        blocks.append(page.plots('Over-clustering', [partial(curve_of_clusters, curves)]))
    classes = max((list(entry['IoU']) for entries in protocols.values() for entry in entries.values()), key=len,
                  default=[])
    blocks += prediction_blocks(columns, classes)
    files = [(name, result.folder / NEIGHBOURS_FILE) for name, column in columns.items() for result in column.values()]
    files = [(name, path) for name, path in dict.fromkeys(files) if path.is_file()]
    if files:
        blocks.append(page.pictures(NEIGHBOURS, files, NOTES[NEIGHBOURS]))
    for folder in pretraining:
        blocks += training_blocks(folder, f': {folder.name}')
    page.write_page(output, f'Results: {" · ".join(columns)}', note or 'What each model knows, side by side' + (
        ', and how it was trained without labels' if pretraining else ''), blocks)


def prediction_blocks(columns: Mapping[str, Column], classes: Sequence[str]) -> list[page.Block]:
    """The first few predictions of each protocol, of all columns in turn; of protocols with one folder the first."""
    blocks, seen = [], []
    for task in dict.fromkeys(task for column in columns.values() for task in column):
        folders = {name: column[task].folder / 'visualizations' for name, column in columns.items() if task in column}
        names = sorted({path.name for folder in folders.values() for path in folder.glob('*.png')})[:SHOWN]
        if not names or folders in seen:
            continue
        seen.append(folders)
        files = [(f'{name}: {Path(file).stem}', folder / file)
                 for file in names for name, folder in folders.items() if (folder / file).is_file()]
        blocks.append(page.pictures(f'{PREDICTIONS}: {TASKS.get(task, task)}', files, NOTES[PREDICTIONS],
                                    page.class_colours(classes) | page.IGNORED,
                                    columns=len(folders) if len(folders) > 1 else 0))
    return blocks


def main(argv: Sequence[str] | None = None) -> None:
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
    args = parser.parse_args(argv)
    columns = read_columns(args.column)
    rows = rows_of(columns, args.per_class)
    table = markdown(['%', 'metric', *columns], [row.text() for row in rows], len(columns))
    write_text(args.output / 'table.md', table)
    write_text(args.output / 'table.csv', csv_text(
        ['protocol', 'metric', *(name + suffix for name in columns for suffix in ('', ' std', ' n'))],
        [[row.protocol, row.metric, *(value for cell in row.cells for value in cell or (None,) * 3)] for row in rows]))
    print(table)
    tasks = entries_of(columns)
    curves = tasks.pop(CURVE, {})
    bars = {TASKS.get(task, task): {name: entry for name, entry in entries.items() if 'IoU' in entry}
            for task, entries in tasks.items()}
    bars = {protocol: entries for protocol, entries in bars.items() if entries}
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
    write_comparison(args.output, rows_of(columns), bars, curves, columns, args.pretraining, args.note)
    print(f'Written to {args.output}: {", ".join(["table.md", "table.csv", *pictures, page.REPORT])}')


if __name__ == '__main__':
    run_script(main)
