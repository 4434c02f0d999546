"""What is to be predicted, an image, a folder or the frames of a video, and its way through a network."""
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.files import SUFFIXES, drop_duplicates, walk_images
from data.images import ImageFileError, Photograph, read_photograph
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.parallel import in_threads

VIDEOS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
Frame = tuple[Path, Callable[[], Photograph]]  # relative name, and what reads the image, or raises ImageFileError


def open_frames(path: Path) -> tuple[int, list[str], dict[str, str], Iterator[Frame]]:
    """An image, a folder of images at any depth, or a video, whose frames are called 000000.png, 000001.png, ...

    Returns how many there are (for a video as its header says, which may be wrong), their relative names, sorted (of a
    video those of the frames that have come), other images, left out as their label maps would share a name, each with
    the one that is kept, and the frames. Raises UserError for what is not there, a folder without images or one that
    other processes see otherwise, and a file that is neither image nor video.
    """
    if path.is_dir():
        names: list[str] = []  # as text: of millions, these alone are in memory
        duplicates: dict[str, str] = {}
        for found in walk_images(path):
            kept, others = drop_duplicates(found)
            names += kept
            duplicates |= others
        names.sort()
        seen = reduce(lambda crc, name: zlib.crc32(os.fsencode(name), crc), names, len(names))
        if not distributed.alike(seen, patient=True):
            raise UserError(f'{path} changed while the processes listed it, or is not one folder that all machines '
                            'share; rerun, or share it.')
        return len(names), names, duplicates, ((Path(name), partial(read_photograph, path / name)) for name in names)
    if not path.is_file():
        raise UserError(f'{path} does not exist; give an image, a folder of images or a video.')
    if path.suffix.lower() in SUFFIXES:
        return 1, [path.name], {}, iter([(Path(path.name), partial(read_photograph, path))])
    if path.suffix.lower() not in VIDEOS:
        raise UserError(f'{path} is neither an image ({", ".join(SUFFIXES)}) nor a video ({", ".join(VIDEOS)}); '
                        'convert it to one of them.')
    capture = cv2.VideoCapture(str(path))
    if not capture.grab():
        raise UserError(f'video {path} cannot be read; convert it, e.g. to an .mp4 with H.264, or give a folder of its '
                        'frames.')
    names = []
    return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), names, {}, _video_frames(capture, names)


def _video_frames(capture: cv2.VideoCapture, names: list[str]) -> Iterator[Frame]:
    """The frames from the one that is grabbed on; ``names`` gets their names."""
    while not names or capture.grab():
        whole, image = capture.retrieve()
        if not whole:
            break
        names.append(f'{len(names):06}.png')
        yield Path(names[-1]), partial(_decoded, image)
    capture.release()


def _decoded(frame: np.ndarray) -> Photograph:
    return Photograph(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), 1)


def predict_frames(frames: Iterable[Frame], prepare: Callable[[Path, Photograph], Any], stack: Callable[[list], Any],
                   predict: Callable[[Any], Sequence], write: Callable[[Path, np.ndarray, Any], str], batch_size: int,
                   threads: int) -> Iterator[tuple[Path, str]]:
    """Predict in batches; threads read, prepare and stack the next images and write the results of the last ones.

    ``prepare``: (name, photograph) -> input of the network, or raises ImageFileError; ``stack``: inputs -> batch;
    ``predict``, in the calling thread: batch -> an output for each input; ``write``: (name, image, output) -> why the
    image has no result, '' if it has one.
    ``threads`` read, and as many write. Yields each name, and why it has no result, such as that it cannot be read.
    """
    def read(frame: Frame) -> tuple[Path, np.ndarray | None, Any]:
        name, load = frame
        try:
            photograph = load()
            return name, photograph.pixels, prepare(name, photograph)
        except ImageFileError as error:
            return name, None, error.reason

    def join(batch: list) -> tuple[list, Any]:
        inputs = [prepared for _, image, prepared in batch if image is not None]
        return batch, stack(inputs) if inputs else None

    def predicted() -> Iterator[tuple[Path, np.ndarray | None, Any]]:
        ready = in_threads(read, frames, threads, threads + 2 * batch_size)
        batches = iter(lambda: list(islice(ready, batch_size)), [])
        for batch, inputs in in_threads(join, batches, 1, 2):
            outputs = iter([] if inputs is None else predict(inputs))
            yield from [(name, image, reason if image is None else next(outputs)) for name, image, reason in batch]

    def finish(item: tuple[Path, np.ndarray | None, Any]) -> tuple[Path, str]:
        name, image, output = item
        return name, output if image is None else write(name, image, output)

    return in_threads(finish, predicted(), threads, threads + batch_size)
