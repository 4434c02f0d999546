"""The deterministic inputs behind tests/goldens/*.json.

Each array comes from NumPy's PCG64 generator, seeded with the CRC-32 of a name: weights, images and
masks can be rebuilt anywhere, in any order, from their names alone.
"""
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / 'goldens' / 'goldens.json').read_text())


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of a state-dict entry: He-normal convolutions, BatchNorm scales and variances near 1."""
    draw, kind = generator(name), name.split('.')[-1]
    if kind == 'num_batches_tracked':
        return np.zeros(shape, np.int64)
    if len(shape) == 4:
        values = draw.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif kind in ('running_var', 'weight'):
        values = draw.uniform(0.8, 1.2, shape)
    else:
        values = draw.standard_normal(shape) * 0.1
    return values.astype(np.float32)


def images(name: str, n: int, size: int) -> np.ndarray:
    """(n, 3, size, size) float32: blocks of 8 pixels plus noise."""
    draw = generator('images/' + name)
    blocks = draw.standard_normal((n, 3, size // 8, size // 8)).repeat(8, axis=2).repeat(8, axis=3)
    return (blocks + 0.3 * draw.standard_normal((n, 3, size, size))).astype(np.float32)


def masks(name: str, n: int, size: int) -> np.ndarray:
    """(n, size, size) int64 in {0, 1}: a rectangle an image."""
    draw, out = generator('masks/' + name), np.zeros((n, size, size), np.int64)
    for mask in out:
        height, width = draw.integers(size // 4, size // 2, 2)
        top, left = draw.integers(0, size - height), draw.integers(0, size - width)
        mask[top:top + height, left:left + width] = 1
    return out


def labels(name: str, n: int, size: int, classes: int = 21) -> np.ndarray:
    """(n, size, size) int64: blocks of classes, one row void (255)."""
    draw = generator('labels/' + name)
    out = draw.integers(0, classes, (n, size // 8, size // 8)).repeat(8, axis=1).repeat(8, axis=2)
    out[:, size // 2] = 255
    return out


def unit_columns(name: str, dim: int, count: int) -> np.ndarray:
    """(dim, count) float32 with columns of unit length."""
    bank = generator('queue/' + name).standard_normal((dim, count)).astype(np.float32)
    return bank / np.linalg.norm(bank, axis=0, keepdims=True)


def photo(name: str, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: a reddish ellipse on blue, with noise."""
    draw = generator('photo/' + name)
    y, x = np.mgrid[:height, :width]
    ellipse = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (width / 3)) ** 2 < 1
    colour = np.where(ellipse[..., None], (200, 80, 60), (60, 120, 180))
    return (colour + draw.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    """Floats to ``dtype``, integers as they are."""
    out = torch.from_numpy(np.ascontiguousarray(array))
    return out.to(dtype) if out.is_floating_point() else out


def fill(module: nn.Module) -> nn.Module:
    """Give every entry of a module's state dict the value of its name."""
    module.load_state_dict({name: torch.from_numpy(np.asarray(weight(name, tuple(value.shape))))
                            for name, value in module.state_dict().items()})
    return module
