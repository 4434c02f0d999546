"""A tiny data set of flat colours and a stand-in for the network, so that figures can be worked out by hand."""
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import models.build
from models.backbones import IMAGENET
from models.weights import Weights

SIDE = 32
CLASSES = ('background', 'red', 'green', 'blue')
RGB = {1: (250, 20, 20), 2: (20, 250, 20), 3: (20, 20, 250)}
Box = tuple[slice, slice]
MIDDLE: Box = (slice(8, 24), slice(8, 24))  # 256 of 1024 pixels


class ColourModel(nn.Module):
    """Its embedding is the image's first channels at 1/8, its saliency score 1 where the image is bright.

    Red and green tell three classes apart; PCA would whiten the noise of a third channel.
    """

    backbone = SimpleNamespace(mean=IMAGENET[0], std=IMAGENET[1])

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.dim = dim

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> 'embedding' (B, dim, H/8, W/8), 'saliency' (B, 1, H/8, W/8)."""
        small = F.avg_pool2d(images, 8)
        bright = (small.amax(1, keepdim=True) > 0.1).float()
        return {'embedding': small[:, :self.dim], 'backbone': small, 'saliency': bright}


def write_image(root: Path, name: str, objects: Sequence[tuple[int, Box]], masks: Sequence[Box] | None = None,
                void: Box | None = None, truth: bool = True) -> None:
    """One image: coloured boxes on black, the ground truth with a void box, and a mask of the boxes ``masks``."""
    image, labels = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for label, box in objects:
        image[box], labels[box] = RGB[label], label
    for box in [box for _, box in objects] if masks is None else masks:
        mask[box] = 255
    if void is not None:
        labels[void] = 255
    for folder in ('images', 'SegmentationClass', 'saliency_supervised_model'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / 'images' / f'{name}.jpg', quality=100, subsampling=0)
    Image.fromarray(mask).save(root / 'saliency_supervised_model' / f'{name}.png')
    if truth:
        Image.fromarray(labels).save(root / 'SegmentationClass' / f'{name}.png')


def write_lists(root: Path, classes: Sequence[str] = CLASSES, **splits: Sequence[str]) -> None:
    """sets/<split>.txt of each split and dataset.yml."""
    (root / 'sets').mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (root / 'sets' / f'{split}.txt').write_text('\n'.join(names) + '\n')
    (root / 'dataset.yml').write_text(yaml.safe_dump({'classes': list(classes)}))


def arguments(task: str, folder: Path, *overrides: str) -> list[str]:
    """Command line of a script of segmentation/ on data sets in ``folder``, with results in folder/results."""
    return ['--config_env', 'configs/demo/env.yml', '--config_exp', f'configs/demo/{task}.yml', '--set',
            f'db_root={folder}', f'root_dir={folder / "results"}', 'num_workers=0', f'val_size={SIDE}',
            'val_db_name=Colours', 'device=cpu', 'val_batch_size=4', *overrides]


def runner(script: ModuleType, task: str, folder: Path, *fixed: str) -> Callable[..., Path]:
    """run(*overrides, flags=(), output='out'): the script with these and the fixed overrides; returns its folder."""
    def run(*overrides: str, flags: Sequence[str] = (), output: str = 'out') -> Path:
        script.main([*arguments(task, folder, f'output_dir={output}', *fixed, *overrides), *flags])
        return folder / 'results' / output
    return run


def results(folder: Path) -> dict:
    return json.loads((folder / 'results.json').read_text())


def plain_backbone(folder: Path, pretraining: str,
                   monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], list[str]]:
    """A random ResNet-18 in the place of ImageNet's or MoCo's weights: its state, and the overrides that take it."""
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().state_dict()
    state = {name: value for name, value in whole.items() if not name.startswith('fc.')}
    monkeypatch.setattr(models.build, 'imagenet_weights', lambda name: Weights('backbone', {'': state}, name))
    torch.save({'state_dict': {f'module.encoder_q.{name}': value for name, value in whole.items()}},
               folder / 'moco.pth')
    return state, ['features=backbone', f'pretraining={pretraining}', f'moco_state_dict={folder / "moco.pth"}']


def slow_confusion(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], rows: int,
                   columns: int) -> np.ndarray:
    """Counts of valid pixels by (true, predicted), one pixel after another."""
    counts = np.zeros((rows, columns), np.int64)
    for truth, prediction in zip(truths, predictions, strict=True):
        for y in range(truth.shape[0]):
            for x in range(truth.shape[1]):
                if truth[y, x] != 255:
                    counts[truth[y, x], prediction[y, x]] += 1
    return counts


def random_blobs(draw: np.random.Generator, count: int, classes: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ground truths with void, and masks of several parts, of images of different sizes."""
    truths, masks = [], []
    for _ in range(count):
        height, width = draw.integers(20, 40, 2)
        truths.append(np.where(draw.random((height, width)) < 0.05, 255,
                               np.kron(draw.integers(0, classes, (4, 4)), np.ones((10, 10)))[:height, :width])
                      .astype(np.uint8))
        masks.append(np.kron(draw.random((8, 8)) < 0.35, np.ones((5, 5)))[:height, :width].astype(np.uint8))
    return truths, masks


def loader_of(truths: Sequence[np.ndarray], masks: Sequence[np.ndarray], draw: np.random.Generator) -> list[dict]:
    """Batches of two, as the evaluation loader gives them, of random images."""
    images = torch.from_numpy(draw.standard_normal((len(truths), 3, SIDE, SIDE)).astype(np.float32))
    return [{'image': images[i:i + 2], 'semseg': list(truths[i:i + 2]), 'sal': list(masks[i:i + 2]),
             'shape': [truth.shape for truth in truths[i:i + 2]]} for i in range(0, len(truths), 2)]
