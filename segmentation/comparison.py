"""The report of several runs side by side: what the models of each column know, and how they were pretrained."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from utils.report import page
from utils.report.plots import curve_of_clusters
from utils.report.run import (
    NEIGHBOURS,
    NEIGHBOURS_FILE,
    NOTES,
    PREDICTIONS,
    SPREAD,
    class_block,
    training_blocks,
)

SHOWN = 4  # images of a protocol


def write_comparison(output: Path, rows: Sequence[Sequence[str]], bars: Mapping[str, Mapping[str, Mapping[str, Any]]],
                     curves: Mapping[str, Any], runs: Mapping[str, Mapping[str, Path]],
                     pretraining: Sequence[Path] = (), note: str = '') -> None:
    """Write report.html into ``output``.

    Args:
        rows: of the table: protocol, metric and a cell a column.
        bars: {protocol: {column: its entry in results.json}} of the protocols with results of classes.
        curves: {column: its curve of over-clustering}.
        runs: {column: {protocol: output directory}}.
        pretraining: output directories of pretraining runs, whose curves and pictures are shown.
        note: what the columns are, shown under the title.
    """
    blocks = [page.table('Results', ('protocol', 'metric', *runs), rows, f'In percent; {SPREAD}.')]
    classes = max((list(entry['IoU']) for columns in bars.values() for entry in columns.values()), key=len, default=[])
    if bars:
        blocks.append(class_block(bars))
    if curves:
        blocks.append(page.plots('Over-clustering', [partial(curve_of_clusters, curves)]))
    blocks += prediction_blocks(runs, classes)
    files = [(column, folder / NEIGHBOURS_FILE) for column, run in runs.items() for folder in run.values()]
    files = [(column, path) for column, path in dict.fromkeys(files) if path.is_file()]
    if files:
        blocks.append(page.pictures(NEIGHBOURS, files, NOTES[NEIGHBOURS]))
    for folder in pretraining:
        blocks += training_blocks(folder, f': {folder.name}')
    page.write_page(output, f'Results: {" · ".join(runs)}', note or 'What each model knows, side by side' + (
        ', and how it was trained without labels' if pretraining else ''), blocks)


def prediction_blocks(runs: Mapping[str, Mapping[str, Path]], classes: Sequence[str]) -> list[page.Block]:
    """The first few predictions of each protocol, of all columns in turn; of protocols with one folder the first."""
    blocks, seen = [], []
    for protocol in dict.fromkeys(protocol for run in runs.values() for protocol in run):
        folders = {column: run[protocol] / 'visualizations' for column, run in runs.items() if protocol in run}
        names = sorted({path.name for folder in folders.values() for path in folder.glob('*.png')})[:SHOWN]
        if not names or folders in seen:
            continue
        seen.append(folders)
        files = [(f'{column}: {Path(name).stem}', folder / name)
                 for name in names for column, folder in folders.items() if (folder / name).is_file()]
        blocks.append(page.pictures(f'{PREDICTIONS}: {protocol}', files, NOTES[PREDICTIONS],
                                    page.class_colours(classes) | page.IGNORED,
                                    columns=len(folders) if len(folders) > 1 else 0))
    return blocks
