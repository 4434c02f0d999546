"""Unsupervised segmentation: cluster the prototypes of a split's objects.

    python segmentation/kmeans.py --config_env configs/env.yml \\
        --config_exp configs/kmeans/kmeans_VOCSegmentation_supervised_saliency.yml \\
        --num_seeds 5 --num_clusters 20 50 100

With ground truth clusters are matched to classes and scored, for each number of clusters. An unlabelled
image folder has none: of several numbers of clusters (``--num_clusters 5-20``) the one of highest silhouette is taken,
each cluster is drawn to clusters/, and clusters.yml takes names for them. Label maps go to predictions/, and
what segmentation/predict.py needs for new images to clusters.pth.tar.
"""
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from data.image_set import ImageSet
from data.label_maps import whole_label_maps
from data.loaders import evaluation_loader, identity, open_images
from data.transforms import resize_mask
from models.build import build_prototype_model, prototype_network
from segmentation.cluster_model import CLUSTERS, NAMES, ClusterModel, renew_names
from segmentation.clustering import best_count, cluster, match_clusters, merge_clusters, placeholders, score_clusters
from segmentation.metrics import iou_of, made_with_network, standard_deviation
from segmentation.objects import KEPT, MASKS, EmbeddedSplit, embed_split, save_masks, unpack
from utils.config.cli import ConfigParser
from utils.config.schema import Kmeans
from utils.report.folder import read_settings
from utils.report.pictures import montage, overlay, panel, thumbnail
from utils.report.results import iou_entry, log_iou, save_results
from utils.report.run import CLUSTER_IMAGES, PREDICTIONS, write_run_report
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.files import remove_stale, save_arrays, save_image, save_label_map
from utils.run.log import warn_of_failure
from utils.run.parallel import in_threads
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of a contact sheet: objects, objects in a row, longer side of an image in pixels
LOW_IOU = 0.75  # of predicted masks with precomputed ones: below it clusters of the former are far worse
MAX_CLUSTERS = 254  # label maps hold a byte a pixel, 0 is the background and 255 the ignore label
# clusters, the (N,) cluster of each object (-1: none), and for results.json and the report the entries, the confusion
# matrices and the pictures of clusters
Found = tuple[ClusterModel, np.ndarray, dict[str, Any], dict[str, np.ndarray], list[tuple[str, Path]]]


def cluster_counts(text: str) -> list[int]:
    """'7' -> [7], '5-8' -> [5, 6, 7, 8]. Raises UserError for anything else."""
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
    counts = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
    if not counts:
        raise UserError(f'--num_clusters {text} is no number of clusters; give some, such as 12, or a range, such as '
                        '5-20.')
    return list(counts)


def write_predictions(output_dir: Path, ids: Sequence[str], split: EmbeddedSplit, labels: np.ndarray, background: int,
                      names: Sequence[str]) -> dict[str, Path]:
    """Write predictions/ID.png, see ``paint``, and {ID: visualizations/ID.png} of labelled images with pictures.

    ``names`` are those of the labels.
    """
    drawn = {name: output_dir / 'visualizations' / f'{name}.png'
             for name, pictures in zip(ids, split.pictures, strict=True) if len(pictures) == 2}

    def write(index: int) -> None:
        name, prediction = ids[index], split.paint(index, labels, background)
        save_label_map(prediction, output_dir / 'predictions' / f'{name}.png')
        if name in drawn:
            save_image(panel([*split.pictures[index], prediction], ['image', 'ground truth', 'K-means']), drawn[name])

    remove_stale(output_dir / 'visualizations', drawn)
    with whole_label_maps(output_dir / 'predictions', ids, names):
        list(in_threads(write, range(len(ids))))
    return drawn


def write_sheets(folder: Path, dataset: ImageSet, split: EmbeddedSplit, objects: np.ndarray,
                 clusters: np.ndarray) -> list[tuple[str, Path]]:
    """A contact sheet of each cluster, cluster_<k>.jpg: the first of its objects, of these with their ``clusters``."""
    def write(cluster: int) -> tuple[str, Path]:
        path, pictures = folder / f'cluster_{cluster + 1}.jpg', []
        for index in objects[clusters == cluster][:SHOWN]:
            image = thumbnail(dataset.load(int(split.image[index]))['image'], SIDE)
            mask = resize_mask(unpack(split.masks[index]), *image.shape[1::-1])
            pictures.append(overlay(image, mask * np.uint8(cluster + 1)))
        save_image(montage(pictures, COLUMNS), path)
        return path.stem, path

    for old in folder.glob('cluster_*.jpg'):
        old.unlink()
    return list(in_threads(write, np.unique(clusters).tolist()))


def save_clusters(p: Kmeans, clusters: ClusterModel, sizes: Sequence[int]) -> None:
    """Write clusters.pth.tar and, for clusters without classes, clusters.yml, for their names beside their sizes."""
    path, method = Path(p.output_dir) / CLUSTERS, clusters.network['mask_method']
    if clusters.classes is None:
        renew_names(path.parent, clusters, sizes)
        log.info('Names of the clusters, for you to edit: %s', path.with_name(NAMES))
    clusters.save(path)
    log.info('For new images: python segmentation/predict.py --model %s --images FOLDER --output FOLDER%s', path,
             '' if p.saliency == 'network' or method == 'unsupervised' else ' --masks FOLDER')


def describe_masks(dataset: ImageSet, split: EmbeddedSplit) -> dict[str, Any]:
    """What clusters.pth.tar says of precomputed masks, None where it is not known: method, mean IoU of predicted ones.

    Warns if this is low.
    """
    method, iou = None, None if np.isnan(split.mask_iou) else split.mask_iou
    if dataset.masks is not None:
        with suppress(UserError):  # another script's report.json says nothing
            method = (read_settings(dataset.masks) or {}).get('method')
    if iou is not None:
        log.info('Mean IoU of the masks that the network predicts with those of %s is %.3f', dataset.masks, iou)
        if iou < LOW_IOU:
            log.warning('The network predicts other masks than those that these clusters are of: segment new images '
                        'with masks made as these were (segmentation/predict.py --masks), and do not cluster with '
                        'predicted ones (saliency: network)%s', '' if method == 'maskcontrast' else
                        '; saliency/predict.py --method maskcontrast predicts better ones, at the size of the training')
    return {'mask_method': method, 'mask_iou': iou}


def summary(runs: Sequence[np.ndarray], num_clusters: int, classes: Sequence[str]) -> dict[str, Any]:
    """The JSON entry, in percent, of several runs, (classes, classes) pixel counts each.

    Means and standard deviations (None of one run) over the runs: 'mIoU', 'std', 'accuracy', 'accuracy_std', ...,
    'IoU' and 'IoU_std' {class: IoU}; 'runs' holds the results of each.
    """
    iou, present = np.array([*map(iou_of, runs)]), runs[0].sum(1) > 0
    scores = [{name: 100 * value for name, value in score_clusters(run).items()} for run in runs]
    entry = {'num_clusters': num_clusters, 'num_runs': len(runs), **iou_entry(iou.mean(0), classes, present),
             'IoU_std': {name: standard_deviation(100 * values) for name, values in zip(classes, iou.T, strict=True)},
             'runs': [iou_entry(one, classes, present) | scalars for one, scalars in zip(iou, scores, strict=True)]}
    for name in scores[0]:
        values = [run[name] for run in scores]
        entry |= {name: float(np.mean(values)), 'std' if name == 'mIoU' else f'{name}_std': standard_deviation(values)}
    return entry


def evaluate(p: Kmeans, dataset: ImageSet, split: EmbeddedSplit, fit: np.ndarray | None,
             network: Mapping[str, Any]) -> Found:
    """Match clusters to classes and score them, over all runs and numbers of clusters.

    ``fit`` (M, D) are the prototypes to fit on, by default those of the split; ``network``: see ``prototype_network``.
    """
    whitening, found = cluster(split.prototypes, [p.num_clusters, *p.overclustering], p.num_seeds, p.seed, fit,
                               'objects' if p.components else 'images', p.whiten)

    def match(ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        confusion = split.confusion(ids + 1, count + 1)
        labels = match_clusters(confusion, p.matching)
        return labels, merge_clusters(confusion, labels)

    matched = {k: [match(run.ids, k) for run in runs] for k, runs in found.items()}
    entries = {k: summary([merged for _, merged in runs], k, dataset.classes) for k, runs in matched.items()}
    entry = entries[p.num_clusters]
    for number, run in enumerate(entry['runs']):
        log.info('Run %d of %d (random_state %d):', number + 1, p.num_seeds, p.seed + number)
        log_iou(run)
    log.info('Mean of %d runs:', p.num_seeds)
    log_iou(entry)
    spread = ' (standard deviation {:.2f})' if p.num_seeds > 1 else ''
    if spread:
        log.info('Standard deviation of the mIoU is %.2f', entry['std'])
    for name, title in (('accuracy', 'Pixel accuracy'), ('NMI', 'NMI'), ('ARI', 'ARI')):
        log.info('%s is %.2f%s', title, entry[name], spread.format(entry[f'{name}_std']))
    curve = [entries[count] for count in p.overclustering]
    for point in curve:
        log.info('%d clusters: mIoU %.2f%s, pixel accuracy %.2f, NMI %.2f, ARI %.2f', point['num_clusters'],
                 point['mIoU'], spread.format(point['std']), point['accuracy'], point['NMI'], point['ARI'])
    first, (labels, merged) = found[p.num_clusters][0], matched[p.num_clusters][0]
    return (ClusterModel(whitening, first.centres, labels, dataset.classes, network), first.ids,
            {'kmeans': entry, **({'overclustering': curve} if curve else {})}, {'kmeans': merged}, [])


def explore(p: Kmeans, dataset: ImageSet, split: EmbeddedSplit, fit: np.ndarray | None,
            network: Mapping[str, Any]) -> Found:
    """Cluster what has no ground truth and draw each cluster; arguments as of ``evaluate``.

    Objects without a mask are left aside. Of several numbers of clusters that of highest silhouette is taken, of its
    runs that of least inertia.
    """
    counts, objects = p.overclustering or [p.num_clusters], np.flatnonzero(split.prototypes.any(1))
    prototypes = split.prototypes[objects]
    whitening, runs = cluster(prototypes, counts, p.num_seeds, p.seed, None if fit is None else fit[fit.any(1)],
                              'objects with a mask', p.whiten)
    best = {k: min(runs[k], key=lambda run: run.inertia) for k in sorted(runs)}
    # of the prototypes themselves: whitening makes the directions of noise as long as the others
    count, silhouettes = best_count(prototypes, best, p.seed)
    found, ids = best[count], np.full(len(split), -1)
    ids[objects] = found.ids
    sizes = np.bincount(found.ids, minlength=count).tolist()
    if p.overclustering:
        log.info('Taking %d clusters, whose silhouette is highest; --num_clusters N with --set output_dir=NAME takes '
                 'another number', count)
    log.info('Objects in each cluster: %s', ', '.join(f'{k}: {size}' for k, size in enumerate(sizes, 1)))
    typical = found.distances.argsort(kind='stable')  # the most typical objects first
    folder, sheets = Path(p.output_dir) / 'clusters', []
    with warn_of_failure(str(folder)):
        sheets = write_sheets(folder, dataset, split, objects[typical], found.ids[typical])
        log.info('Pictures of each cluster: %s', folder)
    entry = {'num_clusters': count, 'sizes': sizes,
             'silhouette': {str(k): None if np.isnan(value) else value for k, value in silhouettes.items()}}
    return (ClusterModel(whitening, found.centres, np.arange(count + 1), None, network), ids, {'clusters': entry}, {},
            sheets)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, Kmeans)
    parser.add_argument('--num_seeds', type=int, help='runs of K-means; overrides the key of the config')
    parser.add_argument('--num_clusters', '--num-clusters', type=cluster_counts, nargs='+', metavar='K',
                        help='clusters; several numbers, or a range such as 5-20, print the over-clustering curve, a '
                             'line each, or without ground truth take the number of highest silhouette')
    args = parser.parse_args(argv)
    if args.num_clusters is not None:
        numbers = [count for several in args.num_clusters for count in several]
        args.num_clusters, args.overclustering = numbers[0], numbers if len(numbers) > 1 else []
    p = parser.load(args)
    device = start(p, args.nproc, __file__, argv, identity(p, p.val_db_name))

    masks = None if p.saliency == 'network' else p.saliency
    dataset = open_images(p, p.val_db_name, p.val_split, None, masks)
    model = to_device(build_prototype_model(p), device)
    if dataset.truth is None and (most := max(p.overclustering or [p.num_clusters])) > MAX_CLUSTERS:
        raise UserError(f'num_clusters {most} is more than label maps can hold; take at most {MAX_CLUSTERS}.')

    def embed(images: ImageSet, originals: int, keep_masks: bool) -> EmbeddedSplit:
        loader = evaluation_loader(p, images, model.backbone.mean, model.backbone.std, originals)
        return embed_split(model, loader, device, len(dataset.classes), p.features, masks is None, keep_masks,
                           p.min_component if p.components else None).require_masks()

    split, fit = embed(dataset, p.num_visualizations, True), None
    log.info('%d objects in %d images; %d have a mask; %d images left out', len(split), len(dataset),
             np.count_nonzero(split.prototypes.any(1)), dataset.left_out)
    if p.fit_split not in (None, p.val_split):
        fit = embed(open_images(p, p.val_db_name, p.fit_split, saliency=masks, skip=True), 0, False).prototypes
    if not distributed.leave():
        return
    network, output_dir = prototype_network(p, model) | describe_masks(dataset, split), Path(p.output_dir)
    clusters, ids, results, confusions, sheets = (evaluate if dataset.truth else explore)(
        p, dataset, split, fit, network)
    majority = np.where(split.inside.any(1), split.inside.argmax(1), -1)
    save_arrays(output_dir / 'prototypes.npz', prototypes=split.prototypes, image=split.image,
                ids=np.array(dataset.ids), clusters=ids, labels=majority, classes=np.array(dataset.classes))
    save_masks(output_dir / MASKS, split.prototypes, split.masks if len(dataset) <= KEPT else [])
    drawn = write_predictions(output_dir, dataset.ids, split, clusters.labels[ids + 1], int(clusters.labels[0]),
                              clusters.classes or placeholders(len(clusters.centres)))
    for task in results.keys() - {'overclustering'}:
        results[task] = {**results[task], 'made_with': made_with_network(network, dataset)}
    merged = save_results(results, output_dir)
    if p.pretraining == 'none':
        log.info('No %s: these random weights cannot be had again for new images', CLUSTERS)
    else:
        save_clusters(p, clusters, results.get('clusters', {}).get('sizes', []))
    log.info('Label maps: %s', output_dir / 'predictions')
    write_run_report(p, 'K-means', merged, dataset.classes, confusions,
                     {PREDICTIONS: list(drawn.items()), CLUSTER_IMAGES: sheets})


if __name__ == '__main__':
    run_script(main)
