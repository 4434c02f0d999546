"""Folders of images: finding them, and a place for what is made of them."""
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, features

from utils.run.errors import UserError, name_some
from utils.run.files import save_drawn

log = logging.getLogger(__name__)
SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm',
            *(('.avif',) if features.check('avif') else ()))  # what Pillow reads without further libraries


def find_files(folder: Path) -> list[Path]:
    """All files below a folder, as sorted relative paths; hidden files and folders do not count.

    Links are followed, each folder is listed once.

    Raises:
        UserError: the folder or one below it cannot be listed.
    """
    def refuse(error: OSError) -> NoReturn:
        raise UserError(f'folder {error.filename} cannot be listed ({error.strerror}); change its permissions or move '
                        'it elsewhere.') from error

    found = []
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that is there already, perhaps around this one
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [(Path(parent) / name).relative_to(folder) for name in names if not name.startswith('.')]
    return sorted(found)


def find_images(folder: Path) -> list[Path]:
    """The images among ``find_files``; a warning counts the other files by kind.

    Raises:
        UserError: the folder is missing or holds no image, or one below it cannot be listed.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; give the folder that holds the images.')
    images, kinds = [], Counter[str]()
    for path in find_files(folder):
        if path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            kinds[path.suffix.lower() or 'no suffix'] += 1
    others = name_some([f'{count} {kind}' for kind, count in kinds.most_common()])
    if not images:
        raise UserError(f'folder {folder} holds no image ({", ".join(SUFFIXES)}){f", but {others}" if others else ""}; '
                        'give the folder of the images, or convert them.')
    if others:
        log.warning('%d files in %s are of kinds that are not read: %s', kinds.total(), folder, others)
    return images


def find_missing(root: Path, paths: Iterable[Path]) -> set[Path]:
    """Of relative paths those that are not there; each folder is listed once."""
    present: dict[Path, set[str]] = {}
    missing = set()
    for path in paths:
        if path.parent not in present:
            folder = root / path.parent
            present[path.parent] = {other.name for other in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.add(path)
    return missing


def name_missing(root: Path, paths: Iterable[Path]) -> str:
    """The first few missing files, each with what lies there instead, and how many are left."""
    return name_some([f'{path}{lies_instead(root / path) if i < 5 else ""}' for i, path in enumerate(paths)])


def lies_instead(path: Path) -> str:
    """' (there is a.JPG)' of a file a.jpg that is missing, where a file lies beside it that may be meant; else ''.

    Of another suffix, case or Unicode form; or the name has a suffix too many or a second column.
    """
    def plain(text: str) -> str:
        return unicodedata.normalize('NFC', text).casefold()

    stem = path.stem
    meant = list(map(plain, (stem, *([Path(stem).stem] if Path(stem).suffix.lower() in SUFFIXES else []),
                             *stem.split()[:1])))
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    near = [other.name for other in beside if plain(other.stem) in meant]
    if not near:
        return ''
    best = min(near, key=lambda name: (meant.index(plain(Path(name).stem)), plain(name) != plain(path.name)))
    same_letters = plain(best) == plain(path.name) and best.casefold() != path.name.casefold()
    return f' (there is {best}{", in another Unicode form" if same_letters else ""})'


def mask_name(image: Path) -> Path:
    """The mask (or label map) of an image, relative to its folder: same place, .png."""
    return image.with_suffix('.png')


def drop_duplicates(names: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Of images that would share a mask (a.jpg, a.webp) the first alone, and for each other one the first."""
    first: dict[Path, Path] = {}
    for name in names:
        first.setdefault(mask_name(name), name)
    return list(first.values()), {name: first[mask_name(name)] for name in names if first[mask_name(name)] != name}


def prepare_output(output: Path, images: Path) -> None:
    """Make the output folder, and see that files can be written to it.

    Args:
        images: the folder that the images are taken from, or a single file.

    Raises:
        UserError: it lies inside the folder of the images or around it, is that of the single file, or is read-only.
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


def write_mask(mask: np.ndarray, path: Path) -> None:
    """Write (H, W) bool as a grey PNG of 0 and 255, whole or not at all."""
    save_drawn(Image.fromarray(mask.astype(np.uint8) * 255), path)
