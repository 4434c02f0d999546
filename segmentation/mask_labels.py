"""From clusters of object masks to label maps: confidence, a class for each cluster, and painting.

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.2.
"""
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from data.voc import VOID
from segmentation.clustering import match_clusters

OVERLAPS = ('first', 'best', 'published')


def standardise(features: np.ndarray) -> np.ndarray:
    """(N, D): each component over its standard deviation (of the N, mean kept, constants as they are); unit length."""
    deviation = features.std(0)
    scaled = features / np.where(deviation > 0, deviation, 1)
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(min=np.finfo(scaled.dtype).tiny)


def cluster_confidence(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, d), (K, d) -> (N,) in 0..1: 1 - d1 / d2 of the distances to the nearest and to the second centre."""
    if len(centres) == 1:
        return np.ones(len(points))
    nearest, second = np.partition(cdist(points, centres), 1, axis=1)[:, :2].T
    return 1 - np.divide(nearest, second, out=np.zeros_like(nearest), where=second > 0)


def box_iou(box: Sequence[float], others: np.ndarray) -> np.ndarray:
    """IoU of a box x1, y1, x2, y2 with others (N, 4), as the published code has it: 1e-8 keeps all divisors above 0."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    width, height = (high - low).clip(min=0).T
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1] + 1e-8) for b in (np.asarray(box), others)]
    overlap = width * height
    return overlap / (areas[0] + areas[1] - overlap + 1e-8)


def classes_of_clusters(clusters: np.ndarray, classes: np.ndarray, num_clusters: int, num_classes: int) -> np.ndarray:
    """(num_clusters,) the class of each cluster, of masks (N,) with their true classes 0..num_classes-1, -1 unknown.

    As many clusters as classes: the assignment of most masks; more: the majority, of equals the class met first.
    """
    known = classes >= 0
    counts = np.zeros((num_classes, num_clusters), np.int64)
    np.add.at(counts, (classes[known], clusters[known]), 1)
    met = np.array(list(dict.fromkeys(classes[known].tolist())) + sorted({*range(num_classes)} - {*classes.tolist()}))
    return met[match_clusters(counts[met], by=np.asarray)]


def confident(images: np.ndarray, scores: np.ndarray, least: float) -> np.ndarray:
    """(N,) bool: the masks of at least this score, and of each image (N,) without one the first of its best."""
    kept = scores >= least
    for image in np.setdiff1d(images, images[kept]):
        members = np.flatnonzero(images == image)
        kept[members[scores[members].argmax()]] = True
    return kept


def paint(masks: Sequence[np.ndarray], labels: Sequence[int], shape: tuple[int, int],
          overlap: str = 'first') -> np.ndarray:
    """The label map (H, W) uint8 of masks (H, W) bool, the best first; 0 where there is none.

    A mask that meets an earlier one in any pixel is skipped ('first') or loses these pixels ('best'). 'published' does
    what the published code does: a later mask is skipped if row 0 holds a label and the mask has a pixel off, or row 1
    holds a label and the mask has a pixel on; else it paints over.
    """
    painted = np.zeros(shape, np.uint8)
    for mask, label in zip(masks, labels, strict=True):
        taken = mask & (painted > 0)
        if overlap == 'best':
            mask = mask & ~taken
        elif overlap == 'first' and taken.any() or overlap == 'published' and (
                (painted[0].any() and not mask.all()) or (painted[1:2].any() and mask.any())):
            continue
        painted[mask] = label
    return painted


def label_map(masks: Sequence[np.ndarray], labels: Sequence[int], kept: Sequence[bool], shape: tuple[int, int],
              overlap: str = 'first', ignore: bool = False) -> np.ndarray:
    """``paint`` the masks that are ``kept``; with ``ignore`` the others become the ignore label; no mask: all of it."""
    chosen = [i for i, good in enumerate(kept) if good]
    if not chosen:
        return np.full(shape, VOID, np.uint8)
    painted = paint([masks[i] for i in chosen], [labels[i] for i in chosen], shape, overlap)
    for i in set(range(len(masks))) - set(chosen) if ignore else ():
        painted[masks[i] & (painted == 0)] = VOID
    return painted
