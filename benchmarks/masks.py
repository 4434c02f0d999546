"""How good masks are: their IoU with the union of all labelled objects of an image; and what unsupervised ones cost.

    python benchmarks/masks.py --db-root DIR --masks unsupervised_model FOLDER --split val
    python benchmarks/masks.py --time 20

DIR/VOCSegmentation, or the data set --data of DIR, is in the VOC layout. A kind of masks is the NAME of its folder
saliency_NAME, or a folder of masks under the names of the images. Void pixels do not count; an image without a mask, or
with an empty one, counts as 0. Shown are all images whose ground truth has an object, and those of each list --split.
--time N masks N drawn images of 375x500 by --method unsupervised on one core.
"""
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
from threadpoolctl import threadpool_limits

from benchmarks.prediction import draw
from data.images import Photograph, fit_to_photograph, read_image, read_labels, read_mask
from data.transforms import mask_iou
from data.voc import VOID, read_ids
from saliency.unsupervised import unsupervised_saliency
from utils.config.cli import ArgumentParser
from utils.report.results import markdown
from utils.run.errors import UserError
from utils.run.parallel import available_cores, in_threads
from utils.run.script import run_script

HEAD = ('masks', 'images', 'mean IoU', 'median IoU', 'without a mask')


def ground_truths(root: Path) -> dict[str, Path]:
    """The file of each ID that has one; of two that of SegmentationClassAug."""
    found = {path.stem: path for folder in ('SegmentationClass', 'SegmentationClassAug')
             for path in sorted((root / folder).glob('*.png'))}
    if not found:
        raise UserError(f'{root} has no ground truth in SegmentationClass or SegmentationClassAug; correct '
                        '--db-root and --data.')
    return found


def folder_of(root: Path, masks: str) -> Path:
    """Of a kind of masks: a name of the data set's, else a folder."""
    for folder in (root / f'saliency_{masks}', Path(masks)):
        if folder.is_dir():
            return folder
    raise UserError(f'--masks {masks} is neither a folder nor the name of a folder saliency_{masks} in {root}; correct '
                    'it.')


def score(truth: Path, mask: Path) -> tuple[float, bool] | None:
    """IoU of a mask with the objects of an image, and whether there is a mask; None: the truth has no object."""
    labels = read_labels(truth).values
    valid = labels != VOID
    objects = valid & (labels > 0)
    if not objects.any():
        return None
    drawn = read_mask(mask) if mask.is_file() else None
    if drawn is None or not drawn.values.any():
        return 0.0, False
    found = fit_to_photograph(drawn, Photograph(labels, 1), mask, stored=False)
    return mask_iou((found > 0) & valid, objects), True


def rows(root: Path, masks: Sequence[str], splits: Sequence[str]) -> list[Sequence[str]]:
    """Lines of the table: of each kind all images, then those of each list."""
    truths = ground_truths(root)
    lists = {'': list(truths), **{f', {split}': [n for n in read_ids(root, split) if n in truths] for split in splits}}
    table: list[Sequence[str]] = [HEAD]
    for kind in masks:
        folder, cores = folder_of(root, kind), available_cores()
        found = in_threads(lambda name, folder=folder: score(truths[name], folder / f'{name}.png'),  # type: ignore[misc]
                           truths, cores, 4 * cores)
        scores = {name: result for name, result in zip(truths, found, strict=True) if result is not None}
        for label, names in lists.items():
            chosen = [scores[name] for name in names if name in scores]
            if not chosen:
                raise UserError(f'no image{label} has a ground truth with an object; choose another --split.')
            iou = [value for value, _ in chosen]
            table.append((f'{kind}{label}', str(len(chosen)), f'{statistics.mean(iou):.3f}',
                          f'{statistics.median(iou):.3f}', str(sum(not there for _, there in chosen))))
    return table


def seconds_an_image(count: int) -> list[float]:
    """Of --method unsupervised on drawn images, on one core."""
    taken = []
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        images = [read_image(path) for path in draw(Path(folder), count)]
        unsupervised_saliency(images[:1])  # warm up
        for image in images:
            start = time.perf_counter()
            unsupervised_saliency([image])
            taken.append(time.perf_counter() - start)
    return taken


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--db-root', type=Path, help='folder that holds data sets')
    parser.add_argument('--data', default='VOCSegmentation', help='data set below --db-root (default: %(default)s)')
    parser.add_argument('--masks', nargs='+', default=[], metavar='NAME_OR_DIR')
    parser.add_argument('--split', nargs='+', default=[], help='lists, of sets/, to score by themselves too')
    parser.add_argument('--time', type=int, metavar='N', help='time --method unsupervised on N drawn images')
    args = parser.parse_args(argv)
    if (args.db_root is None or not args.masks) and (args.time or 0) < 1:
        raise UserError('there is nothing to do; give --db-root and --masks, or --time N of at least 1.')
    if args.db_root is not None and args.masks:
        head, *lines = rows(args.db_root / args.data, args.masks, args.split)
        print(markdown(head, lines), end='')
    if args.time:
        taken = seconds_an_image(args.time)
        print(f'unsupervised, {len(taken)} drawn images of 375 x 500 on one core: median '
              f'{statistics.median(taken):.3f} s, maximum {max(taken):.3f} s')


if __name__ == '__main__':
    run_script(main)
