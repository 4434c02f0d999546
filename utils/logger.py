"""Plain lines on the terminal and dated ones in the log file; progress bars only on a terminal."""
from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from utils import distributed

Item = TypeVar('Item')


class _TerminalHandler(logging.StreamHandler):
    """Writes through tqdm, so that a line does not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(output_dir: Path) -> None:
    """Send the log of the main process to the terminal and to ``output_dir/log.txt`` (appended)."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter('%(message)s'))
    root.addHandler(terminal)
    if distributed.is_main():
        file = logging.FileHandler(output_dir / 'log.txt')
        file.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S'))
        root.addHandler(file)


def scalar_writer(output_dir: Path) -> Any:
    """A TensorBoard writer in the main process; elsewhere one that writes nothing."""
    if not distributed.is_main():
        return _NoWriter()
    from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(output_dir / 'tensorboard')


class _NoWriter:
    def add_scalar(self, name: str, value: float, step: int) -> None:
        pass

    def add_image(self, name: str, image: np.ndarray, step: int, dataformats: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def progress(items: Iterable[Item], description: str, total: int | None = None, initial: int = 0) -> Iterable[Item]:
    """Iterate with a progress bar, which shows on a terminal of the main process alone."""
    return tqdm(items, description, total=total, initial=initial, leave=False, dynamic_ncols=True,
                disable=None if distributed.is_main() else True)
