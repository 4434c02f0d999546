"""Pairs of views a second on one core, from image files to tensors, beside the reference, which normalises them too.

    python benchmarks/input_pipeline.py --images 60 --size 224 --rounds 7

Without --db-root the images are drawn by code, longest side 500 px. The reference reads by Pillow, makes a
full copy of the sample for each view and transforms it by torchvision, on Pillow images. All draw the same views
of the same images, which is checked, and take turns in one process on one thread. Times are CPU times of the
process; the table shows medians of the rounds.
"""
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.views import DRAWS, MAX_FOREGROUND, MIN_FOREGROUND, ContrastivePair, ContrastiveView
from data.voc import VOCSegmentation
from experiments.shapes import generate
from models.backbones import IMAGENET
from utils.config.cli import ArgumentParser
from utils.run.script import run_script

DRAWN_SIZE = 500
JITTER = (0.4, 0.4, 0.4, 0.1)
Item = tuple[int, int]


class PlainPairs:
    """Pairs as ``ContrastivePair`` gives them, with Pillow, two full copies and torchvision's transforms."""

    def __init__(self, base: VOCSegmentation, size: int) -> None:
        self.base = base
        self.view = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2), v2.RandomHorizontalFlip(0.5), v2.ToImage(),
            v2.ToDtype({tv_tensors.Image: torch.float32, 'others': None}, scale=True), v2.Normalize(*IMAGENET)])

    def read(self, index: int) -> dict[str, Any]:
        name = self.base.ids[index]
        image = Image.open(self.base.image_path(index)).convert('RGB')
        mask = np.array(Image.open(self.base.masks / f'{name}.png').convert('L')) > 127
        return {'id': name, 'image': image, 'sal': tv_tensors.Mask(torch.from_numpy(mask))}

    def __getitem__(self, item: Item) -> dict[str, Any]:
        index, seed = item
        torch.default_generator.manual_seed(seed)
        while True:
            sample = self.read(index)
            for _ in range(DRAWS if sample['sal'].any() else 0):
                copies = copy.deepcopy(sample), copy.deepcopy(sample)
                (query, query_mask), (key, key_mask) = (self.view(one['image'], one['sal']) for one in copies)
                if all(MIN_FOREGROUND < mask.float().mean() < MAX_FOREGROUND for mask in (query_mask, key_mask)):
                    return {'id': sample['id'], 'query': query, 'key': key, 'query_mask': query_mask.to(torch.uint8),
                            'key_mask': key_mask.to(torch.uint8)}
            index = int(torch.randint(len(self.base), ()))


def check_alike(plain: dict[str, Any], ours: dict[str, Any]) -> None:
    """Make sure that two pairs show the same.

    Pillow's hue and blends differ by a few grey levels; torchvision reads a mask at the corners of pixels.
    """
    def difference(name: str) -> float:
        found = ours[name].float()
        if found.ndim == 3:
            found = v2.functional.normalize(found / 255, *IMAGENET)
        return float((plain[name].as_subclass(Tensor).float() - found).abs().mean())

    assert plain['id'] == ours['id']
    assert max(difference('query'), difference('key')) < 0.1, f'views of {ours["id"]}'
    assert max(difference('query_mask'), difference('key_mask')) < 0.05, f'masks of {ours["id"]}'


def rates(ways: dict[str, Callable[[Item], Any]], items: Sequence[Item], rounds: int) -> dict[str, list[float]]:
    """Items a second of CPU time of each way, in each round."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, get in ways.items():
            start = time.process_time()
            for item in items:
                get(item)
            measured[name].append(len(items) / (time.process_time() - start))
    return measured


def measure(root: Path, split: str, saliency: str, images: int, size: int, rounds: int) -> None:
    """Print the table for the first images of a split."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    base = VOCSegmentation(root, split, saliency=saliency, skip_without_saliency=True)
    base.ids = base.ids[:images]
    view = ContrastiveView(size, jitter=JITTER)
    plain, ours = PlainPairs(base, size), base.transformed(ContrastivePair(base, view))
    items = [(index, 1000 + index) for index in range(len(base))]
    for item in items:
        check_alike(plain[item], ours[item])

    sides = [max(base.load(index)['image'].shape) for index, _ in items]
    print(f'{len(items)} images of {root.name}, longest side {statistics.median(sides):.0f} px, pairs at {size} px, '
          f'one core; torch {torch.__version__}, OpenCV {cv2.__version__}, median of {rounds} rounds')
    reading = rates({'plain': lambda item: plain.read(item[0]), 'ours': lambda item: base.load(item[0])}, items, rounds)
    pairs = rates({'plain': plain.__getitem__, 'ours': ours.__getitem__}, items, rounds)
    print(f'| {"a second and core":<22} | {"reference":>9} | {"ours":>12} | {"ratio":>5} |')
    print('|---|---:|---:|---:|')
    for what, slow, fast in (('images and masks read', reading['plain'], reading['ours']),
                             ('pairs', pairs['plain'], pairs['ours'])):
        ratio = statistics.median(b / a for a, b in zip(slow, fast, strict=True))
        print(f'| {what:<22} | {statistics.median(slow):9.1f} | {statistics.median(fast):12.1f} | {ratio:5.2f} |')


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--db-root', type=Path, help='folder that holds the data set; default: draw one')
    parser.add_argument('--db-name', default='VOCSegmentation', help='the data set in it')
    parser.add_argument('--split', default='trainaug', help='of the data set')
    parser.add_argument('--saliency', default='supervised_model', help='its masks: saliency_<name>')
    parser.add_argument('--images', type=int, default=60, help='images, the first of the split')
    parser.add_argument('--size', type=int, default=224, help='side of the views, pixels')
    parser.add_argument('--rounds', type=int, default=7, help='rounds that all ways take in turn')
    args = parser.parse_args(argv)
    options = args.split, args.saliency, args.images, args.size, args.rounds
    if args.db_root is not None:
        measure(args.db_root / args.db_name, *options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(generate(Path(folder) / 'drawn', args.images, 1, DRAWN_SIZE), *options)


if __name__ == '__main__':
    run_script(main)
