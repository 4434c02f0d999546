"""The deterministic inputs behind tests/goldens/maskdistill.json, rebuilt from their names alone."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.golden_inputs import generator

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / 'goldens' / 'maskdistill.json').read_text())
Objects = list[list[int]]


def vit_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of a state-dict entry of a vision transformer, float32."""
    draw, is_weight = generator('vit/' + name), name.endswith('.weight')
    if len(shape) == 4:
        return (draw.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if len(shape) == 2 and is_weight:
        return (draw.standard_normal(shape) * np.sqrt(0.5 / shape[1])).astype(np.float32)
    if is_weight:
        return draw.uniform(0.8, 1.2, shape).astype(np.float32)
    return (draw.standard_normal(shape) * {'cls_token': 0.5, 'pos_embed': 0.1}.get(name, 0.02)).astype(np.float32)


def fill(network: nn.Module) -> nn.Module:
    """A network with the weights of its names."""
    network.load_state_dict({name: torch.from_numpy(vit_weight(name, tuple(value.shape)))
                             for name, value in network.state_dict().items()})
    return network


def image(name: str, height: int, width: int) -> np.ndarray:
    """(3, height, width) float32, normalised: blocks of 16 pixels plus noise."""
    draw = generator('image/' + name)
    blocks = draw.standard_normal((3, -(-height // 16), -(-width // 16))).repeat(16, axis=1).repeat(16, axis=2)
    return (blocks[:, :height, :width] + 0.3 * draw.standard_normal((3, height, width))).astype(np.float32)


def photo(name: str, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: a textured ellipse on a textured ground."""
    draw = generator('photo/' + name)
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 / (height / 3) ** 2 + (x - width / 2) ** 2 / (width / 3) ** 2 < 1
    base = np.where(inside[..., None], [200, 80, 60], [60, 120, 180])
    return np.clip(base + draw.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def normalised(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (3, height, width) float64."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((picture / 255.0 - mean) / std).transpose(2, 0, 1)


def queries_keys(name: str, heads: int, rows: int, cols: int, dim: int, objects: Objects, pull: float = 1.0,
                 offset: float = 0.0, noise: float = 0.6, kind: str = 'signed') -> tuple[np.ndarray, np.ndarray]:
    """(1, heads, 1 + rows * cols, dim) float32 each: an object's patches share a direction, others the opposite."""
    draw = generator('qk/' + name)
    queries, keys = draw.standard_normal((2, 1, heads, rows * cols + 1, dim)) * noise
    if kind == 'random':
        return queries.astype(np.float32), keys.astype(np.float32)
    direction = draw.standard_normal((heads, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    strength = -np.ones((rows, cols))
    for number, (y, x, height, width) in enumerate(objects):
        strength[y:y + height, x:x + width] = 1 + 0.25 * number
    keys[0, :, 1:] += strength.reshape(1, -1, 1) * direction[:, None]
    queries[0, :, 0] = pull * direction + 0.05 * draw.standard_normal((heads, dim))
    if offset:
        queries[0, :, 0, -1] += offset
        keys[0, :, 1:, -1] = 1.0
    return queries.astype(np.float32), keys.astype(np.float32)


def mask(name: str, height: int, width: int, shapes: int = 1, holes: int = 0) -> np.ndarray:
    """(height, width) bool: rectangles and ellipses, some cut out again."""
    draw, out = generator('mask/' + name), np.zeros((height, width), bool)
    y, x = np.mgrid[:height, :width]
    for number in range(shapes + holes):
        h, w = draw.integers(height // 6, height // 2), draw.integers(width // 6, width // 2)
        top, left = draw.integers(0, height - h), draw.integers(0, width - w)
        if draw.integers(0, 2):
            inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        else:
            inside = (2 * (y - top) - h) ** 2 * w ** 2 + (2 * (x - left) - w) ** 2 * h ** 2 < (h * w) ** 2
        out[inside] = number < shapes
    return out


def rows_of_bits(bits: np.ndarray) -> list[str]:
    return [''.join('1' if value else '0' for value in row) for row in np.asarray(bits)]


def features(name: str, classes: int, per_class: int, dim: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of masks (n, dim) float32, components of unlike scales, and their classes (n,) int64, shuffled."""
    centres = np.stack([generator(f'centre/{name}/{c}').standard_normal(dim) for c in range(classes)])
    draw = generator('features/' + name)
    order = draw.permutation(np.repeat(np.arange(classes), per_class))
    values = centres[order] + spread * draw.standard_normal((len(order), dim))
    return (values * np.exp(0.5 * draw.standard_normal(dim))).astype(np.float32), order.astype(np.int64)


def octagon(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """The polygons of a mask: one, in a box."""
    dx, dy, right, low = width // 4, height // 4, x + width, y + height
    corners = [(x + dx, y), (right - dx, y), (right, y + dy), (right, low - dy), (right - dx, low), (x + dx, low),
               (x, low - dy), (x, y + dy)]
    return [[float(value) for corner in corners for value in corner]]


def detections(name: str, images: int, per_image: int, height: int, width: int, classes: int) -> list[dict[str, Any]]:
    """A detector's results, the best of each image first: octagons; none of image 1 reaches a score of 0.9."""
    draw, out = generator('detections/' + name), []
    for image_id in range(images):
        scores = np.sort(draw.uniform(0.3, 1.0, per_image))[::-1]
        scores[:per_image // 2] = np.sort(draw.uniform(0.9, 1.0, per_image // 2))[::-1]
        scores = scores * 0.85 if image_id == 1 else scores
        for score in scores:
            h, w = int(draw.integers(height // 4, height // 2)), int(draw.integers(width // 4, width // 2))
            y, x = int(draw.integers(0, height - h)), int(draw.integers(0, width - w))
            y = 0 if image_id == 2 and score == scores[0] else y
            out.append({'image_id': image_id, 'category_id': int(draw.integers(0, classes)),
                        'score': round(float(score), 4), 'bbox': [x, y, w, h], 'segmentation': octagon(x, y, w, h)})
    return out


def ground_truth(name: str, found: list[dict[str, Any]], per_image: int, height: int, width: int,
                 classes: int) -> list[dict[str, Any]]:
    """Annotations: the first detections of each image, moved and stretched a little, one of four in another class."""
    draw, out = generator('ground truth/' + name), []
    for image_id in sorted({entry['image_id'] for entry in found}):
        for entry in [entry for entry in found if entry['image_id'] == image_id][:per_image]:
            x, y, w, h = entry['bbox']
            x = int(np.clip(x + draw.uniform(-0.15, 0.15) * w, 0, width - 8))
            y = int(np.clip(y + draw.uniform(-0.15, 0.15) * h, 0, height - 8))
            w = int(np.clip(w * draw.uniform(0.85, 1.15), 6, width - x))
            h = int(np.clip(h * draw.uniform(0.85, 1.15), 6, height - y))
            category = entry['category_id'] if draw.integers(0, 4) else int(draw.integers(0, classes))
            out.append({'id': len(out) + 1, 'image_id': image_id, 'category_id': category, 'iscrowd': 0, 'area': w * h,
                        'bbox': [x, y, w, h], 'segmentation': octagon(x, y, w, h)})
    return out


def colour_photo(name: str, colour: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 of one colour, that of a number, with noise."""
    base = generator(f'colour/{colour}').integers(20, 236, 3)
    return np.clip(base + generator('colour photo/' + name).normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
