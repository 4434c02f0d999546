"""Folders of images: finding their files, and what is said of files that are not there."""
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeVar

from PIL import features

from utils.run.errors import UserError, name_some

log = logging.getLogger(__name__)
Name = TypeVar('Name', Path, str)
SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.ppm', '.pgm',
            *(('.avif',) if features.check('avif') else ()))  # what Pillow reads without further libraries


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from this one down, and the names of its files; no hidden ones. Links are followed."""
    def refuse(error: OSError) -> NoReturn:
        raise UserError(f'folder {error.filename} cannot be listed ({error.strerror}); change its permissions or move '
                        'it elsewhere.') from error

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that is there already, perhaps around this one
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield Path(parent).relative_to(folder), sorted(name for name in names if name[0] != '.')


def find_files(folder: Path) -> list[Path]:
    """All files below a folder, but hidden ones, as sorted relative paths; links are followed. Raises UserError."""
    return sorted(place / name for place, names in _walk(folder) for name in names)


def walk_images(folder: Path) -> Iterator[list[str]]:
    """The images among ``find_files`` as relative paths, a folder at a time, in which they are sorted.

    A warning counts the other files by kind. Raises UserError if there is no image.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; give the folder that holds the images.')
    kinds: Counter[str] = Counter()
    found = False
    for place, names in _walk(folder):
        suffixes = [Path(name).suffix.lower() for name in names]
        kinds.update(suffix or 'no suffix' for suffix in suffixes if suffix not in SUFFIXES)
        images = [name for name, suffix in zip(names, suffixes, strict=True) if suffix in SUFFIXES]
        found = found or bool(images)
        yield [f'{place}/{name}' for name in images] if place.parts else images
    others = name_some([f'{count} {kind}' for kind, count in kinds.most_common()])
    if not found:
        raise UserError(f'folder {folder} holds no image ({", ".join(SUFFIXES)}){f", but {others}" if others else ""}; '
                        'give the folder of the images, or convert them.')
    if others:
        log.warning('%d files in %s are of kinds that are not read: %s', kinds.total(), folder, others)


def find_images(folder: Path) -> list[Path]:
    """All of ``walk_images``, sorted."""
    return sorted(Path(name) for names in walk_images(folder) for name in names)


def keep_complete(root: Path, files: Mapping[str, Sequence[Path]], what: str, hint: str,
                  skip: bool = True) -> list[str]:
    """The names whose ``files`` below ``root`` are all there; the log counts ``what`` others ('images have no mask').

    Raises UserError, with a ``hint`` what to do, if no name is left, or any is missing and none to ``skip``.
    """
    names_in = cache(_names_in)
    missing: dict[str, Path] = {}
    for name, paths in files.items():
        for path in paths:
            if path.name not in names_in(root / path.parent):
                missing.setdefault(name, path)
    if missing:
        listed = name_some([f'{path}{lies_instead(root / path) if i < 5 else ""}'
                            for i, path in enumerate(missing.values())])
        text = f'{len(missing)} of {len(files)} {what}: there is no {listed}'
        if not skip or len(missing) == len(files):
            raise UserError(f'{text}; {hint}.')
        log.info('%s; left out', text)
    return [name for name in files if name not in missing]


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def lies_instead(path: Path) -> str:
    """' (there is a.JPG)' of a file a.jpg that is missing, where a file lies beside it that may be meant; else ''.

    Of another suffix, case or Unicode form; or the name has a suffix too many or a second column.
    """
    def plain(text: str) -> str:
        return unicodedata.normalize('NFC', text).casefold()

    within = Path(path.stem)
    for meant in (path.stem, within.stem if within.suffix.lower() in SUFFIXES else path.stem, *path.stem.split()[:1]):
        near = sorted(name for name in _names_in(path.parent) if plain(Path(name).stem) == plain(meant))
        if near:
            best = min(near, key=lambda name: plain(name) != plain(path.name))
            same_letters = plain(best) == plain(path.name) and best.casefold() != path.name.casefold()
            return f' (there is {best}{", in another Unicode form" if same_letters else ""})'
    return ''


def drop_duplicates(names: Iterable[Name]) -> tuple[list[Name], dict[Name, Name]]:
    """Of images that would share a mask (a.jpg, a.webp) the first alone, and for each other one the first."""
    first: dict[str, Name] = {}
    others = {name: owner for name in names
              if (owner := first.setdefault(str(Path(name).with_suffix('')), name)) != name}
    return list(first.values()), others
