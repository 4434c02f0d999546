"""What segmentation/predict.py costs beside the network alone.

    python benchmarks/prediction.py --images 32 --model linear --backbone resnet50 --size 512 --device cpu

Photographs of VOC's size are drawn by code and stored as JPEG. The network alone runs over the same batches,
prepared beforehand; predict.py reads, prepares, predicts, draws and writes. The two take turns; shown are
the medians of the rounds. On a CPU both share its cores, so that CPU seconds say what is added whatever else
the machine does. --model clusters is the segmenter of kmeans.py, whose objects count as work beside the network.
"""
import argparse
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

from data.frames import open_frames
from data.images import read_image
from data.transforms import EvaluationTransform
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from segmentation.cluster_model import ClusterModel
from segmentation.clustering import Whitening
from segmentation.predict import segment
from segmentation.segmenter import Segmenter
from utils.config.cli import ArgumentParser
from utils.config.schema import DEVICES
from utils.run.devices import pick_device, tf32, to_device
from utils.run.parallel import available_cores
from utils.run.script import run_script

HEIGHT, WIDTH, CLASSES, NDIM, BATCH = 375, 500, 21, 32, 8


def draw(folder: Path, images: int) -> list[Path]:
    """Smooth colours with a little noise, as photographs compress."""
    random = np.random.default_rng(0)
    paths = [folder / f'{i:04}.jpg' for i in range(images)]
    for path in paths:
        smooth = cv2.resize(random.normal(128, 50, (12, 16, 3)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + random.normal(0, 8, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def clusters(image: np.ndarray, backbone: str, size: int, device: torch.device) -> Segmenter:
    """Random centres, and a random network that sees objects in half of ``image``."""
    model = ContrastiveSegmentationModel(backbone, NDIM).eval()
    with torch.inference_mode():
        prepare = EvaluationTransform(size, model.backbone.mean, model.backbone.std)
        features = model.decoder(model.backbone(prepare({'image': image})['image'][None]))
    if model.classification_head is not None:
        model.classification_head.weight.data.fill_(0.5 / float(features.sum(1).median()))
    centres = np.random.default_rng(0).standard_normal((CLASSES - 1, NDIM))
    found = ClusterModel(Whitening(np.zeros(NDIM), np.eye(NDIM)), centres, np.arange(CLASSES),
                         tuple(map(str, range(CLASSES))), {'features': 'embedding', 'min_component': None})
    return Segmenter(model, found.classes or (), size, device, found)


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(args: argparse.Namespace, device: torch.device) -> np.ndarray:
    """Seconds by the clock and of the CPU, of the network alone and of predict.py: medians (2, 2) of the rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'images').mkdir()
        images = [read_image(path) for path in draw(folder / 'images', args.images)]
        if args.model == 'clusters':
            segmenter = clusters(images[0], args.backbone, args.size, device)
            network = segmenter.model.maps
        else:
            model = LinearSegmentationModel(args.backbone, CLASSES).eval()
            segmenter = Segmenter(model, tuple(map(str, range(CLASSES))), args.size, device)
            network = model
        tensors = torch.stack([segmenter.prepare(image) for image in images])

        @torch.inference_mode()
        @tf32(False)  # as the segmenter runs it
        def alone() -> None:
            for batch in tensors.split(BATCH):
                network(to_device(batch, device))
            if device.type == 'cuda':
                torch.cuda.synchronize()

        def whole() -> None:
            *_, frames = open_frames(folder / 'images')
            assert not any(why for _, why in segment(segmenter, frames, folder, BATCH, available_cores(), None))

        segmenter.run(tensors[:BATCH])  # warm up
        return np.median([[timed(alone), timed(whole)] for _ in range(args.rounds)], 0)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=int, default=32, help='images to draw and predict')
    parser.add_argument('--model', choices=('linear', 'clusters'), default='linear', help='what labels the pixels')
    parser.add_argument('--backbone', default='resnet50', help='of the network')
    parser.add_argument('--size', type=int, default=512, help="side of the network's input, pixels")
    parser.add_argument('--rounds', type=int, default=3, help='rounds that both take in turn')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where the network runs')
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    rounds = measure(args, device)
    print(f'{args.images} images of {WIDTH} x {HEIGHT}, {args.model}, {args.backbone} at {args.size} px, '
          f'{device}, {available_cores()} cores')
    for name, (clock, cpu) in zip(('network alone', 'predict.py'), rounds, strict=True):
        print(f'{name:14} {1000 * clock / args.images:8.1f} ms an image, {1000 * cpu / args.images:8.1f} ms of the CPU')
    print(f'predict.py / network alone: {rounds[1][0] / rounds[0][0]:.3f} by the clock, '
          f'{rounds[1][1] / rounds[0][1]:.3f} of the CPU')


if __name__ == '__main__':
    run_script(main)
