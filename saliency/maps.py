"""Between images and the arrays of a saliency network: shared by all networks."""
from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to (height, width): by area where it shrinks, else bilinear."""
    shrinks = values.shape[0] > size[0] and values.shape[1] > size[1]
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def network_input(image: np.ndarray, size: tuple[int, int], mean: Sequence[float], scale: Sequence[float],
                  divide_by_maximum: bool = True) -> np.ndarray:
    """Resize and normalise.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: (height, width) of the network's input.
        mean, scale: three numbers each; a value v in 0..1 becomes (v - mean) / scale.
        divide_by_maximum: bring to 0..1 by the maximum of the resized image, else by 255.

    Returns:
        (3, height, width) float32.
    """
    resized = resize(image, size)
    whole = max(int(resized.max()), 1) if divide_by_maximum else 255
    values = (resized.astype(np.float32) / whole - np.asarray(mean, np.float32)) / np.asarray(scale, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def image_map(saliency: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Stretch a network's map (h, w) to 0..1 and resize it to its image: (H, W) float32.

    A constant map has nothing salient: it becomes 0.
    """
    low, high = float(saliency.min()), float(saliency.max())
    stretched = (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)
    return cv2.resize(stretched.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
