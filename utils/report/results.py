"""The figures of a run: printed in the published form, and kept as results.json."""
from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.run.errors import UserError
from utils.run.files import write_text

log = logging.getLogger(__name__)


def log_iou(iou: np.ndarray, classes: Sequence[str], present: np.ndarray | None = None) -> None:
    """Print 'mIoU is 63.95' and a line a class, in percent with two decimals; and if classes are absent a line on them.

    Args:
        iou: (classes,) in 0..1.
        classes: their names.
        present: (classes,) bool, which have a pixel in the ground truth; None: all. The mean is that of all.
    """
    log.info('mIoU is %.2f', 100 * np.mean(iou))
    for name, value in zip(classes, iou, strict=True):
        log.info('IoU class %s is %.2f', name, 100 * value)
    entry = iou_entry(iou, classes, present)
    absent = entry['absent_classes']
    if absent:
        log.info('%d of the %d classes have no pixel in the ground truth (%s); the mean of the other %d is %.2f',
                 len(absent), len(classes), ', '.join(absent), len(classes) - len(absent), entry['mIoU_present'])


def iou_entry(iou: np.ndarray, classes: Sequence[str], present: np.ndarray | None = None) -> dict[str, Any]:
    """The same as a JSON entry: {'mIoU': percent, 'IoU': {class: percent}, 'absent_classes': names, 'mIoU_present'}.

    Raises:
        UserError: no class is present.
    """
    seen = np.ones(len(classes), bool) if present is None else present
    if not seen.any():
        raise UserError(f'none of the classes {", ".join(classes)} has a pixel in the ground truth; check val_split, '
                        'eval_classes and ignore_classes.')
    return {'mIoU': 100 * float(np.mean(iou)),
            'IoU': {name: 100 * float(value) for name, value in zip(classes, iou, strict=True)},
            'absent_classes': [name for name, there in zip(classes, seen, strict=True) if not there],
            'mIoU_present': 100 * float(np.mean(iou[seen]))}


def read_results(output_dir: Path) -> dict[str, Any]:
    """results.json of a run: {task: entry}; nothing when it is not there.

    Raises:
        UserError: it is damaged.
    """
    path = output_dir / 'results.json'
    try:
        results = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UserError(f'{path} is damaged; restore it or move it away, and start again.')
    return results


def remove_stale(folder: Path, names: Collection[str]) -> None:
    """Delete the PNGs below a folder of a run's own output that are not <name>.png: those of images no longer there."""
    kept = {f'{name}.png' for name in names}
    stale = [path for path in folder.rglob('*.png') if path.relative_to(folder).as_posix() not in kept]
    for path in stale:
        path.unlink()
    if stale:
        log.info('%d files of images that are no longer in the split are removed from %s', len(stale), folder)


def save_results(results: dict[str, Any], output_dir: Path, drop: Sequence[str] = ()) -> Path:
    """Write results.json, whole or not at all; entries of other tasks that are there already stay.

    Args:
        results: {task: entry}, e.g. {'kmeans': {...}}.
        drop: tasks whose entries of before do not stay.
    """
    path = output_dir / 'results.json'
    merged = {task: entry for task, entry in read_results(output_dir).items() if task not in drop} | results
    write_text(path, json.dumps(merged, indent=2) + '\n')
    return path
