"""Label maps as palette PNGs, and panels of images side by side."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CAPTION = 18  # height of a caption, pixels


def voc_palette(size: int = 256) -> np.ndarray:
    """(size, 3) uint8: the VOC colour map, whose bits spread over red, green and blue in turn."""
    ids = np.arange(size)
    colours = np.zeros((size, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = voc_palette()


def save_label_map(labels: np.ndarray, path: Path) -> None:
    """Write (H, W) class ids as a palette PNG whose values are the ids, whole or not at all."""
    image = Image.fromarray(labels.astype(np.uint8), mode='P')
    image.putpalette(PALETTE.tobytes())
    save_image(image, path)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a picture through a temporary file beside it and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}.{path.name}')
    image.save(temporary)
    temporary.replace(path)


def panel(images: Sequence[np.ndarray], captions: Sequence[str], gap: int = 4) -> Image.Image:
    """Images of one height side by side under their captions.

    Args:
        images: each (H, W, 3) uint8, or (H, W) class ids, drawn in the VOC palette.
        captions: one an image.
    """
    coloured = [PALETTE[image] if image.ndim == 2 else image for image in images]
    height = max(image.shape[0] for image in coloured)
    width = sum(image.shape[1] for image in coloured) + gap * (len(coloured) - 1)
    canvas = Image.new('RGB', (width, height + CAPTION), 'white')
    draw, x = ImageDraw.Draw(canvas), 0
    for image, caption in zip(coloured, captions, strict=True):
        draw.text((x + 2, 3), caption, fill='black')
        canvas.paste(Image.fromarray(image), (x, CAPTION))
        x += image.shape[1] + gap
    return canvas


def montage(images: Sequence[np.ndarray], columns: int, gap: int = 8) -> Image.Image:
    """(H, W, 3) uint8 images of any size in rows of ``columns``, on white."""
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    rows = -(-len(images) // columns)
    canvas = Image.new('RGB', (columns * width - gap, rows * height - gap), 'white')
    for index, image in enumerate(images):
        canvas.paste(Image.fromarray(image), (index % columns * width, index // columns * height))
    return canvas
