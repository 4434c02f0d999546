"""Unsupervised segmentation: cluster the prototypes of a split's objects.

    python segmentation/kmeans.py --config_env configs/env.yml \\
        --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml \\
        --num_seeds 5 --num_clusters 21 50 100

With ground truth clusters are matched to classes and scored, for each number of clusters. A plain folder of
images has none: of several numbers of clusters (``--num_clusters 5-20``) the one of highest silhouette is taken,
each cluster is drawn to clusters/, and clusters.yml takes names for them. Label maps go to predictions/, and
what segmentation/predict.py needs for new images to clusters.pth.tar.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

import numpy as np
from torch.utils.data import DataLoader

from data.folder import ImageSet
from data.loaders import evaluation_loader, has_ground_truth, identity, unlabelled_loader
from models.build import build_prototype_model, prototype_network
from models.segmentation import BackboneModel, ContrastiveSegmentationModel
from segmentation.cluster_model import NAMES, ClusterModel, put_names_aside, same_clusters, write_names
from segmentation.clustering import (
    ClusterScores,
    Whitening,
    cluster_confusion,
    kmeans,
    match_clusters,
    merge_clusters,
    score_clusters,
)
from segmentation.discovery import discover, write_sheets
from segmentation.metrics import standard_deviation
from segmentation.objects import EmbeddedSplit, embed_split
from segmentation.provenance import made_with_network
from utils.config.cli import ArgumentParser
from utils.config.load import add_config_arguments, as_dict, load_config
from utils.config.schema import Kmeans
from utils.report.pictures import panel
from utils.report.results import iou_entry, log_iou, remove_stale, save_results
from utils.report.run import write_run_report
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.files import save_arrays, save_image, save_label_map
from utils.run.launch import add_process_arguments, start_processes
from utils.run.log import warn_of_failure
from utils.run.parallel import available_cores, in_threads
from utils.run.script import run_script
from utils.run.setup import prepare

log = logging.getLogger(__name__)


# clusters, (N,) label of each object, results.json, confusion matrices for the report
Found = tuple[ClusterModel, np.ndarray, dict[str, Any], dict[str, np.ndarray]]


def counts(text: str) -> list[int]:
    """'7' -> [7], '5-8' -> [5, 6, 7, 8]. Raises UserError for anything else."""
    first, dash, last = text.partition('-')
    if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
        raise UserError(f'--num_clusters {text} is no number of clusters; give some, such as 12, or a range, such as '
                        '5-20.')
    return list(range(int(first), int(last or first) + 1))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_config_arguments(parser, Kmeans)
    add_process_arguments(parser)
    parser.add_argument('--num_seeds', type=int, help='runs of K-means; overrides the key of the config')
    parser.add_argument('--num_clusters', '--num-clusters', type=counts, nargs='+', metavar='K',
                        help='clusters; several numbers, or a range such as 5-20, print the over-clustering curve, a '
                             'line each, or without ground truth take the number of highest silhouette')
    args = parser.parse_args(argv)
    if args.num_seeds is not None:
        args.overrides.append(f'num_seeds={args.num_seeds}')
    if args.num_clusters is not None:
        numbers = [count for several in args.num_clusters for count in several]
        args.overrides += [f'num_clusters={numbers[0]}', f'overclustering={numbers if len(numbers) > 1 else []}']
    return args


def write_predictions(p: Any, dataset: ImageSet, split: EmbeddedSplit, rest: int, labels: np.ndarray) -> None:
    """Label maps of one run to ``predictions/``; with ground truth the first few images to ``visualizations/``.

    Args:
        rest: label of the pixels outside the masks.
        labels: (N,) label of each object.
    """
    output_dir = Path(p.output_dir)

    def write(index: int) -> None:
        name, prediction = dataset.ids[index], split.paint(index, labels, rest)
        save_label_map(prediction, output_dir / 'predictions' / f'{name}.png')
        sample = dataset.load(index) if index < p.num_visualizations else {}
        if 'semseg' in sample:
            save_image(panel([sample['image'], sample['semseg'], prediction], ['image', 'ground truth', 'K-means']),
                       output_dir / 'visualizations' / f'{name}.png')

    for folder, names in (('predictions', dataset.ids), ('visualizations', dataset.ids[:p.num_visualizations])):
        remove_stale(output_dir / folder, names)
    cores = available_cores()
    for _ in in_threads(write, range(len(dataset)), cores, 2 * cores):
        pass


def save_clusters(p: Any, model: ContrastiveSegmentationModel | BackboneModel, clusters: ClusterModel,
                  network: Mapping[str, Any], sizes: Sequence[int]) -> None:
    """Write clusters.pth.tar for predict.py; for clusters without classes also clusters.yml, for their names.

    Args:
        network: see ``prototype_network``.
        sizes: objects in each cluster.
    """
    if p.pretraining == 'none' or not isinstance(model, ContrastiveSegmentationModel) \
            or model.classification_head is None:
        log.info('No clusters.pth.tar: new images need a trained network that predicts their masks')
        return
    if p.saliency != 'network':
        log.warning('These clusters are those of precomputed masks (%s), and new images get predicted ones', p.saliency)
    path = Path(p.output_dir) / 'clusters.pth.tar'
    names = path.with_name(NAMES)
    if clusters.classes is None:
        if not names.is_file() or not same_clusters(path, clusters):
            before = put_names_aside(names)
            if before is not None:
                log.info('The clusters are not those of before: their names are now in %s', before)
            write_names(names, sizes)
        log.info('Names of the clusters, for you to edit: %s', names)
    replace(clusters, network=dict(network)).save(path)
    log.info('For new images: python segmentation/predict.py --model %s --images FOLDER --output FOLDER', path)


def summary(runs: Sequence[ClusterScores], num_clusters: int, classes: Sequence[str],
            present: np.ndarray | None = None) -> dict[str, Any]:
    """The JSON entry of several runs, in percent.

    Returns:
        'num_clusters'; means and standard deviations (None of one run) over the 'num_runs' runs: 'mIoU', 'std',
        'accuracy', 'accuracy_std', ..., 'IoU' and 'IoU_std' {class: IoU}; 'runs': the results of each.
    """
    iou = np.array([run.iou for run in runs])
    entry: dict[str, Any] = {'num_clusters': num_clusters, 'num_runs': len(runs),
                             **iou_entry(iou.mean(0), classes, present)}
    entry |= {'IoU_std': {name: standard_deviation(100 * values) for name, values in zip(classes, iou.T, strict=True)},
              'runs': [{**iou_entry(run.iou, classes, present),
                        **{name: 100 * value for name, value in run.scalars.items()}} for run in runs]}
    for name in runs[0].scalars:
        values = [100 * run.scalars[name] for run in runs]
        entry |= {name: float(np.mean(values)), 'std' if name == 'mIoU' else f'{name}_std': standard_deviation(values)}
    return entry


def _spread(deviation: float | None) -> str:
    return '' if deviation is None else f' (standard deviation {deviation:.2f})'


def evaluate(p: Any, dataset: ImageSet, split: EmbeddedSplit, fit: np.ndarray | None) -> Found:
    """Match clusters to classes and score them, over all runs and numbers of clusters.

    Args:
        fit: (M, D) prototypes that K-means is fitted on; None: those of the split.
    """
    # all of K-means at once: what cannot be clustered fails before anything is printed
    whitening = Whitening.fit(split.prototypes if fit is None else fit, p.seed)
    points = whitening(split.prototypes)
    fit_points = None if fit is None else whitening(fit)
    classes, present = dataset.classes, split.inside.sum(0) + split.outside.sum(0) > 0
    results: dict[int, list[ClusterScores]] = {}
    for count in sorted({p.num_clusters, *p.overclustering}, reverse=True):
        results[count] = []
        for run in range(p.num_seeds):
            found = kmeans(points, count, p.seed + run, fit_points, 'objects' if p.components else 'images')
            confusion = cluster_confusion(split.inside, split.outside, found.ids, count)
            mapping = match_clusters(confusion, p.matching)
            results[count].append(score_clusters(confusion, mapping))
            if run == 0 and count == p.num_clusters:
                first, table, first_confusion = found, mapping, merge_clusters(confusion, mapping)

    runs = results[p.num_clusters]
    for run, scores in enumerate(runs):
        log.info('Run %d of %d (random_state %d):', run + 1, p.num_seeds, p.seed + run)
        log_iou(scores.iou, classes, present)
    entry = summary(runs, p.num_clusters, classes, present)
    log.info('Mean of %d runs:', len(runs))
    log_iou(np.mean([run.iou for run in runs], 0), classes, present)
    if entry['std'] is not None:
        log.info('Standard deviation of the mIoU is %.2f', entry['std'])
    for name, title in (('accuracy', 'Pixel accuracy'), ('NMI', 'NMI'), ('ARI', 'ARI')):
        log.info('%s is %.2f%s', title, entry[name], _spread(entry[f'{name}_std']))
    curve = [summary(results[count], count, classes, present) for count in p.overclustering]
    for point in curve:
        log.info('%d clusters: mIoU %.2f%s, pixel accuracy %.2f, NMI %.2f, ARI %.2f', point['num_clusters'],
                 point['mIoU'], _spread(point['std']), point['accuracy'], point['NMI'], point['ARI'])
    return ClusterModel(whitening, first.centres, table, classes, {}), table[first.ids + 1], {
        'kmeans': entry, **({'overclustering': curve} if curve else {})}, {'kmeans': first_confusion}


def explore(p: Any, dataset: ImageSet, split: EmbeddedSplit, fit: np.ndarray | None) -> Found:
    """Cluster what has no ground truth and draw each cluster; ``fit`` as in ``evaluate``."""
    found = discover(split.prototypes, p.overclustering or [p.num_clusters], p.num_seeds, p.seed, fit)
    number = len(found.centres)
    if p.overclustering:
        log.info('Taking %d clusters, whose silhouette is highest; --num_clusters N with --set output_dir=NAME takes '
                 'another number', number)
    log.info('Objects in each cluster: %s', ', '.join(f'{k}: {size}' for k, size in enumerate(found.sizes, 1)))
    sheets = Path(p.output_dir) / 'clusters'
    with warn_of_failure(str(sheets)):
        write_sheets(sheets, dataset, split, found)
        log.info('Pictures of each cluster: %s', sheets)
    silhouettes = {str(k): None if np.isnan(value) else value for k, value in found.silhouettes.items()}
    return ClusterModel(found.whitening, found.centres, np.arange(number + 1), None, {}), found.ids + 1, {
        'clusters': {'num_clusters': number, 'sizes': found.sizes, 'silhouette': silhouettes}}, {}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Kmeans, args.overrides)
    if start_processes(args.nproc, p.device, __file__, argv):
        return
    device = prepare(p, identity(p, p.val_db_name))

    labelled = has_ground_truth(p, p.val_db_name)
    from_network = p.saliency == 'network'
    masks = None if from_network else p.saliency
    open_split: Callable[..., tuple[DataLoader, ImageSet]] = evaluation_loader if labelled else unlabelled_loader
    model = build_prototype_model(p)
    mean, std = model.backbone.mean, model.backbone.std
    loader, dataset = open_split(p, p.val_db_name, p.val_split, mean, std, masks)
    to_device(model, device)
    options = {'features': p.features, 'from_network': from_network,
               'min_component': p.min_component if p.components else None}
    split = embed_split(model, loader, device, len(dataset.classes), keep_masks=True, **options)
    log.info('%d objects in %d images; %d have a mask', len(split), len(dataset),
             np.count_nonzero(split.prototypes.any(1)))
    fit = None
    if p.fit_split not in (None, p.val_split):
        fit_loader, _ = unlabelled_loader(p, p.val_db_name, p.fit_split, mean, std, masks, skip=True)
        fit = embed_split(model, fit_loader, device, len(dataset.classes), **options).prototypes
    if not distributed.leave():
        return
    clusters, labels, results, confusions = (evaluate if labelled else explore)(p, dataset, split, fit)
    save_arrays(Path(p.output_dir) / 'prototypes.npz', prototypes=split.prototypes, image=split.image,
                ids=np.array(dataset.ids), clusters=clusters.assign(split.prototypes), labels=split.majority(),
                classes=np.array(dataset.classes))
    write_predictions(p, dataset, split, int(clusters.labels[0]), labels)
    network = prototype_network(p, model)
    made = made_with_network(network, dataset)
    results = {task: {**entry, 'made_with': made} if isinstance(entry, dict) else entry
               for task, entry in results.items()}
    path = save_results(results, Path(p.output_dir))
    save_clusters(p, model, clusters, network, results.get('clusters', {}).get('sizes', []))
    log.info('Label maps: %s; results: %s', Path(p.output_dir) / 'predictions', path)
    write_run_report(as_dict(p), 'K-means', dataset.classes, confusions)


if __name__ == '__main__':
    run_script(main)
