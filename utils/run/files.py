"""Files written whole or not at all: text, arrays, pictures and label maps; and locks that keep other processes off."""
import errno
import io
import itertools
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.run.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
DRAWN_UPRIGHT = 'Drawn on', 'the photograph as it is seen'  # text entry of a PNG: turned by EXIF, not as stored
# (256, 3) uint8: the VOC colour map, which deals the bits of an id, lowest first, to red, green and blue in turn
PALETTE = np.packbits(np.arange(256)[:, None, None] >> np.arange(24).reshape(8, 3) & 1, axis=1)[:, 0]


@contextmanager
def whole_file(path: Path, lasting: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes its name at the block's end: a kill leaves the file of before or the new one.

    ``lasting`` flushes it to disk, so that a power cut leaves no half file either. Only for files with one writer at a
    time: the temporary file has one name, and the next write takes the place of what a kill left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{"unfinished" if lasting else os.getpid()}')
    try:
        with temporary.open('wb') as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # not every file system flushes folders
            os.fsync(folder)
        os.close(folder)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or one that comes in parts and need not fit into memory."""
    with whole_file(path) as file:
        for part in [text] if isinstance(text, str) else text:
            file.write(part.encode(errors='backslashreplace'))  # names of files need not be UTF-8


def set_aside(path: Path) -> Path:
    """Rename a file that a user may have edited, names.yml to names_before_1.yml or the next free number."""
    free = (path.with_stem(f'{path.stem}_before_{number}') for number in itertools.count(1))
    return path.replace(next(place for place in free if not place.exists()))


def remove_stale(folder: Path, names: Collection[str]) -> None:
    """Delete the PNGs below a folder of a run's own output that are not <name>.png: those of an earlier run."""
    kept = {folder / f'{name}.png' for name in names}
    stale = [path for path in folder.rglob('*.png') if path not in kept]
    for path in stale:
        path.unlink()
    if stale:
        log.info('%d files of an earlier run are removed from %s', len(stale), folder)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture in the format of its suffix; ``options`` are Pillow's."""
    buffer = io.BytesIO()  # into a file Pillow's encoder of JPEG would pass over that the disk is full
    image.save(buffer, Image.registered_extensions()[path.suffix.lower()], **options)
    with whole_file(path) as file:
        file.write(buffer.getbuffer())


def save_drawn(image: Image.Image, path: Path) -> None:
    """Write a mask or label map as PNG, with the note that it was drawn on the photograph as it is seen."""
    note = PngInfo()
    note.add_text(*DRAWN_UPRIGHT)
    save_image(image, path, pnginfo=note)


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write (H, W) bool or object numbers from 1 on as a grey PNG: 255 on the first object, 254 on the next, ..."""
    save_drawn(Image.fromarray(np.where(mask > 0, 256 - mask.astype(int), 0).astype(np.uint8)), path)


def save_label_map(labels: np.ndarray, path: Path) -> None:
    """Write (H, W) class ids as a palette PNG whose values are the ids."""
    image = Image.fromarray(labels.astype(np.uint8), mode='P')
    image.putpalette(PALETTE.tobytes())
    save_drawn(image, path)


def lock_file(handle: int, waiting: str = '') -> None:
    """Hold the lock of an open file until it is closed or this process ends; child processes do not inherit it.

    If another process holds it, log ``waiting`` and wait; without such a text raise BlockingIOError or PermissionError.
    Raises OSError where the system or the file's disk has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, 'this system has no file locks')
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        if not waiting:
            raise
        log.info(waiting)
        fcntl.lockf(handle, fcntl.LOCK_EX)


def lock_folder(output_dir: Path) -> None:
    """Make the output directory, and keep other runs out of it until this process ends.

    Raises UserError if it cannot be made or written, or another run is at work there.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(output_dir / '.lock', os.O_RDWR | os.O_CREAT, 0o644)  # open until the process ends
    except OSError as error:
        why = 'a file is in its place' if isinstance(error, (FileExistsError, NotADirectoryError)) else error.strerror
        raise UserError(f'cannot write to output folder {output_dir} ({why}); correct that, or choose '
                        'another one.') from error
    try:
        lock_file(handle)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise UserError(f'another run is writing to {output_dir}; wait for its end, stop it, or choose another '
                        'output folder.') from error
    except OSError as error:
        log.warning('%s cannot be locked (%s): start no second run there', output_dir, error.strerror)
