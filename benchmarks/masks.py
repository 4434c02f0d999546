"""How good masks are: their IoU with the union of all labelled objects of an image; and what unsupervised ones cost.

    python benchmarks/masks.py --db-root DIR --masks unsupervised_model FOLDER --split val
    python benchmarks/masks.py --time 20

DIR/VOCSegmentation, or the data set --data of DIR, is in the VOC layout. A kind of masks is the NAME of its folder
saliency_NAME, or a folder of masks under the names of the images. Void pixels do not count; an image without a mask, or
with an empty one, counts as 0. Shown are all images whose ground truth has an object, and those of each list --split.
--time N masks N drawn images of 375x500 on one core, by --method unsupervised and by --method transformer with a random
ViT-S/16, whose input is 640x864: the time in its network is told from the time in all else.
"""
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import torch
from threadpoolctl import threadpool_limits

from benchmarks.prediction import draw
from data.images import Photograph, fit_to_photograph, read_image, read_labels, read_mask
from data.label_maps import VOID
from data.transforms import mask_iou
from data.voc import read_ids
from models.transformer import load_transformer
from saliency.sources import MaskSource
from saliency.transformer import TransformerSaliency
from saliency.unsupervised import unsupervised_saliency
from utils.config.cli import ArgumentParser
from utils.report.results import markdown
from utils.run.devices import Precision
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


def seconds_an_image(count: int) -> dict[str, tuple[list[float], list[float]]]:
    """Of each way to make masks of drawn images, on one core: in the network, and in all else."""
    network = load_transformer('timm/vit_small_patch16_224', None)
    ways: dict[str, MaskSource] = {
        'unsupervised': unsupervised_saliency,
        **{f'transformer, {most} an image at most': TransformerSaliency(network, Precision(torch.device('cpu')),
                                                                        masks_per_image=most) for most in (1, 3)}}
    clock: list[float] = []  # when the network began and ended
    network.register_forward_pre_hook(lambda *_: clock.append(time.perf_counter()))
    network.register_forward_hook(lambda *_: clock.append(time.perf_counter()))
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        images = [read_image(path) for path in draw(Path(folder), count)]
        for name, way in ways.items():
            way(images[:1])  # warm up
            for image in images:
                clock.clear()
                start = time.perf_counter()
                way([image])
                whole, inside = time.perf_counter() - start, sum(clock[1::2]) - sum(clock[::2])
                seconds[name][0].append(inside)
                seconds[name][1].append(whole - inside)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--db-root', type=Path, help='folder that holds data sets')
    parser.add_argument('--data', default='VOCSegmentation', help='data set below --db-root (default: %(default)s)')
    parser.add_argument('--masks', nargs='+', default=[], metavar='NAME_OR_DIR')
    parser.add_argument('--split', nargs='+', default=[], help='lists, of sets/, to score by themselves too')
    parser.add_argument('--time', type=int, metavar='N', help='time two methods on N drawn images')
    args = parser.parse_args(argv)
    if (args.db_root is None or not args.masks) and (args.time or 0) < 1:
        raise UserError('there is nothing to do; give --db-root and --masks, or --time N of at least 1.')
    if args.db_root is not None and args.masks:
        head, *lines = rows(args.db_root / args.data, args.masks, args.split)
        print(markdown(head, lines), end='')
    if args.time:
        print(f'{args.time} drawn images of 375 x 500 on one core, seconds an image (median, maximum):')
        table = [[name, *(f'{statistics.median(part):.3f}, {max(part):.3f}' if any(part) else '-' for part in parts)]
                 for name, parts in seconds_an_image(args.time).items()]
        print(markdown(('masks', 'network', 'all else'), table), end='')


if __name__ == '__main__':
    run_script(main)
