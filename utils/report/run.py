"""The report of a run: report.html in its output directory, made from what the run left there."""
from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.config.keys import flat
from utils.report import page
from utils.report.history import History, read_history
from utils.report.results import read_results
from utils.run import distributed
from utils.run.log import warn_of_failure

log = logging.getLogger(__name__)
TASKS = {'linear': 'Linear classifier', 'linear_crf': 'Linear classifier + CRF', 'finetuned': 'Fine-tuned',
         'finetuned_crf': 'Fine-tuned + CRF', 'kmeans': 'K-means', 'retrieval': 'Retrieval',
         'retrieval_7': 'Retrieval, 7 classes', 'offline': 'Label maps on disk', 'saliency': 'Masks',
         'clusters': 'Clusters'}  # others under their own names
CURVE = 'overclustering'  # a list of {num_clusters, mIoU, std, ...}
# title, x, y, scalars of one plot
STEP, EPOCH = 'step', 'epoch'
PLOTS = (('Losses', STEP, 'loss', ('train/loss', 'train/contrastive', 'train/saliency')),
         ('Accuracy of the contrast', STEP, 'share of foreground pixels', ('train/accuracy',)),
         ('Foreground of the query views', STEP, 'share of pixels', ('train/foreground',)),
         ('Memory bank: mean cosine of two entries', STEP, 'cosine', ('bank/cosine',)),
         ('Memory bank: effective rank', STEP, 'dimensions', ('bank/rank',)),
         ('Learning rate', EPOCH, 'learning rate', ('train/lr',)),
         ('Validation', EPOCH, '%', ('val/miou', 'val/mIoU', 'val/maxF')),
         ('Validation: mean absolute error', EPOCH, '%', ('val/MAE',)),
         ('K-means on a labelled subset', EPOCH, 'mIoU, %', ('probe/mIoU',)))
PREDICTIONS, NEIGHBOURS = 'visualizations', 'neighbours.png'
FROM_LEFT = ('From left to right: image, ground truth, prediction, and after a CRF, if there is one. '
             'K-means: the first run.')
SPREAD = '± one sample standard deviation over n runs'
SHOWN = 3  # of the pictures that were taken over training: the first, the last and the one in between


def write_run_report(config: Mapping[str, Any], title: str, classes: Sequence[str] = (),
                     confusions: Mapping[str, np.ndarray] | None = None) -> None:
    """Write report.html into the run's output directory; in the main process alone. A failure is a warning.

    Args:
        config: with 'output_dir' and 'config_name'.
        title: what the run was.
        classes: names of the data set's classes.
        confusions: {task: (classes, classes) true x predicted pixels}.
    """
    if not distributed.is_main():
        return
    with warn_of_failure(page.REPORT):
        output_dir = Path(config['output_dir'])
        history = read_history(output_dir)
        blocks = [*result_blocks(read_results(output_dir), classes),
                  *(page.matrix(f'Confusion matrix: {TASKS.get(task, task)}', confusion, classes)
                    for task, confusion in (confusions or {}).items()),
                  *curve_blocks(history), *training_pictures(history), *prediction_pictures(output_dir, classes),
                  config_block(config)]
        lead = f'{config["config_name"]} · {time.strftime("%Y-%m-%d %H:%M")} · PyTorch {torch.__version__}'
        log.info('Report: %s', page.write_page(output_dir, title, lead, blocks))


def shown_spread(entry: Mapping[str, Any], deviation: float | None) -> str:
    """' ± 1.50 (n = 5)': the standard deviation of a result of several runs, if there is one with their number."""
    known = deviation is not None and 'num_runs' in entry
    return f' ± {deviation:.2f} (n = {entry["num_runs"]})' if known else ''


def config_block(config: Mapping[str, Any]) -> page.Block:
    """The config, hidden until it is asked for."""
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in flat(config).items()]
    return page.table('Config', (), rows, folded=True)


def result_blocks(results: Mapping[str, Any], classes: Sequence[str]) -> list[page.Block]:
    """The figures of results.json: a table of the scalars, bars of the classes, the curve of over-clustering."""
    rows: list[tuple[str, str, str]] = []
    blocks: list[page.Block] = []
    made = [(TASKS.get(task, task), name, str(value)) for task, entry in results.items() if isinstance(entry, dict)
            for name, value in entry.get('made_with', {}).items()]
    for task, entry in results.items():
        if task == CURVE:
            from utils.report.plots import cluster_curves
            blocks.append(page.plots('Over-clustering', [partial(cluster_curves, {TASKS['kmeans']: entry})]))
            continue
        for name, value in entry.items():
            if isinstance(value, (int, float)) and not name.endswith('std'):
                spread = shown_spread(entry, entry.get('std' if name == 'mIoU' else f'{name}_std'))
                rows.append((TASKS.get(task, task), name, (f'{value:.2f}' if isinstance(value, float) else str(value))
                             + spread))
        blocks += cluster_blocks(entry)
        if 'IoU' in entry:
            blocks.append(page.bars(f'IoU of each class: {TASKS.get(task, task)}', {task: entry['IoU']}, classes))
    if made:
        blocks.append(page.table('Made with', ('', 'what', 'value'), made))
    if rows:
        blocks.insert(0, page.table('Results', ('', 'figure', 'value'), rows,
                                    f'mIoU, accuracy, NMI and ARI in per cent; {SPREAD}.'))
    return blocks


def cluster_blocks(entry: Mapping[str, Any]) -> list[page.Block]:
    """Silhouettes and sizes of clusters that were found without ground truth, if the entry holds them."""
    blocks = []
    values = [(int(k), value) for k, value in entry.get('silhouette', {}).items() if value is not None]
    if values:
        from utils.report.plots import training_curves
        blocks.append(page.plots('Silhouette', [partial(training_curves, 'Silhouette', 'number of clusters',
                                                        'mean silhouette, -1 to 1', {'silhouette': sorted(values)})]))
    if 'sizes' in entry:
        blocks.append(page.table('Objects in each cluster', ('cluster', 'objects'), [
            (str(k), str(size)) for k, size in enumerate(entry['sizes'], 1)]))
    return blocks


def curve_blocks(history: History) -> list[page.Block]:
    """The curves of training that there are."""
    from utils.report.plots import training_curves
    draws = []
    for title, x, y, names in PLOTS:
        curves = {name.rpartition('/')[2]: history.scalars[name] for name in names if name in history.scalars}
        if curves:
            draws.append(partial(training_curves, title, x, y, curves))
    return [page.plots('Training', draws)] if draws else []


def training_pictures(history: History) -> list[page.Block]:
    """The pictures that training took of itself: the first, the last and one in between."""
    blocks = []
    for name, title, caption, text in (
            ('views', 'Views', 'epoch', 'Query and key views of the first step of an epoch, with the outlines of their '
                                        'masks.'),
            ('embedding', 'Embeddings', 'epochs done:', 'Images with the outlines of their predicted masks, and the '
             'three main directions of the pixel embeddings as red, green and blue.')):
        taken = history.pictures.get(name, [])
        chosen = [taken[i] for i in sorted({round(i) for i in np.linspace(0, len(taken) - 1, SHOWN)})] if taken else []
        if chosen:
            blocks.append(page.pictures(title, [(f'{caption} {epoch}', path.read_bytes()) for epoch, path in chosen],
                                        text))
    return blocks


def prediction_pictures(output_dir: Path, classes: Sequence[str]) -> list[page.Block]:
    """The pictures that an evaluation left."""
    blocks = []
    drawn = sorted((output_dir / PREDICTIONS).glob('*.png'))
    if drawn:
        blocks.append(page.pictures('Predictions', [(path.stem, path.read_bytes()) for path in drawn], FROM_LEFT,
                                    page.class_colours(classes) | page.VOID))
    sheets = sorted((output_dir / 'clusters').glob('cluster_*.jpg'), key=lambda path: int(path.stem.rpartition('_')[2]))
    if sheets:
        blocks.append(page.pictures('Clusters', [(path.stem, path.read_bytes()) for path in sheets],
                                    'The most typical objects of each cluster, in colour.'))
    if (output_dir / NEIGHBOURS).is_file():
        blocks.append(neighbour_block({NEIGHBOURS: output_dir / NEIGHBOURS}))
    return blocks


def neighbour_block(sheets: Mapping[str, Path]) -> page.Block:
    """The sheets that retrieval.py left, each under its caption."""
    return page.pictures('Nearest neighbours', [(caption, sheet.read_bytes()) for caption, sheet in sheets.items()],
                         'A row an object: first its crop, outlined in yellow, under its true > its predicted class; '
                         'then the images of the nearest objects in the memory, under their classes.')
