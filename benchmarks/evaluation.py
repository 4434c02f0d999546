"""What evaluation costs at VOC's scale once the network has run, beside the reference.

    python benchmarks/evaluation.py --parts kmeans miou --images 1449 --share 0.01

Prototypes, masks, label maps and photographs of VOC's sizes are drawn by code, by seed, one image at a
time; drawing them is not timed. The reference works on a share of the images and is extrapolated. Both
ways must give the same result, or the benchmark fails. Each runs in a process of its own, whose peak
memory is shown.
"""
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch

from data.label_maps import VOID
from data.transforms import resize_mask, split_mask
from data.voc import VOC_CLASSES
from models.crf import crf_in_workers, dense_crf
from segmentation.clustering import Whitening, kmeans, match_clusters, merge_clusters, score_clusters
from segmentation.feature_index import FeatureIndex
from segmentation.metrics import confusion_matrix, iou_matrix, iou_of
from segmentation.objects import EmbeddedSplit
from utils.config.cli import ArgumentParser
from utils.run.parallel import available_cores, in_threads
from utils.run.script import run_script

CLASSES = len(VOC_CLASSES)
DIMENSION, CLUSTERS, RUNS, SIZE, MEMORY = 32, 20, 5, 512, 10582
SHAPES = ((375, 500), (375, 500), (375, 500), (500, 375), (333, 500), (500, 332))  # most of VOC's


class Drawing:
    """One image's ground truth (H, W) uint8, its mask (512, 512) uint8, its label map and its prototype."""

    def __init__(self, index: int) -> None:
        self.draw = draw = np.random.default_rng((1234, index))
        self.height, self.width = SHAPES[draw.integers(len(SHAPES))]
        cells = np.zeros((12, 16), np.uint8)  # blocks of about 31 x 31 pixels
        for label in draw.integers(1, CLASSES, draw.integers(1, 4)):
            y, x = draw.integers(0, (8, 11))
            cells[y:y + draw.integers(3, 7), x:x + draw.integers(3, 8)] = self.label = label
        mask = cells > 0
        mask[draw.random(mask.shape) < 0.05] ^= True
        predicted = np.where(draw.random(cells.shape) < 0.1, draw.integers(0, CLASSES, cells.shape), cells)
        self.cells = cells.copy()
        cells[draw.random(cells.shape) < 0.03] = VOID
        self.truth = resize_mask(cells, self.width, self.height)
        self.mask = resize_mask(mask.astype(np.uint8), SIZE, SIZE)
        self.prediction = resize_mask(predicted.astype(np.uint8), self.width, self.height)
        centre = np.random.default_rng((99, self.label)).standard_normal(DIMENSION)
        prototype = centre + 0.7 * draw.standard_normal(DIMENSION)
        self.prototype = (prototype / np.linalg.norm(prototype)).astype(np.float32)

    def photograph(self) -> np.ndarray:
        """(H, W, 3) uint8: a colour a class, shaded and with a little noise."""
        colours = np.random.default_rng(7).integers(40, 215, (CLASSES, 3)).astype(np.float32)
        shade = cv2.resize(self.draw.normal(0, 20, (8, 10, 3)).astype(np.float32), (self.width, self.height),
                           interpolation=cv2.INTER_CUBIC)
        noise = self.draw.normal(0, 1, (self.height, self.width, 3))
        picture = colours[resize_mask(self.cells, self.width, self.height)] + shade + noise
        return np.clip(picture, 0, 255).astype(np.uint8)

    def logits(self) -> np.ndarray:
        """(21, 512, 512) float32: 6 above the rest where the class is, with noise and blurred edges."""
        coarse = self.draw.normal(0, 0.7, (64, 64, CLASSES)).astype(np.float32)
        coarse += 6 * np.eye(CLASSES, dtype=np.float32)[resize_mask(self.cells, 64, 64)]
        planes = [cv2.resize(cv2.blur(plane, (5, 5)), (SIZE, SIZE)) for plane in np.moveaxis(coarse, -1, 0)]
        return np.stack(planes)


class Stopwatch:
    """Adds up the time spent in its with-blocks."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.seconds = clock, 0.0

    def __enter__(self) -> None:
        self.start = self.clock()

    def __exit__(self, *_: Any) -> None:
        self.seconds += self.clock() - self.start


def whitened(prototypes: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(prototypes)
    return Whitening.fit(stacked, 1234)(stacked)


def kmeans_ours(images: int) -> tuple[float, list[np.ndarray]]:
    """All that follows the network: seconds, and the IoU matrix of each run."""
    watch, inside, outside, prototypes, packed = Stopwatch(), [], [], [], []
    for drawing in map(Drawing, range(images)):
        with watch:
            objects, count = split_mask(drawing.mask)
            objects = resize_mask(objects, drawing.width, drawing.height)
            pixels = confusion_matrix(drawing.truth, objects, CLASSES, count + 1)
            inside.append(pixels[:, 1:].T.copy())
            outside.append(pixels[:, 0].copy())
            packed.append(np.packbits(objects))
            prototypes.append(drawing.prototype)
    with watch:
        matrices, points = [], whitened(prototypes)
        split = EmbeddedSplit(points, np.concatenate(inside), np.stack(outside), np.arange(images), [], [], [])
        for run in range(RUNS):
            clusters = kmeans(points, CLUSTERS, 1234 + run).ids
            confusion = split.confusion(clusters + 1, CLUSTERS + 1)
            score_clusters(merge_clusters(confusion, match_clusters(confusion)))
            matrices.append(iou_matrix(confusion))
    return watch.seconds, matrices


def kmeans_plain(images: int) -> tuple[float, list[np.ndarray]]:
    """The matching alone of one run: each class with each cluster over all pixels, as float32."""
    watch = Stopwatch()
    drawings = list(map(Drawing, range(images)))
    clusters = kmeans(whitened([d.prototype for d in drawings]), CLUSTERS, 1234).ids
    truth, predicted = (np.concatenate(maps).astype(np.float32) for maps in zip(*(
        (d.truth.ravel(), (resize_mask(d.mask, d.width, d.height) * (c + 1)).ravel())
        for d, c in zip(drawings, clusters, strict=True)), strict=True))
    truth, predicted = truth[truth != VOID], predicted[truth != VOID]
    with watch:
        matrix = np.zeros((CLASSES, CLUSTERS + 1))
        for c in range(CLASSES):
            for k in range(CLUSTERS + 1):
                a, b = (truth == c).astype(np.float32), (predicted == k).astype(np.float32)
                matrix[c, k] = (a * b).sum() / max(1, np.maximum(a, b).sum())
    return RUNS * watch.seconds, [matrix]


def miou_ours(images: int) -> tuple[float, np.ndarray]:
    watch, total = Stopwatch(), np.zeros((CLASSES, CLASSES), np.int64)
    for drawing in map(Drawing, range(images)):
        with watch:
            total += confusion_matrix(drawing.truth, drawing.prediction, CLASSES)
    return watch.seconds, iou_of(total)


def miou_plain(images: int) -> tuple[float, np.ndarray]:
    """Each class over all pixels, as float32."""
    watch, hits, union = Stopwatch(), np.zeros(CLASSES), np.zeros(CLASSES)
    for drawing in map(Drawing, range(images)):
        truth, prediction = drawing.truth.astype(np.float32), drawing.prediction.astype(np.float32)
        with watch:
            for c in range(CLASSES):
                a, b = (truth == c).astype(np.float32), ((prediction == c) & (truth != VOID)).astype(np.float32)
                hits[c] += (a * b).sum()
                union[c] += np.maximum(a, b).sum()
    return watch.seconds, hits / union.clip(1)


def units(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def classes_of(entries: int) -> np.ndarray:
    return np.random.default_rng(2).integers(1, CLASSES, entries)


def search_ours(queries: int, entries: int, checked: int) -> tuple[float, np.ndarray]:
    watch, votes, vectors = Stopwatch(), np.eye(CLASSES, dtype=np.int64)[classes_of(entries)], units(queries, 1)
    index = FeatureIndex(units(entries, 0), votes, np.arange(entries).astype(str), VOC_CLASSES)
    index.vote(index.search(vectors[:1]))  # the libraries start their threads
    with watch:
        found = index.vote(index.search(vectors))
    return watch.seconds, found[:checked]


def search_plain(queries: int, entries: int, checked: int) -> tuple[float, np.ndarray]:
    """One query after another."""
    watch, memory, vectors = Stopwatch(), units(entries, 0), units(queries, 1)[:checked]
    labels = classes_of(entries)
    memory @ vectors[0]
    with watch:
        found = labels[[(memory @ vector).argmax() for vector in vectors]]
    return watch.seconds * queries / checked, found


def scenes(images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((d.photograph(), d.logits()) for d in map(Drawing, range(images)))


def crf_in_processes(images: int, workers: int) -> tuple[float, list[np.ndarray]]:
    """The CRF of all classes in worker processes, which have started and imported before."""
    watch, inputs = Stopwatch(), list(scenes(images))
    with crf_in_workers({}, workers) as refine:
        def run(pairs: list) -> list[np.ndarray]:
            return list(in_threads(lambda pair: refine(*pair), pairs, 2 * workers, 2 * workers))
        run([(image[:100, :100], logits[:, :64, :64]) for image, logits in inputs[:1]] * 4 * workers)
        with watch:
            maps = run(inputs)
    return watch.seconds, maps


def crf_here(images: int, min_probability: float) -> tuple[float, list[np.ndarray]]:
    """One CRF after another on one core; its time, which other processes do not disturb."""
    torch.set_num_threads(1)
    watch, inputs = Stopwatch(time.process_time), list(scenes(images))
    with watch:
        maps = [dense_crf(*pair, min_probability=min_probability) for pair in inputs]
    return watch.seconds, maps


def nothing() -> tuple[float, None]:
    return 0.0, None


def measured(function: Callable, *arguments: Any) -> tuple[float, Any, float]:
    """Seconds, result and peak memory in MB of a function in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable, arguments: tuple) -> tuple[float, Any, float]:
    seconds, result = function(*arguments)
    status = Path('/proc/self/status')  # Linux; getrusage there counts the parent's peak too
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return seconds, result, int(line.split()[1]) / 1024
    return seconds, result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20


def show(what: str, plain: tuple, ours: tuple, factor: float = 1, note: str = '') -> None:
    """One line of the table; ``factor`` extrapolates the reference."""
    print(f'| {what:<44} | {plain[0] * factor:9.2f} s {plain[2]:6.0f} MB | {ours[0]:8.2f} s {ours[2]:6.0f} MB '
          f'| {plain[0] * factor / ours[0]:7.1f} | {note}', flush=True)


def miou_of(maps: list[np.ndarray]) -> float:
    return 100 * float(iou_of(sum(confusion_matrix(Drawing(i).truth, m, CLASSES) for i, m in enumerate(maps))).mean())


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parts = ('kmeans', 'miou', 'retrieval', 'crf')
    parser.add_argument('--parts', nargs='+', choices=parts, default=parts, help='default: all')
    parser.add_argument('--images', type=int, default=1449, help='images of the split')
    parser.add_argument('--share', type=float, default=0.02, help='share of them for the reference')
    parser.add_argument('--large', action='store_true', help='retrieval: also 1,000,000 entries, 10,000 queries')
    parser.add_argument('--crf-images', type=int, default=12, help='images for the CRF, both ways')
    parser.add_argument('--workers', type=int, default=available_cores(), help='processes of the CRF')
    parser.add_argument('--min-probability', type=float, default=0.05, help='of the CRF with fewer classes')
    args = parser.parse_args(argv)
    share = max(CLUSTERS, round(args.share * args.images))
    factor = args.images / share

    print(f'{args.images} images of about 375 x 500; the reference on {share} of them, its time extrapolated, its '
          f'memory not. Of the memory, {measured(nothing)[2]:.0f} MB are the libraries.')
    print(f'| {"what":<44} | {"reference":>22} | {"ours":>21} | {"ratio":>7} |')
    if 'kmeans' in args.parts:
        plain = measured(kmeans_plain, share)
        np.testing.assert_allclose(measured(kmeans_ours, share)[1][0], plain[1][0], rtol=1e-5)
        show(f'K-means, all after the network, {RUNS} runs', plain, measured(kmeans_ours, args.images), factor)
    if 'miou' in args.parts:
        plain = measured(miou_plain, share)
        np.testing.assert_allclose(measured(miou_ours, share)[1], plain[1], rtol=1e-5)
        show('mIoU of label maps', plain, measured(miou_ours, args.images), factor)
    if 'retrieval' in args.parts:
        for queries, entries in [(args.images, MEMORY)] + [(10000, 10 ** 6)] * args.large:
            sizes = queries, entries, max(1, round(args.share * queries))
            plain, ours = measured(search_plain, *sizes), measured(search_ours, *sizes)
            assert np.mean(plain[1] == ours[1]) > 0.99  # float32 may break a tie differently
            show(f'Retrieval, {queries:,} in {entries:,} x {DIMENSION}', plain, ours)
    if 'crf' in args.parts:
        n = args.crf_images
        plain, one = measured(crf_here, n, 0.0), measured(crf_in_processes, n, 1)
        many, few = measured(crf_in_processes, n, args.workers), measured(crf_here, n, args.min_probability)
        for other in (one, many):
            np.testing.assert_array_equal(np.concatenate([m.ravel() for m in plain[1]]),
                                          np.concatenate([m.ravel() for m in other[1]]))
        show(f'CRF, {args.workers} workers over one, {n} images', one, many)
        show(f'CRF, CPU time, min_probability {args.min_probability}, {n} images', plain, few,
             note=f'mIoU {miou_of(plain[1]):.2f} -> {miou_of(few[1]):.2f}')


if __name__ == '__main__':
    run_script(main)
