"""One confusion matrix behind every IoU, and running means that stay on the device."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_truth: int,
                     num_predicted: int | None = None) -> np.ndarray:
    """Count pixels by (true class, predicted class).

    Args:
        truth: class ids; pixels outside 0..num_truth-1 (255 = void) do not count.
        prediction: same shape, 0..num_predicted-1.

    Returns:
        (num_truth, num_predicted) int64.
    """
    columns = num_truth if num_predicted is None else num_predicted
    if truth.dtype == prediction.dtype == np.uint8:  # label maps: all pairs of bytes in one pass, void included
        pairs = truth.astype(np.uint16) << 8 | prediction
        counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:num_truth]
        if counts[:, columns:].any():
            raise ValueError(f'a prediction is outside 0..{columns - 1}')
        return counts[:, :columns]
    valid = truth < num_truth
    pairs = truth[valid].astype(np.int64) * columns + prediction[valid]
    return np.bincount(pairs, minlength=num_truth * columns).reshape(num_truth, columns)


def iou_of(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class, 0..1, from a square confusion matrix; 0 for a class in neither.

    Raises:
        UserError: no pixel counts.
    """
    if not confusion.any():
        raise UserError('the ground truth has no pixel to score: all carry the ignore label (255) or ignored classes; '
                        'check it, val_split, eval_classes and ignore_classes.')
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.zeros_like(hits), where=union > 0)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Of a sample (divided by n - 1), which every ± is; None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


class Mean:
    """Running means of named scalars, summed on the device; reading them is the only synchronisation."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def update(self, **values: Tensor) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            detached = value.detach().float()
            self.sums[name] = self.sums[name] + detached if name in self.sums else detached
        self.count += 1

    def add(self, other: Mean) -> None:
        """Add the steps of another."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += other.count

    def read(self) -> dict[str, float]:
        """The means since the last reset."""
        if not self.sums:
            return {}
        means = (torch.stack(list(self.sums.values())) / self.count).tolist()
        return dict(zip(self.sums, means, strict=True))

    def reset(self) -> None:
        self.sums, self.count = {}, 0
