"""Plain lines on the terminal and dated ones in the log file; progress bars only on a terminal."""
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from PIL import Image
from termcolor import colored
from tqdm import tqdm

from utils.run import distributed
from utils.run.files import save_image

log = logging.getLogger(__name__)
METRICS, PICTURES, TENSORBOARD = 'metrics.jsonl', 'pictures', 'tensorboard'  # of a training, in its output directory
Item = TypeVar('Item')


def paint(text: str, stream: TextIO, colour: str = 'green') -> str:
    """Text in bold and a colour on a terminal, unless the environment has NO_COLOR."""
    plain = not stream.isatty() or bool(os.environ.get('NO_COLOR'))  # termcolor itself asks about stdout alone
    return colored(text, colour, attrs=['bold'], no_color=plain, force_color=True)


@contextmanager
def warn_of_failure(what: str) -> Iterator[None]:
    """A block that a run can do without, such as its report: a failure is a warning, in one sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0]
        log.warning('%s could not be made (%s: %s); nothing else is missing', what, type(error).__name__, reason)


def log_epoch(epoch: int, epochs: int, figures: str, seconds: float, share: float = 1.0) -> None:
    """Sum an epoch (from 0) up in one line, coloured on a terminal; ``share`` of it was done in these seconds."""
    left = duration(seconds / share * (epochs - epoch - 1)) if share else ''
    log.info('Epoch %d of %d: %s, %s%s', epoch + 1, epochs, figures, duration(seconds),
             f', about {left} left' if left and epoch + 1 < epochs else '', extra={'summary': True})


def duration(seconds: float) -> str:
    """'42 s', '7 min' or '3 h 5 min'."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 100 else f'{minutes // 60} h {minutes % 60} min'


class _TerminalHandler(logging.StreamHandler):
    """Writes through tqdm, so that a line does not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        tqdm.write(paint(text, sys.stdout) if hasattr(record, 'summary') else text, file=sys.stdout)
        sys.stdout.flush()


class _FileHandler(logging.FileHandler):
    """Lets the death of a loader worker through, which PyTorch raises wherever the process is just then."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if isinstance(sys.exc_info()[1], RuntimeError):
            raise
        super().handleError(record)


def setup_logging(output_dir: Path) -> None:
    """Send the log of the main process to the terminal and to ``output_dir/log.txt`` (appended)."""
    handlers: list[logging.Handler] = [_TerminalHandler()]
    if distributed.is_main():
        file = _FileHandler(output_dir / 'log.txt', encoding='utf-8', errors='backslashreplace')
        file.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S'))
        handlers.append(file)
    logging.basicConfig(format='%(message)s', level=logging.INFO if distributed.is_main() else logging.WARNING,
                        handlers=handlers, force=True)


class MetricsWriter:
    """Metrics and pictures of a training, in the main process alone: into its output directory and for TensorBoard.

    What a run that was killed after its last checkpoint does again stands in metrics.jsonl again: the later counts.
    """

    def __init__(self, output_dir: Path) -> None:
        self.metrics, self.pictures = output_dir / METRICS, output_dir / PICTURES
        self.tensorboard: Any = None
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter
            self.tensorboard = SummaryWriter(output_dir / TENSORBOARD)
            if self.metrics.exists():
                os.truncate(self.metrics, self.metrics.read_bytes().rfind(b'\n') + 1)  # a line that a kill cut off

    def add_scalars(self, values: Mapping[str, float], epoch: int, step: int | None = None) -> None:
        """Add the values of a step, counted over all epochs, or without one those of an epoch; both from 1."""
        if self.tensorboard:
            place = {'epoch': epoch} if step is None else {'step': step, 'epoch': epoch}
            with self.metrics.open('a', encoding='utf-8') as file:
                file.write(json.dumps({**place, **values}) + '\n')
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, epoch if step is None else step)
            self.tensorboard.flush()

    def add_picture(self, name: str, picture: Image.Image, epoch: int) -> None:
        if self.tensorboard:
            save_image(picture, self.pictures / f'{name}_{epoch:04d}.png')
            self.tensorboard.add_image(name, np.asarray(picture), epoch, dataformats='HWC')
            self.tensorboard.flush()


def clear_metrics(output_dir: Path) -> None:
    """Delete what the ``MetricsWriter`` of a training left."""
    for name in (PICTURES, TENSORBOARD):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / METRICS).unlink(missing_ok=True)


def progress(items: Iterable[Item], description: str, total: int | None = None, initial: int = 0) -> Iterable[Item]:
    """Iterate with a progress bar, which shows on a terminal of the main process alone."""
    return tqdm(items, description, total=total, initial=initial, leave=False, dynamic_ncols=True,
                disable=None if distributed.is_main() else True)
