"""Unsupervised segmentation: cluster the prototypes of a split's objects.

    python segmentation/kmeans.py --config_env configs/env.yml \\
        --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml [--num_seeds 5]
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

import numpy as np

from data.build import evaluation_loader
from data.voc import VOCSegmentation
from models.build import build_prototype_model
from segmentation.clustering import cluster_confusion, kmeans, match_clusters, merge_clusters, whiten
from segmentation.embedding import EmbeddedSplit, embed_split
from utils.config import add_config_arguments, load_config
from utils.errors import run_script
from utils.metrics import iou_of
from utils.pictures import panel, save_image, save_label_map
from utils.results import iou_entry, log_iou, save_results
from utils.runtime import place, prepare
from utils.schema import Kmeans

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('--num_seeds', type=int, help='runs of K-means; overrides the key of the config')
    return parser.parse_args(argv)


def write_predictions(p: Any, dataset: VOCSegmentation, split: EmbeddedSplit, rest: int, labels: np.ndarray) -> None:
    """Label maps of one run to ``predictions/``, the first few images to ``visualizations/``.

    Args:
        rest: class of the pixels outside the masks.
        labels: (N,) class of each image's mask.
    """
    output_dir = Path(p.output_dir)
    for index, name in enumerate(dataset.ids):
        prediction = np.where(split.mask(index), labels[index], rest).astype(np.uint8)
        save_label_map(prediction, output_dir / 'predictions' / f'{name}.png')
        if index < p.num_visualizations:
            sample = dataset.load(index)
            save_image(panel([sample['image'], sample['semseg'], prediction], ['image', 'ground truth', 'K-means']),
                       output_dir / 'visualizations' / f'{name}.png')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    overrides = args.overrides + ([] if args.num_seeds is None else [f'num_seeds={args.num_seeds}'])
    p = load_config(args.config_env, args.config_exp, Kmeans, overrides)
    device = prepare(p)

    from_network = p.saliency == 'network'
    loader, dataset = evaluation_loader(p, p.val_db_name, p.val_split, None if from_network else p.saliency)
    classes = dataset.classes
    model = build_prototype_model(p)
    place(model, device)
    split = embed_split(model, loader, device, len(classes), p.features, from_network, keep_masks=True)
    log.info('%d of %d images have a mask', np.count_nonzero(split.prototypes.any(1)), len(split.prototypes))

    points, runs = whiten(split.prototypes, p.seed), []
    for run in range(p.num_seeds):
        seed = p.seed + run
        clusters = kmeans(points, p.num_clusters, seed)
        confusion = cluster_confusion(split.inside, split.outside, clusters, p.num_clusters)
        mapping = match_clusters(confusion)
        runs.append(iou_of(merge_clusters(confusion, mapping)))
        if run == 0:
            drawn = mapping[0], mapping[clusters + 1]
        log.info('Run %d of %d (random_state %d):', run + 1, p.num_seeds, seed)
        log_iou(runs[-1], classes)
    log.info('Mean of %d runs (standard deviation of the mIoU %.2f):', len(runs), 100 * np.std(np.mean(runs, 1)))
    log_iou(np.mean(runs, 0), classes)
    write_predictions(p, dataset, split, *drawn)
    path = save_results({'kmeans': {
        **iou_entry(np.mean(runs, 0), classes), 'std': 100 * float(np.std(np.mean(runs, 1))),
        'num_clusters': p.num_clusters, 'runs': [iou_entry(iou, classes) for iou in runs]}}, Path(p.output_dir))
    log.info('Results: %s', path)


if __name__ == '__main__':
    run_script(main)
