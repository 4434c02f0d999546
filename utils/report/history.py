"""What a training logged of itself, read back: its curves and pictures, however often it was stopped and resumed."""
import json
import logging
from pathlib import Path

from utils.run.log import METRICS, PICTURES

log = logging.getLogger(__name__)


def read_history(output_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, Path]]]]:
    """{name: (step or epoch, value) points} of metrics.jsonl, and {name: (epoch, PNG)} of pictures/, each in order.

    Of a step logged twice, by a run that was killed and resumed, the later line counts. A damaged last line, which a
    kill leaves, is passed over; any other is told in the log.
    """
    path = output_dir / METRICS
    lines = path.read_bytes().rstrip(b'\n').split(b'\n') if path.is_file() else []
    scalars: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            epoch = values.pop('epoch')
            place = int(values.pop('step', epoch))
            points = {name: float(value) for name, value in values.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):
                log.warning('%s: line %d is damaged, and its values are missing in the curves', path, number)
            continue
        for name, value in points.items():
            scalars.setdefault(name, {})[place] = value
    pictures: dict[str, list[tuple[int, Path]]] = {}
    for picture in (output_dir / PICTURES).glob('*_*.png'):
        name, _, epoch = picture.stem.rpartition('_')
        if epoch.isdecimal():  # others are not of the training
            pictures.setdefault(name, []).append((int(epoch), picture))
    if not path.is_file() and (output_dir / 'tensorboard').is_dir():
        log.info('%s has no %s, of a training by an earlier version: its curves are in tensorboard/ alone', output_dir,
                 METRICS)
    return ({name: sorted(points.items()) for name, points in scalars.items()},
            {name: sorted(taken) for name, taken in pictures.items()})
