"""A contact sheet of segment retrieval: objects beside their nearest neighbours in the memory."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.images import read_image
from data.transforms import resize_mask
from segmentation.feature_index import MemoryBank
from segmentation.objects import EmbeddedSplit
from utils.report.pictures import montage, outline, panel

SIDE = 128  # of a picture, pixels


def evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of the indices, spread over all of them."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)]


def fit(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (SIDE, SIDE, 3): the whole image in the middle of a white square."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    y, x = (SIDE - height) // 2, (SIDE - width) // 2
    square[y:y + height, x:x + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return square


def crop_object(image: np.ndarray, mask: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """The (H, W, 3) image around a (H, W) mask that is not empty, with the mask's outline."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    dx, dy = round(margin * width) + 1, round(margin * height) + 1
    window = slice(max(0, y - dy), y + height + dy), slice(max(0, x - dx), x + width + dx)
    crop, inner = np.ascontiguousarray(image[window]), mask[window].astype(np.uint8)
    scale = SIDE / max(inner.shape)  # enlarged first, so that the line is thin
    size = max(1, round(inner.shape[1] * scale)), max(1, round(inner.shape[0] * scale))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
    return outline(crop, resize_mask(inner, *size))


def neighbour_sheet(split: EmbeddedSplit, shown: np.ndarray, predicted: np.ndarray, images: Sequence[Path],
                    bank: MemoryBank, memory_images: Path, k: int, own: np.ndarray | None = None) -> Image.Image:
    """A row an object: its crop with its true and its predicted class, then the images of its k neighbours.

    Args:
        split: objects with their masks kept.
        shown: (R,) indices of the objects to draw, at least one, with masks that are not empty.
        predicted: (N,) class of each object.
        images: the image file of each of the split's images.
        memory_images: folder that holds ID.jpg for the IDs of the memory.
        own: (N,) ID of each object's image, whose entries in the memory are passed over; None: none is.

    Raises:
        UserError: an image is missing.
    """
    strips = []
    found = bank.search(split.prototypes[shown], k, None if own is None else own[shown])
    for index, near in zip(shown, found, strict=True):
        truth = bank.classes[split.inside[index].argmax()]
        pictures = [fit(crop_object(read_image(images[split.image[index]]), split.mask(index)))]
        pictures += [fit(read_image(memory_images / f'{bank.images[i]}.jpg')) for i in near]
        captions = [f'{truth} > {bank.classes[predicted[index]]}', *(bank.classes[bank.labels[i]] for i in near)]
        strips.append(np.array(panel(pictures, captions)))
    return montage(strips, 1)
