"""Files written whole or not at all: text, arrays, pictures and label maps, each through a temporary one beside it."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

DRAWN_UPRIGHT = 'Drawn on', 'the photograph as it is seen'  # text entry of a PNG: turned by EXIF, not as stored


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
    save_drawn(image, path)


def save_drawn(image: Image.Image, path: Path) -> None:
    """Write a mask or label map as PNG, with the note that it was drawn on the photograph as it is seen."""
    note = PngInfo()
    note.add_text(*DRAWN_UPRIGHT)
    save_image(image, path, pnginfo=note)


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture through a temporary file beside it and a rename; ``options`` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}.{path.name}')
    image.save(temporary, **options)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary one beside it and a rename; of names that are not UTF-8 the codes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8', errors='backslashreplace')
    temporary.replace(path)


def save_arrays(path: Path, **arrays: np.ndarray) -> Path:
    """Write arrays as an .npz file through a temporary one beside it and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}.{path.name}')
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)
    return path
