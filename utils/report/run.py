"""The report of a run: report.html in its output directory, of what the script holds and training has logged."""
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
from utils.report.pictures import class_bars, curve_of_clusters, line_panels
from utils.report.results import with_spread
from utils.run import distributed
from utils.run.log import METRICS, PICTURES, warn_of_failure

log = logging.getLogger(__name__)
TASKS = {'linear': 'Linear classifier', 'linear_crf': 'Linear classifier + CRF', 'finetuned': 'Fine-tuned',
         'finetuned_crf': 'Fine-tuned + CRF', 'distilled': 'Distilled', 'distilled_crf': 'Distilled + CRF',
         'distilled_matched': 'Distilled, matched', 'distilled_crf_matched': 'Distilled + CRF, matched',
         'agreement': 'Agreement with label maps', 'agreement_crf': 'Agreement with label maps + CRF',
         'pseudo_labels': 'Label maps', 'kmeans': 'K-means', 'retrieval': 'Retrieval',
         'retrieval_7': 'Retrieval, 7 classes', 'offline': 'Label maps on disk', 'saliency': 'Masks',
         'clusters': 'Clusters'}  # others under their own names
CURVE = 'overclustering'  # a list of {num_clusters, mIoU, std, ...}
WORDS = {'mIoU_present': 'mIoU of the classes in the ground truth', 'accuracy': 'pixel accuracy',
         'num_clusters': 'number of clusters', 'num_runs': 'number of runs', 'maxF': 'maximal F-measure',
         'MAE': 'mean absolute error', 'num_neighbours': 'number of neighbours', 'label_maps': 'folder of label maps',
         'select': 'epoch of the model: the last, or of best mIoU by the labels of val',
         'fingerprint': 'fingerprint of the weights', 'images': 'number of images', 'size': 'input size, pixels',
         'min_component': 'smallest component, share of the image'}  # of keys in results.json
# title, x, y and scalars of each plot of training
PLOTS = (('Losses', 'step', 'loss', ('train/loss', 'train/contrastive', 'train/saliency')),
         ('Accuracy of the contrast', 'step', 'share of foreground pixels', ('train/accuracy',)),
         ('Foreground of the query views', 'step', 'share of pixels', ('train/foreground',)),
         ('Memory bank: mean cosine of two entries', 'step', 'cosine', ('bank/cosine',)),
         ('Memory bank: effective rank', 'step', 'dimensions', ('bank/rank',)),
         ('Learning rate', 'epoch', 'learning rate', ('train/lr',)),
         ('Validation', 'epoch', '%', ('val/miou', 'val/mIoU', 'val/maxF')),
         ('Validation: mean absolute error', 'epoch', '%', ('val/MAE',)),
         ('K-means on a labelled subset', 'epoch', 'mIoU, %', ('probe/mIoU',)))
TAKEN = {'views': ('Views', 'epoch', 'Query and key views of the first step of an epoch, with the outlines of their '
                                     'masks.'),
         'embedding': ('Embeddings', 'epochs done:', 'Images with the outlines of their predicted masks, and the three '
                                                     'main directions of the pixel embeddings as red, green and blue.')}
PREDICTIONS, CLUSTER_IMAGES, NEIGHBOURS = 'Predictions', 'Clusters', 'Nearest neighbours'  # pictures of evaluations
NEIGHBOURS_FILE = 'neighbours.png'
NOTES = {PREDICTIONS: 'What each part is stands above it. K-means: the first run.',
         CLUSTER_IMAGES: 'The most typical objects of each cluster, in colour.',
         NEIGHBOURS: 'A row an object: first its crop, outlined in yellow, under its true > its predicted class; then '
                     'the images of the nearest objects in the memory, under their classes.'}
SPREAD = '± one sample standard deviation over n runs'
Pictures = Mapping[str, Sequence[tuple[str, Path]]]


def write_run_report(config: Mapping[str, Any], title: str, results: Mapping[str, Any], classes: Sequence[str] = (),
                     confusions: Mapping[str, np.ndarray] | None = None, pictures: Pictures | None = None) -> None:
    """Write report.html into the run's output directory; in the main process alone. A failure is a warning.

    Args:
        title: what the run was.
        results: {task: entry of results.json}.
        confusions: {task: (classes, classes) true x predicted pixels}.
        pictures: {a key of NOTES: (caption, file) of each}.
    """
    if not distributed.is_main():
        return
    with warn_of_failure(page.REPORT):
        folder = Path(config['output_dir'])
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in flat(config).items()]
        blocks = [*result_blocks(results),
                  *(page.matrix(f'Confusion matrix: {TASKS.get(task, task)}', confusion, classes)
                    for task, confusion in (confusions or {}).items()),
                  *training_blocks(folder),
                  *(picture_block(kind, shown, classes) for kind, shown in (pictures or {}).items()),
                  page.table('Config', (), rows, folded=True)]
        lead = f'{config["config_name"]} · {time.strftime("%Y-%m-%d %H:%M")} · PyTorch {torch.__version__}'
        log.info('Report: %s', page.write_page(folder, title, lead, blocks))


def picture_block(kind: str, shown: Sequence[tuple[str, Path]], classes: Sequence[str] = (),
                  suffix: str = '', columns: int = 0) -> page.Block:
    """Pictures of an evaluation, of a kind of NOTES."""
    colours = page.class_colours(classes) | page.IGNORED if kind == PREDICTIONS else {}
    return page.pictures(f'{kind}{suffix}', shown, NOTES[kind], colours, columns)


def result_blocks(results: Mapping[str, Any]) -> list[page.Block]:
    """A table of the scalars, the plots, the clusters that were found, and what made the results."""
    rows: list[tuple[str, str, str]] = []
    made: list[tuple[str, str, str]] = []
    found: list[page.Block] = []
    entries = {TASKS.get(task, task): entry for task, entry in results.items() if task != CURVE}
    for protocol, entry in entries.items():
        for name, value in entry.items():
            if isinstance(value, (int, float)) and not name.endswith('std'):
                std = entry.get('std' if name == 'mIoU' else f'{name}_std')
                rows.append((protocol, WORDS.get(name, name), with_spread(value, std, entry.get('num_runs'))
                             if isinstance(value, float) else str(value)))
        made += [(protocol, WORDS.get(name, name), 'masks stay whole' if value is None else str(value))
                 for name, value in entry.get('made_with', {}).items()]
        values = sorted((int(k), value) for k, value in entry.get('silhouette', {}).items() if value is not None)
        draw = partial(line_panels, {'Silhouette': {'silhouette': values}}, 'number of clusters',
                       'mean silhouette, -1 to 1')
        found += [page.plots('Silhouette', [draw] if values else []),
                  page.table('Objects in each cluster', ('cluster', 'objects'), [
                      (str(k), str(size)) for k, size in enumerate(entry.get('sizes', ()), 1)])]
    bars = {title: {'': entry} for title, entry in entries.items() if 'IoU' in entry}
    curves = {TASKS['kmeans']: results[CURVE]} if CURVE in results else {}
    return [page.table('Results', ('protocol', 'metric', 'value'), rows,
                       f'mIoU, accuracy, NMI and ARI in percent; {SPREAD}.'),
            *plot_blocks(bars, curves), *found, page.table('Made with', ('protocol', 'what', 'value'), made)]


def plot_blocks(bars: Mapping[str, Mapping[str, Any]], curves: Mapping[str, Any]) -> list[page.Block]:
    """Bars of each class, as ``class_bars`` takes them, a plot a protocol; the {column: curve} of over-clustering."""
    return [page.plots('IoU of each class', [partial(class_bars, {title: columns}) for title, columns in bars.items()]),
            page.plots('Over-clustering', [partial(curve_of_clusters, curves)] if curves else [])]


def training_blocks(folder: Path, suffix: str = '') -> list[page.Block]:
    """The curves of the training in an output directory, and the first, middle and last of the pictures it took."""
    (scalars, pictures), draws = read_history(folder), []
    for title, x, y, names in PLOTS:
        if curves := {name.rpartition('/')[2]: scalars[name] for name in names if name in scalars}:
            draws.append(partial(line_panels, {title: curves}, x, y))
    blocks = [page.plots(f'Training{suffix}', draws)]
    for name, (title, caption, note) in TAKEN.items():
        taken = pictures.get(name, [])
        chosen = [taken[i] for i in sorted({0, (len(taken) - 1) // 2, len(taken) - 1})] if taken else []
        blocks.append(page.pictures(f'{title}{suffix}', [(f'{caption} {epoch}', path) for epoch, path in chosen], note))
    return blocks


def read_history(output_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, Path]]]]:
    """{name: (step or epoch, value) points} of metrics.jsonl, and {name: (epoch, PNG)} of pictures/, each in order.

    Of a step logged twice, by a run that was killed and resumed, the later line counts. A damaged last line, which a
    kill leaves, is passed over; any other is told in the log.
    """
    path = output_dir / METRICS
    lines = path.read_bytes().rstrip(b'\n').split(b'\n') if path.is_file() else []
    scalars: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            epoch = values.pop('epoch')
            place = int(values.pop('step', epoch))
            points = {name: float(value) for name, value in values.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):
                log.warning('%s: line %d is damaged, and its values are missing in the curves', path, number)
            continue
        for name, value in points.items():
            scalars.setdefault(name, {})[place] = value
    pictures: dict[str, list[tuple[int, Path]]] = {}
    for picture in (output_dir / PICTURES).glob('*_*.png'):
        name, _, epoch = picture.stem.rpartition('_')
        if epoch.isdecimal():  # others are not of the training
            pictures.setdefault(name, []).append((int(epoch), picture))
    return ({name: sorted(points.items()) for name, points in scalars.items()},
            {name: sorted(taken) for name, taken in pictures.items()})
