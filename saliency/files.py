"""Images in, masks out: finding, reading and writing the files."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError
from utils.pictures import save_image

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, as sorted relative paths; hidden files and folders do not count.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f'--images {folder} is not a folder; give the folder that holds the images.')
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [(Path(parent) / name).relative_to(folder) for name in names
                  if not name.startswith('.') and Path(name).suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(f'--images {folder} holds no image ({", ".join(SUFFIXES)}); give the folder of the images.')
    return sorted(found)


def mask_name(image: Path) -> Path:
    """The mask of an image, relative to the output folder: same place, .png."""
    return image.with_suffix('.png')


def prepare_output(output: Path, images: Path) -> None:
    """Make the output folder, and see that files can be written to it.

    Raises:
        UserError: it lies inside the folder of the images or around it, or cannot be written.
    """
    inside, around = output.resolve(), images.resolve()
    if inside == around or around in inside.parents or inside in around.parents:
        raise UserError(f'--output {output} and --images {images} lie one inside the other, so that masks would be '
                        'taken for images; choose a folder elsewhere.')
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f'.{os.getpid()}.probe'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f'cannot write to --output {output} ({error.strerror}); choose another folder or change its '
                        'permissions.') from error


def read_image(path: Path) -> np.ndarray:
    """An image as it is seen: turned by its EXIF orientation, transparency laid over white, grey as RGB.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the file is no image, is damaged, or is too large to be safe.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith('I') or image.mode == 'F':  # deep grey: PIL would clip it at 255
                deep = np.asarray(image, np.float64)
                top = 65535 if image.mode.startswith('I') else 1.0
                image = Image.fromarray((deep / max(top, deep.max()) * 255).clip(0, 255).astype(np.uint8))
            if 'A' in image.getbands() or 'transparency' in image.info:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            return np.array(image.convert('RGB'))
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise ValueError(' '.join(str(error).replace(str(path), path.name).split()) or type(error).__name__) from error


def write_mask(mask: np.ndarray, path: Path) -> None:
    """Write (H, W) bool as a grey PNG of 0 and 255, whole or not at all."""
    save_image(Image.fromarray(mask.astype(np.uint8) * 255), path)
