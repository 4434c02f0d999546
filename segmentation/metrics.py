"""What a result says: one confusion matrix behind every IoU, one definition of its spread, and what made it."""
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.run.errors import UserError

log = logging.getLogger(__name__)


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_truth: int,
                     num_predicted: int | None = None) -> np.ndarray:
    """(num_truth, num_predicted) int64 counts of pixels by true and predicted class.

    Pixels whose true class is outside 0..num_truth-1 (255, the ignore label) do not count; a prediction outside
    0..num_predicted-1 is a ValueError.
    """
    columns = num_truth if num_predicted is None else num_predicted
    if truth.dtype == prediction.dtype == np.uint8:  # label maps: all pairs of bytes in one pass, ignored ones included
        pairs = truth.astype(np.uint16) << 8 | prediction
        counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:num_truth]
        if counts[:, columns:].any():
            raise ValueError(f'a prediction is outside 0..{columns - 1}')
        return counts[:, :columns]
    valid = truth < num_truth
    pairs = truth[valid].astype(np.int64) * columns + prediction[valid]
    return np.bincount(pairs, minlength=num_truth * columns).reshape(num_truth, columns)


def iou_matrix(confusion: np.ndarray) -> np.ndarray:
    """(classes, clusters) IoU, 0..1, of every class with every cluster, TP / (TP + FP + FN); 0 if both are empty."""
    union = confusion.sum(1, keepdims=True) + confusion.sum(0, keepdims=True) - confusion
    return np.divide(confusion, union, out=np.zeros(confusion.shape), where=union > 0)


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """(classes,) IoU in 0..1 of a square confusion matrix. Raises UserError if no pixel counts."""
    if not confusion.any():
        raise UserError('the ground truth has no pixel to score: all carry the ignore label (255) or ignored classes; '
                        'check it, val_split, eval_classes and ignore_classes.')
    return np.diag(iou_matrix(confusion))


def standard_deviation(values: Sequence[float]) -> float | None:
    """Of a sample (divided by n - 1), which every ± is; None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def warn_of_shared(val_ids: Sequence[str], others: Sequence[str] | np.ndarray, val: str, where: str) -> None:
    """Warn of images that are scored and were learnt from."""
    if count := len(set(val_ids) & set(map(str, others))):
        log.warning('%d of the %d images of %s are also in %s', count, len(val_ids), val, where)


def made_with(weights: str | Path, digest: str, dataset: Any, size: int) -> dict[str, Any]:
    """The entry 'made_with' of a result: weights and their fingerprint, data, side of the network's input."""
    return {'weights': str(weights), 'fingerprint': digest, 'data': f'{dataset.root.name} {dataset.split}',
            'images': len(dataset), 'data_digest': dataset.drawn_digest(), 'size': size}


def made_with_network(network: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
    """The same of a result on prototypes, with what ``prototype_network`` says of them."""
    return made_with(network['pretraining'], network['fingerprint'], dataset, network['size']) | {
        name: network[name] for name in ('features', 'masks', 'min_component')}
