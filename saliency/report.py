"""A picture of what came of a folder of images: contact_sheet.jpg beside the masks."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import mask_name
from data.images import ImageFileError, read_image
from utils.run.files import save_image

SHEET = 'contact_sheet.jpg'


def contact_sheet(images: Path, names: Sequence[Path], output: Path, count: int = 24, columns: int = 3,
                  height: int = 160) -> None:
    """Draw image | mask for up to ``count`` images that have a mask, spread over the set."""
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int))]
    width, gap = 2 * height, 6  # the cell of an image and that of its mask: height x height each
    rows = -(-len(chosen) // columns)
    sheet = Image.new('RGB', (columns * (width + gap) + gap, rows * (height + gap) + gap), 'white')
    for place, name in enumerate(chosen):
        left, top = gap + place % columns * (width + gap), gap + place // columns * (height + gap)
        try:
            pair = [Image.fromarray(read_image(path)) for path in (images / name, output / mask_name(name))]
        except ImageFileError:
            continue  # damaged since its mask was made: an empty place
        for picture in pair:
            picture.thumbnail((height, height))
            sheet.paste(picture, (left, top))
            left += height
    save_image(sheet, output / SHEET)
