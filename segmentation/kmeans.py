"""Unsupervised segmentation: cluster the prototypes of a split's objects.

    python segmentation/kmeans.py --config_env configs/env.yml \\
        --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml \\
        [--num_seeds 5] [--num_clusters 21 50 100 200 300 500]
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

from data.build import evaluation_loader, unlabelled_loader
from data.voc import VOCSegmentation
from models.build import build_prototype_model
from segmentation.clustering import ClusterScores, cluster_confusion, kmeans, match_clusters, score_clusters, whiten
from segmentation.embedding import EmbeddedSplit, embed_split
from utils.config import add_config_arguments, load_config
from utils.errors import run_script
from utils.pictures import panel, save_image, save_label_map
from utils.results import iou_entry, log_iou, save_arrays, save_results
from utils.runtime import place, prepare
from utils.schema import Kmeans

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('--num_seeds', type=int, help='runs of K-means; overrides the key of the config')
    parser.add_argument('--num_clusters', type=int, nargs='+', metavar='K',
                        help='clusters; several numbers print the over-clustering curve, a line each')
    args = parser.parse_args(argv)
    if args.num_seeds is not None:
        args.overrides.append(f'num_seeds={args.num_seeds}')
    if args.num_clusters is not None:
        first, several = args.num_clusters[0], args.num_clusters if len(args.num_clusters) > 1 else []
        args.overrides += [f'num_clusters={first}', f'overclustering={several}']
    return args


def write_predictions(p: Any, dataset: VOCSegmentation, split: EmbeddedSplit, rest: int, labels: np.ndarray) -> None:
    """Label maps of one run to ``predictions/``, the first few images to ``visualizations/``.

    Args:
        rest: class of the pixels outside the masks.
        labels: (N,) class of each object.
    """
    output_dir = Path(p.output_dir)
    for index, name in enumerate(dataset.ids):
        prediction = split.paint(index, labels, rest)
        save_label_map(prediction, output_dir / 'predictions' / f'{name}.png')
        if index < p.num_visualizations:
            sample = dataset.load(index)
            save_image(panel([sample['image'], sample['semseg'], prediction], ['image', 'ground truth', 'K-means']),
                       output_dir / 'visualizations' / f'{name}.png')


def summary(runs: Sequence[ClusterScores], num_clusters: int) -> dict[str, Any]:
    """{'num_clusters', 'mIoU', 'std', 'accuracy', 'accuracy_std', ...}: means and deviations over runs, in percent."""
    entry: dict[str, Any] = {'num_clusters': num_clusters}
    for name in runs[0].scalars:
        values = [100 * run.scalars[name] for run in runs]
        entry |= {name: float(np.mean(values)), 'std' if name == 'mIoU' else f'{name}_std': float(np.std(values))}
    return entry


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Kmeans, args.overrides)
    device = prepare(p)

    from_network = p.saliency == 'network'
    masks = None if from_network else p.saliency
    loader, dataset = evaluation_loader(p, p.val_db_name, p.val_split, masks)
    classes = dataset.classes
    model = build_prototype_model(p)
    place(model, device)
    options = {'features': p.features, 'from_network': from_network,
               'min_component': p.min_component if p.components else None}
    split = embed_split(model, loader, device, len(classes), keep_masks=True, **options)
    log.info('%d objects in %d images; %d have a mask', len(split), len(dataset),
             np.count_nonzero(split.prototypes.any(1)))
    save_arrays(Path(p.output_dir) / 'prototypes.npz', prototypes=split.prototypes, image=split.image,
                ids=np.array(dataset.ids))
    fit_prototypes = None
    if p.fit_split not in (None, p.val_split):
        fit_loader, _ = unlabelled_loader(p, p.val_db_name, p.fit_split, masks)
        fit_prototypes = embed_split(model, fit_loader, device, len(classes), **options).prototypes

    # all of K-means at once: what cannot be clustered fails before anything is printed
    points = whiten(split.prototypes, p.seed, fit_prototypes)
    fit_points = None if fit_prototypes is None else whiten(fit_prototypes, p.seed)
    results: dict[int, list[ClusterScores]] = {}
    for count in sorted({p.num_clusters, *p.overclustering}, reverse=True):
        results[count] = []
        for run in range(p.num_seeds):
            clusters = kmeans(points, count, p.seed + run, fit_points, 'objects' if p.components else 'images')
            confusion = cluster_confusion(split.inside, split.outside, clusters, count)
            mapping = match_clusters(confusion, p.matching)
            results[count].append(score_clusters(confusion, mapping))
            if run == 0 and count == p.num_clusters:
                drawn = mapping[0], mapping[clusters + 1]

    runs = results[p.num_clusters]
    for run, scores in enumerate(runs):
        log.info('Run %d of %d (random_state %d):', run + 1, p.num_seeds, p.seed + run)
        log_iou(scores.iou, classes)
    iou, deviation = np.mean([run.iou for run in runs], 0), np.std([run.iou for run in runs], 0)
    entry = summary(runs, p.num_clusters)
    log.info('Mean of %d runs:', len(runs))
    log_iou(iou, classes)
    log.info('Standard deviation of the mIoU is %.2f', entry['std'])
    for name, title in (('accuracy', 'Pixel accuracy'), ('NMI', 'NMI'), ('ARI', 'ARI')):
        log.info('%s is %.2f (standard deviation %.2f)', title, entry[name], entry[f'{name}_std'])
    curve = [summary(results[count], count) for count in p.overclustering]
    for point in curve:
        log.info('%d clusters: mIoU %.2f (standard deviation %.2f), pixel accuracy %.2f, NMI %.2f, ARI %.2f',
                 *(point[name] for name in ('num_clusters', 'mIoU', 'std', 'accuracy', 'NMI', 'ARI')))
    write_predictions(p, dataset, split, *drawn)
    path = save_results({
        'kmeans': {**iou_entry(iou, classes), **entry,
                   'IoU_std': {name: 100 * float(value) for name, value in zip(classes, deviation, strict=True)},
                   'runs': [{**iou_entry(run.iou, classes),
                             **{name: 100 * value for name, value in run.scalars.items()}} for run in runs]},
        **({'overclustering': curve} if curve else {})}, Path(p.output_dir))
    log.info('Results: %s', path)


if __name__ == '__main__':
    run_script(main)
