"""From an image to the input of a saliency network, and from its map to an object mask."""
from collections.abc import Sequence

import cv2
import numpy as np

from data.transforms import normalize, split_mask

SMALLEST = 0.01  # segment of a mask, as a share of the image
SURE = 0.999  # probability at which a map that is 0 or 1 enters the CRF


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to (height, width): by area where it shrinks, else bilinear."""
    shrinks = values.shape[0] > size[0] and values.shape[1] > size[1]
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def network_input(image: np.ndarray, size: tuple[int, int], mean: Sequence[float], scale: Sequence[float],
                  divide_by_maximum: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, height, width) float32: resized to ``size``, (height, width), and normalised.

    A value v in 0..1 becomes (v - mean) / scale, three numbers each. 1 is the maximum of the resized image, or 255.
    """
    resized = resize(image, size)
    whole = max(int(resized.max()), 1) if divide_by_maximum else 255
    return normalize(resized, mean, scale, whole).numpy()


def stretch(values: np.ndarray) -> np.ndarray:
    """Stretch to 0..1; equal values, in which nothing is salient, become 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high - low > 1e-12 else np.zeros_like(values)


def image_map(saliency: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Stretch a network's map (h, w) to 0..1 and resize it to its image: (H, W) float32."""
    return cv2.resize(stretch(saliency.astype(np.float32)), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def crf_logits(saliency: np.ndarray) -> np.ndarray:
    """What ``models.crf.dense_crf`` takes: (H, W) probabilities of the object -> (2, H, W) float32."""
    object_probability = np.clip(saliency, 1 - SURE, SURE)
    logits = np.log(object_probability / (1 - object_probability))
    return np.stack([np.zeros_like(logits), logits]).astype(np.float32)


def binarise(saliency: np.ndarray) -> np.ndarray | None:
    """Threshold a map (H, W) in 0..1 at 0.5 and drop the connected segments (8 neighbours) below 1% of the image.

    (H, W) bool, or None when nothing is left: the image is to be left out (ICCV 2021, supplementary material).
    """
    segments, count = split_mask((saliency > 0.5).astype(np.uint8), SMALLEST)
    return segments > 0 if count else None
