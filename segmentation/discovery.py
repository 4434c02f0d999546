"""Clusters of images without ground truth: how many to take, and a picture of each."""
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import silhouette_score

from data.image_set import ImageSet
from data.transforms import resize_mask
from segmentation.cluster_model import MAX_CLUSTERS
from segmentation.clustering import Clustering, Whitening, cluster
from segmentation.objects import EmbeddedSplit
from utils.report.pictures import montage, overlay, thumbnail
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.parallel import available_cores, in_threads

log = logging.getLogger(__name__)
SAMPLE = 5000  # points of the silhouette at most: it compares each with each
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of a contact sheet: objects, objects in a row, longer side of an image in pixels


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


def discover(prototypes: np.ndarray, counts: Sequence[int], num_seeds: int, seed: int,
             fit: np.ndarray | None = None) -> tuple[Whitening, Clustering, dict[int, float]]:
    """Cluster objects without ground truth; those without a mask are left aside.

    Args:
        prototypes: (N, D), zero for objects without a mask.
        counts: numbers of clusters, of which the one of highest silhouette is taken; of its runs that of least inertia.
        fit: (M, D) prototypes to fit on; None: the same.

    Returns:
        The clustering, where objects without a mask have cluster -1 and an infinite distance, and all silhouettes.

    Raises:
        UserError: there are more clusters than objects, or than label maps can hold.
    """
    if max(counts) > MAX_CLUSTERS:
        raise UserError(f'num_clusters {max(counts)} is more than label maps can hold; take at most {MAX_CLUSTERS}.')
    seen = prototypes.any(1)
    whitening, runs = cluster(prototypes[seen], counts, num_seeds, seed, None if fit is None else fit[fit.any(1)],
                              'objects with a mask')
    best = {count: min(runs[count], key=lambda run: run.inertia) for count in sorted(runs)}
    # of the prototypes themselves: whitening makes the directions of noise as long as the others
    silhouettes = {count: silhouette(prototypes[seen], run.ids, seed) for count, run in best.items()}
    for count, value in silhouettes.items():
        log.info('Silhouette of %d clusters is %.3f', count, value)
    chosen = best[suggest(silhouettes)]
    ids, distances = np.full(len(prototypes), -1), np.full(len(prototypes), np.inf)
    ids[seen], distances[seen] = chosen.ids, chosen.distances
    return whitening, chosen._replace(ids=ids, distances=distances), silhouettes


def write_sheets(folder: Path, dataset: ImageSet, split: EmbeddedSplit, found: Clustering) -> None:
    """A contact sheet of each cluster, cluster_<k>.jpg: its objects in colour, the most typical first."""
    def draw(index: int, label: int) -> np.ndarray:
        image = thumbnail(dataset.load(int(split.image[index]))['image'], SIDE)
        mask = resize_mask(split.mask(index).astype(np.uint8), image.shape[1], image.shape[0])
        return overlay(image, mask * np.uint8(label))

    def write(cluster: int) -> None:
        members = np.flatnonzero(found.ids == cluster)
        nearest = members[found.distances[members].argsort(kind='stable')][:SHOWN]
        if len(nearest):
            save_image(montage([draw(index, cluster + 1) for index in nearest], COLUMNS),
                       folder / f'cluster_{cluster + 1}.jpg')

    for old in folder.glob('cluster_*.jpg'):
        old.unlink()
    threads = available_cores()
    list(in_threads(write, range(len(found.centres)), threads, 2 * threads))
