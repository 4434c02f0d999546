"""How well saliency maps agree with given masks: the figures of the salient-object literature."""
from __future__ import annotations

import numpy as np

BETA2 = 0.3  # of the F-measure: precision counts more than recall (Achanta et al., CVPR 2009)
LEVELS = 255


def mask_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Of two masks (H, W) bool; two empty ones agree."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


class SaliencyScores:
    """Running figures over images of any size; the sum of two is that of the images of both."""

    def __init__(self) -> None:
        self.count, self.iou, self.mae = 0, 0.0, 0.0
        self.precision, self.recall = np.zeros(LEVELS), np.zeros(LEVELS)  # at the thresholds 0/255 .. 254/255

    def __add__(self, other: SaliencyScores) -> SaliencyScores:
        total = SaliencyScores()
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def update(self, saliency: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> None:
        """Add an image.

        Args:
            saliency: (H, W) float in 0..1.
            mask: (H, W) bool, the mask that is made of it.
            truth: (H, W), the given mask, nonzero = object.
        """
        truth = truth > 0
        self.count += 1
        self.iou += mask_iou(mask, truth)
        self.mae += float(np.abs(saliency - truth).mean())
        levels = np.minimum((saliency * LEVELS).astype(int), LEVELS - 1)
        every, hit = np.bincount(levels.ravel(), minlength=LEVELS), np.bincount(levels[truth], minlength=LEVELS)
        chosen, hits = every[::-1].cumsum()[::-1], hit[::-1].cumsum()[::-1]  # pixels that reach each threshold
        self.precision += hits / np.maximum(chosen, 1)
        self.recall += hits / max(int(truth.sum()), 1)

    def read(self) -> dict[str, float]:
        """'mIoU' and 'MAE', means over images; 'maxF', from their mean precision and recall at the best threshold.

        All in percent, as in ``results.json``.
        """
        precision, recall = self.precision / self.count, self.recall / self.count
        f = (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, 1e-12)
        return {'mIoU': 100 * self.iou / self.count, 'maxF': 100 * float(f.max()), 'MAE': 100 * self.mae / self.count}
