"""From clusters of object masks to label maps: confidence, a class for each cluster, and painting.

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.2.
"""
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.preprocessing import normalize, scale

from data.label_maps import VOID
from segmentation.clustering import match_clusters, parts
from segmentation.metrics import confusion_matrix


def standardise(features: np.ndarray) -> np.ndarray:
    """(N, D): each component over its standard deviation (of the N, mean kept, constants as they are); unit length."""
    return normalize(scale(features, with_mean=False))


def cluster_confidence(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, d), (K, d) -> (N,) in 0..1: 1 - d1 / d2 of the distances to the nearest and to the second centre."""
    if len(centres) == 1:
        return np.ones(len(points))
    two = [np.partition(cdist(points[part], centres), 1, axis=1)[:, :2] for part in parts(points, centres)]
    nearest, second = np.concatenate(two).T
    return 1 - np.divide(nearest, second, out=np.zeros_like(nearest), where=second > 0)


def classes_of_clusters(clusters: np.ndarray, classes: np.ndarray, num_clusters: int, num_classes: int) -> np.ndarray:
    """(num_clusters,) the class of each cluster, of masks (N,) with their true classes 0..num_classes-1, -1 unknown.

    As many clusters as classes: the assignment of most masks; more: the majority, of equals the class met first.
    """
    known = classes >= 0
    counts = confusion_matrix(classes[known], clusters[known], num_classes, num_clusters)
    met = classes[known].tolist() if num_clusters > num_classes else []
    order = np.array([*dict.fromkeys([*met, *range(num_classes)])])
    return order[match_clusters(counts[order], by=np.asarray)]


def confident(images: np.ndarray, scores: np.ndarray, least: float, keep_best: bool = True) -> np.ndarray:
    """(N,) bool: the masks of at least this score, and, ``keep_best``, of each image (N,) the first of its best."""
    kept, best_first = scores >= least, np.lexsort((-scores, images))
    kept[best_first[np.unique(images[best_first], return_index=True)[1]]] |= keep_best
    return kept


def label_map(masks: Sequence[np.ndarray], labels: Sequence[int], kept: Sequence[bool], shape: tuple[int, int],
              overlap: str = 'first', ignore: bool = False) -> np.ndarray:
    """The label map (H, W) uint8 of masks (H, W) bool, the best first, of which some are ``kept``; if none, all is 255.

    A mask that meets an earlier one in any pixel is skipped ('first') or loses these pixels ('best'). 'published' does
    what the published code does: a later mask is skipped if row 0 holds a label and the mask has a pixel off, or row 1
    holds a label and the mask has a pixel on; else it paints over. With ``ignore`` the other masks become 255 last.
    """
    painted = np.full(shape, 0 if any(kept) else VOID, np.uint8)
    for mask, label in ((mask, label) for mask, label, good in zip(masks, labels, kept, strict=True) if good):
        free = painted == 0
        skipped = overlap == 'first' and not free[mask].all() or overlap == 'published' and (
            (not free[0].all() and not mask.all()) or (not free[1:2].all() and mask.any()))
        if not skipped:
            painted[mask & free if overlap == 'best' else mask] = label
    for mask in (mask for mask, good in zip(masks, kept, strict=True) if ignore and not good):
        painted[mask & (painted == 0)] = VOID
    return painted
