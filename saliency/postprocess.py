"""From a saliency map to an object mask: the published recipe."""
from __future__ import annotations

import cv2
import numpy as np

SURE = 0.999  # probability at which a map that is 0 or 1 enters the CRF


def crf_logits(saliency: np.ndarray) -> np.ndarray:
    """What ``models.crf.dense_crf`` takes: (H, W) probabilities of the object -> (2, H, W) float32."""
    object_probability = np.clip(saliency, 1 - SURE, SURE)
    logits = np.log(object_probability / (1 - object_probability))
    return np.stack([np.zeros_like(logits), logits]).astype(np.float32)


def binarise(saliency: np.ndarray, threshold: float = 0.5, min_segment: float = 0.01,
             min_area: float = 0.01) -> np.ndarray | None:
    """Threshold a map, drop its small segments, and drop the image if little is left.

    Source: Van Gansbeke et al., ICCV 2021, supplementary material.

    Args:
        saliency: (H, W) float in 0..1.
        threshold: a pixel is salient when its value is above this.
        min_segment: connected segments (8 neighbours) below this share of the image are dropped.
        min_area: an image whose remaining mask covers less than this share has no mask.

    Returns:
        (H, W) bool, or None when the image is to be left out.
    """
    labels, segments, stats, _ = cv2.connectedComponentsWithStats((saliency > threshold).astype(np.uint8))
    keep = stats[:, cv2.CC_STAT_AREA] >= min_segment * saliency.size  # segments: one area for each label
    keep[0] = False                                                   # label 0 is what is not salient
    mask = keep[segments]
    return mask if labels > 1 and mask.sum() >= max(1, min_area * saliency.size) else None
