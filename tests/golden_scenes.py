"""The deterministic inputs behind tests/goldens/transforms.json.

As in ``golden_inputs`` a name gives an array. What is compared are checksums of bytes, so that only integers, uniform
draws and + - * / make them, which every machine computes alike; the order of the draws of each array is fixed.
"""
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_inputs import generator

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / 'goldens' / 'transforms.json').read_text())
Array = np.ndarray


def grid(height: int, width: int) -> tuple[Array, Array]:
    """(height, 1) and (1, width): where the pixel centres lie along each side, 0..1."""
    return (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width


def scene(name: str, height: int, width: int) -> Array:
    """(height, width, 3) uint8: bumps, half planes, boxes, stripes of black and white, and noise.

    Its hard edges between saturated areas are where a cubic kernel overshoots most.
    """
    draw = generator('scene/' + name)
    y, x = grid(height, width)
    canvas = np.zeros((height, width, 3)) + draw.integers(40, 216, 3)
    for _ in range(7):
        centre_y, centre_x, radius_y, radius_x = draw.random(4) * [1, 1, 0.3, 0.3] + [0, 0, 0.1, 0.1]
        bump = 1 - ((y - centre_y) / radius_y) ** 2 - ((x - centre_x) / radius_x) ** 2
        canvas += bump.clip(0)[..., None] * draw.integers(-150, 151, 3)
    for _ in range(3):
        a, b, c = draw.random(3) * 2 - 1
        canvas[a * (y - 0.5) + b * (x - 0.5) > c / 4] += draw.integers(-60, 61, 3)
    for _ in range(4):
        top, left = draw.integers(0, (height * 3 // 4, width * 3 // 4))
        tall, wide = draw.integers((height // 12, width // 12), (height // 4, width // 4))
        canvas[top:top + tall, left:left + wide] = 85 * draw.integers(0, 4, 3)
    top, left = draw.integers(0, (height // 2, width // 2))
    white = np.arange(width) // draw.integers(2, 6) % 2
    columns = slice(left, left + width // 3)
    canvas[top:top + height // 4, columns] = 255 * white[None, columns, None]
    canvas += draw.integers(-8, 9, canvas.shape)
    return np.floor(canvas).clip(0, 255).astype(np.uint8)


def ellipses(name: str, count: int) -> Array:
    """(count, 4): centre (y, x) and half axes (y, x) of each, in shares of the image."""
    return generator('ellipses/' + name).random((count, 4)) * [0.5, 0.5, 0.2, 0.2] + [0.25, 0.25, 0.12, 0.12]


def inside(ellipse: Array, height: int, width: int, factor: float = 1.0) -> Array:
    """(height, width) bool: the pixels of an ellipse, its half axes times ``factor``."""
    y, x = grid(height, width)
    centre_y, centre_x, axis_y, axis_x = ellipse
    return ((y - centre_y) / (axis_y * factor)) ** 2 + ((x - centre_x) / (axis_x * factor)) ** 2 <= 1


def label_map(name: str, height: int, width: int, classes: Sequence[int]) -> Array:
    """(height, width) uint8: an ellipse a class, the later ones in front, each with a rim of 255, on 0."""
    labels = np.zeros((height, width), np.uint8)
    for label, ellipse in zip(classes, ellipses(name, len(classes)), strict=True):
        labels[inside(ellipse, height, width, 1.08)] = 255
        labels[inside(ellipse, height, width)] = label
    return labels


def object_mask(name: str, height: int, width: int, objects: int = 1, shift: float = 0.03) -> Array:
    """(height, width) uint8 in {0, 1}: the first ellipses of the label map of this name, ``shift`` down and right."""
    mask = np.zeros((height, width), np.uint8)
    for ellipse in ellipses(name, objects):
        mask[inside(ellipse + [shift, shift, 0, 0], height, width)] = 1
    return mask


def halves(height: int, width: int, left: int, right: int) -> Array:
    """(height, width) uint8: the left half of one class, the right half of another."""
    return np.where(np.arange(width) < width // 2, left, right).astype(np.uint8)[None].repeat(height, 0)


def vector(name: str, dim: int) -> Array:
    """(dim,) float64 in -1..1."""
    return generator('vector/' + name).random(dim) * 2 - 1


def logits(name: str, classes: int, size: int, objects: Sequence[int]) -> Array:
    """(classes, size, size) float32: noise in 0..1, and 1.5 more for the class that the label map shows."""
    scores = generator('logits/' + name).random((classes, size, size))
    shown = label_map(name, size, size, objects)
    for label in {0, *objects}:
        scores[label] += 1.5 * (shown == label)
    return scores.astype(np.float32)


def sha(array: Array) -> str:
    """SHA-256 of the bytes of an array, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def sample(array: Array, name: str) -> Array:
    """20 of the array's values, in C order, at places that the name fixes."""
    return array.ravel()[generator('sample/' + name).integers(0, array.size, 20)]


def blocks(image: Array) -> Array:
    """(8, 8): the means of equal tiles of a square (S, S, 3) image."""
    side = len(image) // 8
    return image.reshape(8, side, 8, side, 3).mean((1, 3, 4))
