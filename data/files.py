"""Folders of images: finding and reading them, and a place for what is made of them."""
from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.pictures import save_image

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
TURN = Image.Transpose
ORIENTATION = 0x0112  # the EXIF tag, and what makes an image upright for each of its values
UPRIGHT = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
           7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}
TURNED = (5, 6, 7, 8)  # these exchange width and height
BROKEN = (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error, Image.DecompressionBombError)


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, as sorted relative paths; hidden files and folders do not count.

    Links are followed, each folder is listed once.

    Raises:
        UserError: the folder is missing or holds no image, or one below it cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; give the folder that holds the images.')
    found = []
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that is there already, perhaps around this one
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [(Path(parent) / name).relative_to(folder) for name in names
                  if not name.startswith('.') and Path(name).suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(f'folder {folder} holds no image ({", ".join(SUFFIXES)}); give the folder of the images.')
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f'folder {error.filename} cannot be listed ({error.strerror}); change its permissions or move it '
                    'elsewhere.') from error


def mask_name(image: Path) -> Path:
    """The mask (or label map) of an image, relative to its folder: same place, .png."""
    return image.with_suffix('.png')


def one_a_mask(names: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Of images that would share a mask (a.jpg, a.webp) the first alone.

    Returns:
        the images that stay, and for each that goes the one that has its mask.
    """
    first: dict[Path, Path] = {}
    for name in names:
        first.setdefault(mask_name(name), name)
    owners = {name: first[mask_name(name)] for name in names}
    return list(first.values()), {name: owner for name, owner in owners.items() if owner != name}


def prepare_output(output: Path, images: Path) -> None:
    """Make the output folder, and see that files can be written to it.

    Args:
        images: the folder that the images are taken from, or a single file.

    Raises:
        UserError: it lies inside the folder of the images or around it, is that of the single file, or cannot be
            written.
    """
    inside, around = output.resolve(), images.resolve()
    if around.is_file() and inside == around.parent:
        raise UserError(f'--output {output} is the folder of {images}, whose other images results would join; choose '
                        'another folder.')
    if around.is_dir() and (inside == around or around in inside.parents or inside in around.parents):
        raise UserError(f'--output {output} and --images {images} lie one inside the other, so that results would be '
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
            turn = UPRIGHT.get(file.getexif().get(ORIENTATION))
            image = file if turn is None else file.transpose(turn)  # PIL's own also rewrites the EXIF, which may fail
            if image.mode.startswith('I') or image.mode == 'F':  # deep grey: PIL would clip it at 255
                deep = np.asarray(image, np.float64)
                top = 65535 if image.mode.startswith('I') else 1.0
                image = Image.fromarray((deep / max(top, deep.max()) * 255).clip(0, 255).astype(np.uint8))
            if 'A' in image.getbands() or 'transparency' in image.info:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            return np.array(image.convert('RGB'))
    except BROKEN as error:
        raise ValueError(_reason(error, path)) from error


def probe_image(path: Path) -> tuple[int, int] | str:
    """(height, width) of an image as it is seen, or why it cannot be read: all of the file is decoded once."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.draft('L', (1, 1))  # JPEG: an eighth of the size, which is quicker and needs the whole file too
            image.load()
            return (width, height) if image.getexif().get(ORIENTATION) in TURNED else (height, width)
    except BROKEN as error:
        return _reason(error, path)


def _reason(error: BaseException, path: Path) -> str:
    return ' '.join(str(error).replace(str(path), path.name).split()) or type(error).__name__


def write_mask(mask: np.ndarray, path: Path) -> None:
    """Write (H, W) bool as a grey PNG of 0 and 255, whole or not at all."""
    save_image(Image.fromarray(mask.astype(np.uint8) * 255), path)
