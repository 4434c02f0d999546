"""The report of several runs: what pretraining did, and what the models of each column know."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from utils.report import page
from utils.report.history import read_history
from utils.report.plots import cluster_curves
from utils.report.run import (
    FROM_LEFT,
    NEIGHBOURS,
    PREDICTIONS,
    SPREAD,
    curve_blocks,
    neighbour_block,
    training_pictures,
)

SHOWN = 4  # images of a protocol


def write_story(output: Path, rows: Sequence[Sequence[str]], bars: Mapping[str, Mapping[str, Mapping[str, Any]]],
                curves: Mapping[str, Any], runs: Mapping[str, Mapping[str, Path]],
                pretraining: Sequence[Path] = (), note: str = '') -> None:
    """Write report.html into ``output``.

    Args:
        rows: of the table: protocol, figure and a cell a column.
        bars: {protocol: {column: its entry in results.json}} of the protocols with figures of classes.
        curves: {column: its curve of over-clustering}.
        runs: {column: {protocol: output directory}}.
        pretraining: output directories of pretraining runs, whose curves and pictures are shown.
        note: what the columns are, shown under the title.
    """
    blocks = [page.table('Results', ('protocol', 'figure', *runs), rows,
                         f'In per cent; {SPREAD}.')]
    classes = max((list(entry['IoU']) for columns in bars.values() for entry in columns.values()), key=len, default=[])
    blocks += [page.bars(f'IoU of each class: {protocol}', {name: entry['IoU'] for name, entry in columns.items()},
                         classes) for protocol, columns in bars.items()]
    if curves:
        blocks.append(page.plots('Over-clustering', [partial(cluster_curves, curves)]))
    blocks += prediction_blocks(runs, classes)
    sheets = {column: folder / NEIGHBOURS for column, run in runs.items() for folder in run.values()
              if (folder / NEIGHBOURS).is_file()}
    if sheets:
        blocks.append(neighbour_block(sheets))
    for folder in pretraining:
        history = read_history(folder)
        blocks += [{**block, 'title': f'{block["title"]}: {folder.name}'}
                   for block in (*curve_blocks(history), *training_pictures(history))]
    page.write_page(output, f'Results: {" · ".join(runs)}', note or 'What each model knows, side by side' + (
        ', and how it was trained without labels' if pretraining else ''), blocks)


def prediction_blocks(runs: Mapping[str, Mapping[str, Path]], classes: Sequence[str]) -> list[page.Block]:
    """The first few predictions of each protocol, of all columns in turn; of protocols with one folder the first."""
    blocks, seen = [], []
    for protocol in dict.fromkeys(protocol for run in runs.values() for protocol in run):
        folders = {column: run[protocol] / PREDICTIONS for column, run in runs.items() if protocol in run}
        names = sorted({path.name for folder in folders.values() for path in folder.glob('*.png')})[:SHOWN]
        if not names or folders in seen:
            continue
        seen.append(folders)
        files = [(f'{column}: {Path(name).stem}', (folder / name).read_bytes())
                 for name in names for column, folder in folders.items() if (folder / name).is_file()]
        colours = page.class_colours(classes) | page.VOID
        blocks.append(page.pictures(f'Predictions: {protocol}', files, FROM_LEFT, colours,
                                    columns=len(folders) if len(folders) > 1 else 0))
    return blocks
