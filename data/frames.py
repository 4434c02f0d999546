"""What is to be predicted, an image, a folder or the frames of a video, and its way through a network."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.files import SUFFIXES, drop_duplicates, find_images
from data.images import ImageFileError, Photograph, read_photograph
from utils.run.errors import UserError
from utils.run.parallel import in_threads

VIDEOS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
Frame = tuple[Path, Callable[[], Photograph]]  # relative name, and what reads the image, or raises ImageFileError


def open_frames(path: Path) -> tuple[int, dict[Path, Path], Iterator[Frame]]:
    """An image, a folder of images at any depth, or a video, whose frames are called 000000.png, 000001.png, ...

    Returns how many there are (for a video as its header says, which may be wrong), other images, left out as their
    label maps would share a name, each with the one that is kept, and the frames. Raises UserError for what is not
    there, a folder without images, and a file that is neither image nor video.
    """
    if path.is_dir():
        names, duplicates = drop_duplicates(find_images(path))
        return len(names), duplicates, ((name, partial(read_photograph, path / name)) for name in names)
    if not path.is_file():
        raise UserError(f'{path} does not exist; give an image, a folder of images or a video.')
    if path.suffix.lower() in SUFFIXES:
        return 1, {}, iter([(Path(path.name), partial(read_photograph, path))])
    if path.suffix.lower() not in VIDEOS:
        raise UserError(f'{path} is neither an image ({", ".join(SUFFIXES)}) nor a video ({", ".join(VIDEOS)}); '
                        'convert it to one of them.')
    capture = cv2.VideoCapture(str(path))
    if not capture.grab():
        raise UserError(f'video {path} cannot be read; convert it, e.g. to an .mp4 with H.264, or give a folder of its '
                        'frames.')
    return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), {}, _video_frames(capture)


def _video_frames(capture: cv2.VideoCapture) -> Iterator[Frame]:
    """The frames from the one that is grabbed on."""
    index = 0
    while index == 0 or capture.grab():
        whole, image = capture.retrieve()
        if not whole:
            break
        yield Path(f'{index:06}.png'), partial(_decoded, image)
        index += 1
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
