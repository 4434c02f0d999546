"""The results of a run: printed in the published form, kept as results.json, and as tables in Markdown and CSV."""
import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.run.errors import UserError
from utils.run.files import write_text

log = logging.getLogger(__name__)


def iou_entry(iou: np.ndarray, classes: Sequence[str], present: np.ndarray) -> dict[str, Any]:
    """A JSON entry in percent. iou: (classes,), 0..1; present: (classes,) bool, in the ground truth, not all False."""
    if not present.any():
        raise UserError(f'none of the classes {", ".join(classes)} has a pixel in the ground truth; check val_split, '
                        'eval_classes and ignore_classes.')
    return {'mIoU': 100 * float(np.mean(iou)),
            'IoU': {name: 100 * float(value) for name, value in zip(classes, iou, strict=True)},
            'absent_classes': [name for name, there in zip(classes, present, strict=True) if not there],
            'mIoU_present': 100 * float(np.mean(iou[present]))}


def log_iou(entry: dict[str, Any]) -> None:
    """Print an ``iou_entry``: 'mIoU is 63.95' of all classes, a line a class, and if classes are absent one on them."""
    log.info('mIoU is %.2f', entry['mIoU'])
    for name, value in entry['IoU'].items():
        log.info('IoU class %s is %.2f', name, value)
    absent, classes = entry['absent_classes'], len(entry['IoU'])
    if absent:
        log.info('%d of the %d classes have no pixel in the ground truth (%s); the mean of the other %d is %.2f',
                 len(absent), classes, ', '.join(absent), classes - len(absent), entry['mIoU_present'])


def read_results(output_dir: Path) -> dict[str, Any]:
    """results.json of a run: {task: entry}; nothing when it is not there. Raises UserError if it is damaged."""
    path = output_dir / 'results.json'
    try:
        results = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UserError(f'{path} is damaged; restore it or move it away, and start again.')
    return results


def save_results(results: dict[str, Any], output_dir: Path, companions: Sequence[str] = ()) -> dict[str, Any]:
    """Add {task: entry} to results.json, which is written whole or not at all; gives all that it holds now.

    Entries of other tasks stay, those of ``companions`` only if they were made with the same as one of the new ones: by
    what both say of that, wherever the weights lie now.
    """
    made = [entry.get('made_with', {}) for entry in results.values() if isinstance(entry, dict)]

    def stays(before: Mapping[str, Any]) -> bool:
        return bool(before) and any(all(before[name] == now[name] for name in before.keys() & now.keys()
                                        if name != 'weights') for now in made)

    merged = {task: entry for task, entry in read_results(output_dir).items()
              if task not in companions or stays(entry.get('made_with', {}))} | results
    write_text(output_dir / 'results.json', json.dumps(merged, indent=2) + '\n')
    log.info('Results: %s', output_dir / 'results.json')
    return merged


def with_spread(mean: float, std: float | None = None, runs: int | None = None, decimals: int = 2) -> str:
    """'45.68 ± 1.50 (n = 5)': a mean with its sample standard deviation over n runs, if both are known."""
    return f'{mean:.{decimals}f}' + ('' if std is None or runs is None else f' ± {std:.{decimals}f} (n = {runs})')


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """A table in Markdown, whose last columns, ``numbers`` of them, stand to the right."""
    lines = [head, ['---'] * (len(head) - numbers) + ['---:'] * numbers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ''.join('| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + ' |\n'
                   for line in lines)


def pivot(cells: Mapping[Any, Any], columns: Sequence[Any], missing: Any = '-') -> list[list[Any]]:
    """The rows of {(row, column): cell}, where a row is the texts that begin it."""
    return [[*row, *(cells.get((row, column), missing) for column in columns)]
            for row in dict.fromkeys(row for row, _ in cells)]


def csv_text(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same as CSV; numbers in full precision, None as nothing."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([head, *rows])
    return text.getvalue()
