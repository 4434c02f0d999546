"""Clusters of images without ground truth: how many to take, and a picture of each."""
from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import silhouette_score

from data.folder import ImageSet
from data.transforms import resize_mask
from segmentation.cluster_model import MAX_CLUSTERS
from segmentation.clustering import Clustering, Whitening, kmeans
from segmentation.objects import EmbeddedSplit
from utils.report.pictures import montage, overlay, thumbnail
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.parallel import available_cores, in_threads

log = logging.getLogger(__name__)
SAMPLE = 5000  # points of the silhouette at most: it compares each with each
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of a contact sheet: objects, objects in a row, longer side of an image in pixels


def best_run(points: np.ndarray, num_clusters: int, num_seeds: int, seed: int, fit: np.ndarray | None = None,
             unit: str = 'images') -> Clustering:
    """Of ``num_seeds`` runs of K-means the one of least inertia; arguments and errors as ``kmeans``."""
    runs = [kmeans(points, num_clusters, seed + run, fit, unit) for run in range(num_seeds)]
    return min(runs, key=lambda run: run.inertia)


def silhouette(points: np.ndarray, clusters: np.ndarray, seed: int) -> float:
    """Mean silhouette (Rousseeuw, 1987), -1..1, of at most 5,000 points; nan for one cluster or one a point."""
    if len(points) > SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False)
        points, clusters = points[chosen], clusters[chosen]
    if not 2 <= len(np.unique(clusters)) < len(points):
        return float('nan')
    return float(silhouette_score(points, clusters))


def suggest(silhouettes: dict[int, float]) -> int:
    """The number of clusters of greatest silhouette; of equal ones the smallest."""
    return max(sorted(silhouettes), key=lambda count: -np.inf if np.isnan(silhouettes[count]) else silhouettes[count])


@dataclass
class Discovery:
    """The clusters of N objects.

    whitening, centres: of the prototypes, (K, d) among them.
    ids: (N,) cluster of each object, -1 for one without a mask.
    distances: (N,) of each object to the centre of its cluster, infinite without a mask.
    silhouettes: of each number of clusters that was tried.
    """
    whitening: Whitening
    centres: np.ndarray
    ids: np.ndarray
    distances: np.ndarray
    silhouettes: dict[int, float]

    @property
    def sizes(self) -> list[int]:
        """Objects in each cluster."""
        return np.bincount(self.ids[self.ids >= 0], minlength=len(self.centres)).tolist()


def discover(prototypes: np.ndarray, numbers: Sequence[int], num_seeds: int, seed: int,
             fit: np.ndarray | None = None) -> Discovery:
    """Cluster objects without ground truth; those without a mask are left aside.

    Args:
        prototypes: (N, D), zero for objects without a mask.
        numbers: of clusters; of several the one of highest silhouette is taken.
        num_seeds: runs for each number, of which the best counts.
        fit: (M, D) prototypes to fit on; None: the same.

    Raises:
        UserError: there are more clusters than objects, or than label maps can hold.
    """
    if max(numbers) > MAX_CLUSTERS:
        raise UserError(f'num_clusters {max(numbers)} is more than label maps can hold; take at most {MAX_CLUSTERS}.')
    seen = prototypes.any(1)
    fit = prototypes[seen] if fit is None else fit[fit.any(1)]
    whitening = Whitening.fit(fit, seed)
    points, fit_points = whitening(prototypes[seen]), whitening(fit)
    runs = {number: best_run(points, number, num_seeds, seed, fit_points, 'objects with a mask')
            for number in sorted(set(numbers), reverse=True)}  # what cannot be clustered fails first
    # of the prototypes themselves: whitening makes the directions of noise as long as the others
    silhouettes = {number: silhouette(prototypes[seen], runs[number].ids, seed) for number in sorted(runs)}
    for number, value in silhouettes.items():
        log.info('Silhouette of %d clusters is %.3f', number, value)
    best = runs[suggest(silhouettes)]
    ids, distances = np.full(len(prototypes), -1), np.full(len(prototypes), np.inf)
    ids[seen] = best.ids
    distances[seen] = np.linalg.norm(points - best.centres[best.ids], axis=1)
    return Discovery(whitening, best.centres, ids, distances, silhouettes)


def write_sheets(folder: Path, dataset: ImageSet, split: EmbeddedSplit, found: Discovery) -> None:
    """A contact sheet of each cluster, cluster_<k>.jpg: its objects in colour, the most typical first."""
    def write(cluster: int) -> None:
        members = np.flatnonzero(found.ids == cluster)
        nearest = members[found.distances[members].argsort(kind='stable')][:SHOWN]
        if len(nearest):
            save_image(montage([_draw(dataset, split, index, cluster + 1) for index in nearest], COLUMNS),
                       folder / f'cluster_{cluster + 1}.jpg')

    for old in folder.glob('cluster_*.jpg'):
        old.unlink()
    cores = available_cores()
    for _ in in_threads(write, range(len(found.centres)), cores, 2 * cores):
        pass


def _draw(dataset: ImageSet, split: EmbeddedSplit, index: int, label: int) -> np.ndarray:
    image = thumbnail(dataset.load(int(split.image[index]))['image'], SIDE)
    mask = resize_mask(split.mask(index).astype(np.uint8), image.shape[1], image.shape[0])
    return overlay(image, mask * np.uint8(label))
