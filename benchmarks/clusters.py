"""What clusters and an index of a million images cost: seconds, and the peak memory of a process for each.

    python benchmarks/clusters.py --images 1000000 --clusters 21 500

Prototypes of unit length and masks of 512 x 512 pixels are made up; making them is not timed, their memory counts.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from benchmarks.evaluation import DIMENSION, Drawing, Stopwatch, measured, nothing, search_ours, units
from segmentation.clustering import cluster, nearest_centre, silhouette
from segmentation.objects import MaskFile, pack, unpack
from utils.config.cli import ArgumentParser
from utils.run.script import run_script

DRAWN = 100  # different masks


def clustered(images: int, clusters: int) -> tuple[float, None]:
    """PCA and one run of K-means, whose last pass assigns."""
    watch, prototypes = Stopwatch(), units(images, 0)
    with watch:
        cluster(prototypes, [clusters], 1, 0)
    return watch.seconds, None


def assigned(images: int, clusters: int) -> tuple[float, None]:
    watch, prototypes, centres = Stopwatch(), units(images, 0), units(clusters, 1)
    with watch:
        nearest_centre(prototypes, centres)
    return watch.seconds, None


def scored(images: int, clusters: int) -> tuple[float, None]:
    watch, prototypes, ids = Stopwatch(), units(images, 0), np.random.default_rng(0).integers(0, clusters, images)
    with watch:
        silhouette(prototypes, ids, 0)
    return watch.seconds, None


def stored(images: int) -> tuple[float, None]:
    """Masks to a file and back, one after the other."""
    watch, masks, drawn = Stopwatch(), MaskFile(), [Drawing(i).mask for i in range(DRAWN)]
    with watch:
        masks.extend(pack(drawn[i % DRAWN]) for i in range(images))
        for mask in masks:
            unpack(mask)
    return watch.seconds, None


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=int, default=10 ** 6, help='with an object each')
    parser.add_argument('--clusters', type=int, nargs='+', default=[21, 500], help='numbers of them')
    parser.add_argument('--queries', type=int, default=10_000, help='objects that are looked up in the index')
    args = parser.parse_args(argv)
    print(f'{args.images:,} prototypes of {DIMENSION} dimensions; {measured(nothing)[2]:.0f} MB of the memory are the '
          'libraries.')
    parts = {'PCA and K-means': clustered, 'nearest centre': assigned, 'silhouette': scored}
    rows = [(f'{name}, {k} clusters', part, (args.images, k)) for k in args.clusters for name, part in parts.items()]
    rows += [('masks, kept and read', stored, (args.images,)),
             (f'index, {args.queries:,} queries, exact', search_ours, (args.queries, args.images, 1))]
    for name, part, given in rows:
        seconds, _, peak = measured(part, *given)
        print(f'| {name:<36} | {seconds:9.2f} s | {peak:6.0f} MB |', flush=True)


if __name__ == '__main__':
    run_script(main)
