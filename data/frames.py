"""What is to be predicted: one image, a folder of images, or the frames of a video."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.files import SUFFIXES, drop_duplicates, find_images
from data.images import read_image
from utils.run.errors import UserError

VIDEOS = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm')
Frame = tuple[Path, Callable[[], np.ndarray]]  # its name, and what reads it


class Frames(NamedTuple):
    """Where images come from.

    total: number of images; for a video as its header says, which may be wrong.
    duplicates: image -> the other one that has the name of its label map.
    frames: each (relative name, function that reads the image); the function raises ImageFileError for a
        file that cannot be read.
    """
    total: int
    duplicates: dict[Path, Path]
    frames: Iterator[Frame]


def open_frames(path: Path) -> Frames:
    """An image, a folder of images at any depth, or a video, whose frames are called 000000.png, 000001.png, ...

    Raises:
        UserError: there is no such file or folder, it holds no image, or it is neither image nor video.
    """
    if path.is_dir():
        names, duplicates = drop_duplicates(find_images(path))
        return Frames(len(names), duplicates, ((name, partial(read_image, path / name)) for name in names))
    if not path.is_file():
        raise UserError(f'{path} does not exist; give an image, a folder of images or a video.')
    if path.suffix.lower() in VIDEOS:
        return _video(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'{path} is neither an image ({", ".join(SUFFIXES)}) nor a video ({", ".join(VIDEOS)}); '
                        'convert it to one of them.')
    return Frames(1, {}, iter([(Path(path.name), partial(read_image, path))]))


def _video(path: Path) -> Frames:
    capture = cv2.VideoCapture(str(path))
    if not capture.grab():
        raise UserError(f'video {path} cannot be read; convert it, e.g. to an .mp4 with H.264, or give a folder of its '
                        'frames.')

    def frames() -> Iterator[Frame]:
        index = 0
        while index == 0 or capture.grab():
            whole, image = capture.retrieve()
            if not whole:
                break
            yield Path(f'{index:06}.png'), partial(cv2.cvtColor, image, cv2.COLOR_BGR2RGB)
            index += 1
        capture.release()

    return Frames(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), {}, frames())
