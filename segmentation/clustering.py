"""Whitening and K-means on prototypes, the matching of clusters to classes, and its scores."""
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.utils import gen_batches

from segmentation.metrics import iou_matrix, iou_of
from utils.run.errors import UserError, name_some

log = logging.getLogger(__name__)
DIMENSIONS = 32
BACKGROUND = 'background'
EMPTY = 1e-9  # share of the greatest variance below which a direction holds rounding alone
DISTANCES = 2 ** 22  # of points to centres in memory at a time
SAMPLE = 5000  # points of the silhouette at most: it compares each with each


@dataclass
class Whitening:
    """PCA with whitening, fitted once and kept: (N, D) -> (N, d), (x - mean) @ projection, d at most 32.

    Directions in which the fitted points do not differ are left out: whitening would blow up nothing but rounding.
    """
    mean: np.ndarray  # (D,) float64
    projection: np.ndarray  # (D, d) float64

    @classmethod
    def fit(cls, prototypes: np.ndarray, seed: int, whiten: bool = True) -> 'Whitening':
        """Of (M, D) prototypes; ``seed``: of the randomised solver that scikit-learn takes for many dimensions.

        Without ``whiten`` the directions keep their variances.
        """
        with np.errstate(invalid='ignore'):  # the shares of a variance of 0, which are not used
            pca = PCA(min(DIMENSIONS, *prototypes.shape), random_state=seed).fit(prototypes.astype(np.float64))
        variance = pca.explained_variance_
        kept = max(1, int((variance > EMPTY * variance[0]).sum()))
        scale = np.sqrt(np.where(variance > 0, variance, 1)) if whiten else 1  # 1: points that are all the same
        return cls(pca.mean_, (pca.components_.T / scale)[:, :kept])

    def __call__(self, prototypes: np.ndarray) -> np.ndarray:
        return (prototypes - self.mean) @ self.projection


class Clustering(NamedTuple):
    """One run of K-means on N points."""
    ids: np.ndarray  # (N,) cluster of each
    distances: np.ndarray  # (N,) squared, to its centre
    centres: np.ndarray  # (K, d)
    inertia: float


def parts(points: np.ndarray, centres: np.ndarray) -> Iterator[slice]:
    """Slices of the points, whose distances to all centres are few enough to be in memory together."""
    return gen_batches(len(points), max(1, DISTANCES // len(centres)))


def nearest_centre(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, d), (K, d) -> (N,) the nearest centre and (N,) its squared distance, whatever the other points are."""
    nearest, distances = np.empty(len(points), np.int64), np.empty(len(points))
    for part in parts(points, centres):
        squared = cdist(points[part], centres, 'sqeuclidean')
        nearest[part], distances[part] = squared.argmin(1), squared.min(1)
    return nearest, distances


def kmeans(points: np.ndarray, num_clusters: int, seed: int, fit: np.ndarray | None = None,
           unit: str = 'images') -> Clustering:
    """Mini-batch K-means (batch 1000, 3 starts) of (N, d) points, fitted on ``fit`` (M, d) if given, K at least."""
    fit = points if fit is None else fit
    if len(fit) < num_clusters:
        raise UserError(f'{len(fit)} {unit} cannot form num_clusters {num_clusters}; lower num_clusters or take a '
                        'larger split.')
    model = MiniBatchKMeans(num_clusters, batch_size=1000, n_init=3, random_state=seed).fit(fit)
    return Clustering(*nearest_centre(points, model.cluster_centers_), model.cluster_centers_, float(model.inertia_))


def cluster(prototypes: np.ndarray, counts: Iterable[int], num_seeds: int, seed: int, fit: np.ndarray | None = None,
            unit: str = 'images', whiten: bool = True) -> tuple[Whitening, dict[int, list[Clustering]]]:
    """PCA once, then ``num_seeds`` runs of K-means, random_state ``seed``, ``seed`` + 1, ..., for each count.

    PCA whitens, unless ``whiten`` is False. Both are fitted on the prototypes (N, D), or on those of ``fit`` (M, D).
    Raises UserError for fewer than clusters, a ``unit`` each, of the greatest count first.
    """
    whitening = Whitening.fit(prototypes if fit is None else fit, seed, whiten)
    points, fit_points = whitening(prototypes), None if fit is None else whitening(fit)
    return whitening, {count: [kmeans(points, count, seed + run, fit_points, unit) for run in range(num_seeds)]
                       for count in sorted(set(counts), reverse=True)}


def silhouette(points: np.ndarray, clusters: np.ndarray, seed: int) -> float:
    """Mean silhouette (Rousseeuw, 1987), -1..1, of at most 5,000 points; nan for one cluster or one a point."""
    if len(points) > SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False)
        points, clusters = points[chosen], clusters[chosen]
    usable = 2 <= len(np.unique(clusters)) < len(points)
    return float(silhouette_score(points, clusters)) if usable else float('nan')


def best_count(points: np.ndarray, runs: Mapping[int, Clustering], seed: int) -> tuple[int, dict[int, float]]:
    """The number of clusters whose run has the highest ``silhouette``, of equals the first, and that of each number."""
    silhouettes = {count: silhouette(points, run.ids, seed) for count, run in runs.items()}
    for count, value in silhouettes.items():
        log.info('Silhouette of %d clusters is %.3f', count, value)
    return max(runs, key=lambda count: np.nan_to_num(silhouettes[count], nan=-2)), silhouettes


def match_clusters(confusion: np.ndarray, matching: str = 'majority',
                   by: Callable[[np.ndarray], np.ndarray] = iou_matrix) -> np.ndarray:
    """(clusters,) the class of each cluster: one to one, by the assignment of greatest total IoU, or another score.

    With more clusters than classes, 'majority' gives each cluster the class of highest IoU; 'hungarian' is the
    assignment in which a class may take up to ceil(clusters / classes) clusters.
    """
    scores = by(confusion)
    num_classes, num_clusters = scores.shape
    if num_clusters > num_classes and matching == 'majority':
        return scores.argmax(0)
    rows, clusters = linear_sum_assignment(np.tile(scores, (-(-num_clusters // num_classes), 1)), maximize=True)
    return rows[clusters.argsort()] % num_classes


def merge_clusters(confusion: np.ndarray, mapping: np.ndarray) -> np.ndarray:
    """(classes, clusters) -> (classes, classes): the columns of each class's clusters added up."""
    return confusion @ np.eye(len(confusion), dtype=np.int64)[mapping]


def placeholders(count: int) -> list[str]:
    return [BACKGROUND, *(f'cluster_{k}' for k in range(1, count + 1))]


def is_matched(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether labels are clusters without names, which the ground truth gives classes to."""
    return list(names) == placeholders(len(names) - 1) and not set(names) <= set(classes)


def require_known(names: Sequence[str], classes: Sequence[str]) -> None:
    """Raises UserError unless labels are placeholders, or have names of classes."""
    if not is_matched(names, classes) and (unknown := sorted(set(names) - set(classes))):
        raise UserError(f'labels are named {name_some(unknown)}, which are no classes of the scored data set '
                        f'({name_some(classes, 21)}); correct the names beside label maps or model (classes.yml), and '
                        'leave out eval_classes.')


def merge_labels(confusion: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(classes, labels) -> (classes, classes): labels by name, placeholders by match; UserError for an unknown name."""
    require_known(names, classes)
    if is_matched(names, classes):
        return merge_clusters(confusion, match_clusters(confusion))
    return merge_clusters(confusion, np.array([*map(classes.index, names)]))


def normalized_mutual_information(contingency: np.ndarray) -> float:
    """NMI (arithmetic mean of the entropies), 0..1, from pixel counts (classes, clusters)."""
    if np.count_nonzero(contingency) <= 1:  # one class and one cluster
        return 1.0
    apart = entropy(contingency.sum(0)) + entropy(contingency.sum(1))
    return float(2 * (apart - entropy(contingency.ravel())) / apart)


def adjusted_rand_index(contingency: np.ndarray) -> float:
    """ARI, at most 1, from pixel counts (classes, clusters); in Python integers, whose pairs cannot overflow."""
    def pairs(counts: np.ndarray) -> int:
        return sum(n * (n - 1) // 2 for n in counts.ravel().tolist())

    together, by_class, by_cluster, every = map(pairs, (contingency, contingency.sum(1), contingency.sum(0),
                                                        contingency.sum()))
    if by_class == by_cluster == together:  # the same partition
        return 1.0
    # (together - expected) / (mean - expected), expected = by_class * by_cluster / every, all times 2 * every
    expected = 2 * by_class * by_cluster
    return (2 * together * every - expected) / ((by_class + by_cluster) * every - expected)


def score_clusters(merged: np.ndarray) -> dict[str, float]:
    """'mIoU', 'accuracy', 'NMI' and 'ARI', 0..1, of clusters merged into classes, which count as one, as published."""
    return {'mIoU': float(iou_of(merged).mean()), 'accuracy': float(np.trace(merged) / merged.sum()),
            'NMI': normalized_mutual_information(merged), 'ARI': adjusted_rand_index(merged)}
