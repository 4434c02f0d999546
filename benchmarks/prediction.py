"""What segmentation/predict.py costs beside the network alone.

    python benchmarks/prediction.py --images 32 --backbone resnet50 --size 512 --device cpu

Photographs of VOC's size are drawn by code and stored as JPEG. The network alone runs over the same batches,
prepared beforehand; predict.py reads, prepares, predicts, draws and writes. The two take turns; shown are
the medians of the rounds. On a CPU both share its cores, so that CPU seconds say what is added whatever else
the machine does.
"""
from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch
from PIL import Image

from data.files import read_image
from data.frames import open_frames
from models.segmentation import LinearSegmentationModel
from segmentation.predict import segment
from segmentation.segmenter import LinearSegmenter
from utils.arguments import ArgumentParser
from utils.errors import run_script
from utils.parallel import available_cores
from utils.runtime import pick_device

HEIGHT, WIDTH, CLASSES, BATCH = 375, 500, 21, 8


def draw(folder: Path, images: int) -> list[Path]:
    """Smooth colours with a little noise, as photographs compress."""
    random = np.random.default_rng(0)
    paths = [folder / f'{i:04}.jpg' for i in range(images)]
    for path in paths:
        smooth = cv2.resize(random.normal(128, 50, (12, 16, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + random.normal(0, 8, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=int, default=32, help='images to draw and predict')
    parser.add_argument('--backbone', default='resnet50', help='of the network')
    parser.add_argument('--size', type=int, default=512, help="side of the network's input, pixels")
    parser.add_argument('--rounds', type=int, default=3, help='rounds that both take in turn')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where the network runs')
    args = parser.parse_args(argv)
    segmenter = LinearSegmenter(LinearSegmentationModel(args.backbone, CLASSES).eval(),
                                tuple(map(str, range(CLASSES))), args.size, pick_device(args.device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'images').mkdir()
        tensors = torch.stack([segmenter.prepare(read_image(path)) for path in draw(folder / 'images', args.images)])

        def alone() -> None:
            for batch in tensors.split(BATCH):
                segmenter.run(batch)

        def whole() -> None:
            frames = open_frames(folder / 'images').frames
            assert not any(why for _, why in segment(segmenter, frames, folder, BATCH, available_cores(), None))

        segmenter.run(tensors[:BATCH])  # warm up
        rounds = np.median([[timed(alone), timed(whole)] for _ in range(args.rounds)], 0)
    print(f'{args.images} images of {WIDTH} x {HEIGHT}, {args.backbone} at {args.size} px, {segmenter.device}, '
          f'{available_cores()} cores')
    for name, (clock, cpu) in zip(('network alone', 'predict.py'), rounds, strict=True):
        print(f'{name:14} {1000 * clock / args.images:8.1f} ms an image, {1000 * cpu / args.images:8.1f} ms of the CPU')
    print(f'predict.py / network alone: {rounds[1][0] / rounds[0][0]:.3f} by the clock, '
          f'{rounds[1][1] / rounds[0][1]:.3f} of the CPU')


if __name__ == '__main__':
    run_script(main)
