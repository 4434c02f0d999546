"""K-means on prototypes, and the match of its clusters to classes."""
from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from utils.errors import UserError

DIMENSIONS = 32


def whiten(prototypes: np.ndarray, seed: int) -> np.ndarray:
    """PCA with whitening: (N, D) -> (N, min(32, N, D))."""
    return PCA(min(DIMENSIONS, *prototypes.shape), whiten=True, random_state=seed).fit_transform(prototypes)


def kmeans(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Mini-batch K-means (batch 1000, 3 starts): (N, D) -> (N,) cluster ids.

    Raises:
        UserError: there are fewer points than clusters.
    """
    if len(points) < num_clusters:
        raise UserError(f'{len(points)} images cannot form num_clusters {num_clusters}; lower num_clusters or take a '
                        'larger split.')
    return MiniBatchKMeans(num_clusters, batch_size=1000, n_init=3, random_state=seed).fit_predict(points)


def cluster_confusion(inside: np.ndarray, outside: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """The confusion matrix of a clustering, from each image's histograms.

    All pixels of an image's mask carry its cluster + 1 and the rest 0, so what its ground truth holds
    inside and outside the mask is all that any clustering needs.

    Args:
        inside, outside: (N, classes) pixels of each class inside and outside each image's mask.
        clusters: (N,) ids in 0..num_clusters-1.

    Returns:
        (classes, num_clusters + 1) int64 pixel counts; column 0 is the background.
    """
    confusion = np.zeros((num_clusters + 1, inside.shape[1]), np.int64)
    confusion[0] = outside.sum(0)
    np.add.at(confusion, clusters + 1, inside)
    return confusion.T


def iou_matrix(confusion: np.ndarray) -> np.ndarray:
    """(classes, clusters) IoU in 0..1 of every class with every cluster."""
    union = confusion.sum(1, keepdims=True) + confusion.sum(0, keepdims=True) - confusion
    return np.divide(confusion, union, out=np.zeros(confusion.shape), where=union > 0)


def match_clusters(confusion: np.ndarray) -> np.ndarray:
    """The class of each cluster.

    One to one by the assignment of greatest total IoU; with more clusters than classes each cluster
    takes the class of highest IoU.

    Returns:
        (clusters,) class ids.
    """
    iou = iou_matrix(confusion)
    if confusion.shape[1] > confusion.shape[0]:
        return iou.argmax(0)
    classes, clusters = linear_sum_assignment(iou, maximize=True)
    mapping = np.empty(confusion.shape[1], np.int64)
    mapping[clusters] = classes
    return mapping


def merge_clusters(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """(classes, clusters) -> (classes, classes): the columns of each class's clusters added up."""
    merged = np.zeros((confusion.shape[0],) * 2, np.int64)
    np.add.at(merged.T, mapping, confusion.T)
    return merged
