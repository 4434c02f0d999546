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
from segmentation.objects import EmbeddedSplit, unpack
from utils.report.pictures import montage, overlay, thumbnail
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.parallel import in_threads

log = logging.getLogger(__name__)
SAMPLE = 5000  # points of the silhouette at most: it compares each with each
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of a contact sheet: objects, objects in a row, longer side of an image in pixels


def silhouette(points: np.ndarray, clusters: np.ndarray, seed: int) -> float:
    """Mean silhouette (Rousseeuw, 1987), -1..1, of at most 5,000 points; nan for one cluster or one a point."""
    if len(points) > SAMPLE:
        chosen = np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False)
        points, clusters = points[chosen], clusters[chosen]
    usable = 2 <= len(np.unique(clusters)) < len(points)
    return float(silhouette_score(points, clusters)) if usable else float('nan')


def suggest(silhouettes: dict[int, float]) -> int:
    """The number of clusters of greatest silhouette; of equal ones the smallest."""
    return max(sorted(silhouettes), key=lambda count: -np.inf if np.isnan(silhouettes[count]) else silhouettes[count])


def discover(prototypes: np.ndarray, counts: Sequence[int], num_seeds: int, seed: int,
             fit: np.ndarray | None = None) -> tuple[Whitening, Clustering, dict[int, float]]:
    """Cluster objects (N, D) without ground truth; those without a mask, all zero, are left aside.

    Of several numbers of clusters that of highest silhouette is taken, of its runs that of least inertia; ``fit``
    (M, D) are fitted on, if given. Returns also the silhouettes of all numbers. An object without a mask has cluster -1
    and an infinite distance. Raises UserError for more clusters than objects, or than label maps can hold.
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


def write_sheets(folder: Path, dataset: ImageSet, split: EmbeddedSplit, found: Clustering) -> list[tuple[str, Path]]:
    """A contact sheet of each cluster, cluster_<k>.jpg: its objects in colour, the most typical first."""
    def draw(index: int, label: int) -> np.ndarray:
        image = thumbnail(dataset.load(int(split.image[index]))['image'], SIDE)
        return overlay(image, resize_mask(unpack(split.masks[index]), *image.shape[1::-1]) * np.uint8(label))

    def write(cluster: int) -> tuple[str, Path]:
        members, path = np.flatnonzero(found.ids == cluster), folder / f'cluster_{cluster + 1}.jpg'
        nearest = members[found.distances[members].argsort(kind='stable')][:SHOWN]
        save_image(montage([draw(index, cluster + 1) for index in nearest], COLUMNS), path)
        return path.stem, path

    for old in folder.glob('cluster_*.jpg'):
        old.unlink()
    return list(in_threads(write, np.unique(found.ids[found.ids >= 0]).tolist()))
