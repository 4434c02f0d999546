"""What a run wrote for TensorBoard, read back: its curves and pictures, however often it was stopped and taken up."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

FOLDER = 'tensorboard'


class History(NamedTuple):
    """scalars: {name: (step, value) points}; pictures: {name: (step, PNG)}; each in the order of steps."""
    scalars: dict[str, list[tuple[int, float]]]
    pictures: dict[str, list[tuple[int, bytes]]]


def read_history(output_dir: Path) -> History:
    """Read the event files of a run; one that wrote none has an empty history.

    A run that was killed after its last checkpoint does some steps again, and logs them again: of one step
    the latest entry counts.
    """
    folder = output_dir / FOLDER
    if not folder.is_dir():
        return History({}, {})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # a second
    events = EventAccumulator(str(folder), {'scalars': 0, 'images': 0}, purge_orphaned_data=False)  # 0: keep all
    logging.getLogger('tensorboard').setLevel(logging.WARNING)  # it reports each file
    events.Reload()
    tags = events.Tags()
    return History({name: sorted({e.step: e.value for e in events.Scalars(name)}.items()) for name in tags['scalars']},
                   {name: sorted({e.step: e.encoded_image_string for e in events.Images(name)}.items())
                    for name in tags['images']})
