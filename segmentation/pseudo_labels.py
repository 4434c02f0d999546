"""Label maps from object masks: cluster the masks, give each cluster a class, and paint the confident masks.

    python segmentation/pseudo_labels.py --config_env configs/env.yml \\
        --config_exp configs/maskdistill/pseudo_labels_VOCSegmentation.yml

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.2. Where the data set has ground truth each cluster
gets a class of it (with_labels: true), else it is a class of its own. With clusters: PATH they are those of kmeans.py;
with --results FILE --coco FILE masks, classes and scores are those of a detector. Leaves label_maps/, which
linear_finetune.py trains on (its key label_maps), and classes.yml in it.
"""
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
import torch

from data.coco import Entry, box_iou, box_of, read_instances, read_mask
from data.image_set import ImageSet
from data.images import read_objects
from data.label_maps import VOID, whole_label_maps
from data.loaders import identity, loader_in_order, open_images
from data.transforms import EvaluationTransform, normalize
from models.build import build_prototype_model, initial_weights
from models.transformer import FrozenTransformer, load_transformer
from models.weights import fingerprint
from segmentation.cluster_model import ClusterModel
from segmentation.clustering import best_count, kmeans, nearest_centre, placeholders, require_known
from segmentation.engine import report_scores
from segmentation.mask_labels import classes_of_clusters, cluster_confidence, confident, label_map, standardise
from segmentation.metrics import confusion_matrix
from segmentation.objects import MaskFile, find_objects, pack, unpack
from utils.config.cli import ConfigParser
from utils.config.paths import find_file
from utils.config.schema import PseudoLabels
from utils.report.pictures import panel
from utils.report.run import PREDICTIONS, write_run_report
from utils.run.checkpoint import load_checkpoint
from utils.run.devices import to_device
from utils.run.errors import UserError, name_some
from utils.run.files import remove_stale, save_image, save_label_map
from utils.run.log import progress
from utils.run.parallel import in_threads
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)
MAPS, PICTURES = 'label_maps', 'visualizations'
SHARE, LEAST = 0.8, 0.9  # confidence where the config has none: share of clustered masks, score of a detector


class Masks(NamedTuple):
    """N masks."""
    image: np.ndarray  # (N,) index of the image of each
    labels: np.ndarray  # (N,) label of each, from 1 on
    scores: np.ndarray  # (N,) confidence, the more the better
    least: float  # score that a mask needs
    draw: Callable[[int], np.ndarray]  # index -> (H, W) bool
    names: Sequence[str]  # of the labels, background first; several may have one


def box_feature(transformer: FrozenTransformer, image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """(C,) the class token of a box x, y, width, height in pixels, cut out of an image (H, W, 3) uint8."""
    x, y, width, height = box
    crop = image[round(y):round(y + height), round(x):round(x + width)]
    if not crop.size:
        raise UserError(f'box {tuple(box)} holds no pixel of its image, {image.shape[1]} x {image.shape[0]}; check it.')
    padded = transformer.pad(normalize(crop, transformer.mean, transformer.std))
    return transformer(to_device(padded[None], next(transformer.parameters()).device)).cls[0].float().cpu().numpy()


def box_class(mask: np.ndarray, objects: Sequence[Entry]) -> int:
    """The category of the object whose box has the best IoU with that of a mask (H, W), of equals the first, or -1."""
    if wrong := [e['image_id'] for e in objects if (e['height'], e['width'], len(e['bbox'])) != (*mask.shape, 4)]:
        raise UserError(f'image {wrong[0]} of truth_boxes has another size than its photograph, or no box; correct it.')
    boxes = [entry['bbox'] for entry in objects]
    return objects[int(box_iou(box_of(mask), boxes).argmax())]['category_id'] if objects else -1


def read_clusters(p: PseudoLabels) -> ClusterModel:
    """Those of kmeans.py, with names. Raises UserError if they are not of this config's features."""
    path = find_file(str(p.clusters), p.root_dir)
    clusters = ClusterModel.of(load_checkpoint(path), path)
    if clusters is None or len(clusters.centres) >= VOID:
        raise UserError(f'{path} holds no clusters, or {VOID} and more; give clusters.pth.tar of kmeans.py with fewer.')
    for key, ours in (('features', p.features), ('size', p.val_size), ('min_component', None)):
        if (theirs := clusters.network.get(key)) != ours:
            raise UserError(f'{path} was made with {key} {theirs}, and this config has {ours}; make both alike.')
    return clusters.with_names_beside(path)


def describe_masks(p: PseudoLabels, dataset: ImageSet, device: torch.device,
                   clusters: ClusterModel | None) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Of each mask the index of its image, itself (H, W) bool, its feature (D,), and the ground truth if it is read."""
    boxes = p.features == 'box_cls'
    model: Any = to_device(load_transformer(p.backbone, initial_weights(p, p.backbone)) if boxes else
                           build_prototype_model(cast(Any, p)), device)
    if clusters is not None and clusters.network['fingerprint'] != fingerprint(model):
        raise UserError(f'{p.clusters} was made with {clusters.network["pretraining"]}, another network than that of '
                        f'pretraining: {p.pretraining} and backbone: {p.backbone}; give those of kmeans.py.')
    prepare = None if boxes else EvaluationTransform(p.val_size, model.backbone.mean, model.backbone.std)
    dataset.layers = [(key, folder, read_objects if key == 'sal' else read) for key, folder, read in dataset.layers]
    index = 0
    for batch in progress(loader_in_order(p, dataset), 'features'):
        if prepare is not None:
            images = torch.stack([prepare({'image': image})['image'] for image in batch['image']])
            found = find_objects(model, to_device(images, device), p.features, batch['sal'])
        for i, (image, objects) in enumerate(zip(batch['image'], batch['sal'], strict=True)):
            for number in np.unique(objects[objects > 0]).tolist():
                mask = objects == number
                feature = box_feature(model, image, box_of(mask)) if boxes else found[i].prototypes[number - 1]
                yield index, mask, feature, batch['semseg'][i] if 'semseg' in batch else None
            index += 1


def cluster_masks(p: PseudoLabels, dataset: ImageSet, device: torch.device) -> Masks:
    """All masks of the split, clustered, by name of the classes of the ground truth where that is read."""
    boxes = read_instances(find_file(p.truth_boxes), dict(enumerate(dataset.classes[1:])))[0] if p.truth_boxes else {}
    if lacking := [name for name in dataset.ids if boxes and name not in boxes]:
        raise UserError(f'{p.truth_boxes} lacks the images {name_some(lacking)}; add them.')
    clusters, found, packed = None if p.clusters is None else read_clusters(p), [], MaskFile()
    for index, mask, feature, truth in describe_masks(p, dataset, device, clusters):
        if not feature.any():  # and would be of any cluster
            log.warning('a mask of %s has no pixel at val_size %d; left out', dataset.ids[index], p.val_size)
            continue
        votes = np.bincount([] if truth is None else truth[mask], minlength=256)[1:len(dataset.classes)]
        known = box_class(mask, boxes[dataset.ids[index]]) if boxes else votes.argmax() if votes.any() else -1
        found.append((index, feature, known))
        packed.extend([pack(mask)])
    if not found:
        raise UserError(f'no mask in {dataset.masks} has a pixel; check them.')
    images, features, classes = map(list, zip(*found, strict=True))
    if clusters is not None:
        points, centres = clusters.whitening(np.array(features)), clusters.centres
        labels = 1 + nearest_centre(points, centres)[0]
        names = [(clusters.classes or ())[label] for label in clusters.labels]
    else:
        points = standardise(np.array(features))
        runs = {count: kmeans(points, count, p.seed, unit='masks') for count in p.candidates or [p.num_clusters]}
        count, _ = best_count(points, runs, p.seed)
        ids, centres, class_of, names = runs[count].ids, runs[count].centres, np.arange(count), placeholders(count)
        if dataset.truth is not None:
            class_of = classes_of_clusters(ids, np.array(classes), count, len(dataset.classes) - 1)
            names = list(dataset.classes)
        labels = 1 + class_of[ids]
    scores = cluster_confidence(points, centres)
    least = float(np.quantile(scores, 1 - (SHARE if p.confidence is None else p.confidence)))
    log.info('%d masks in %d clusters', len(points), len(centres))
    return Masks(np.array(images), labels, scores, least, lambda i: unpack(packed[i]).astype(bool), names)


def detected_masks(p: PseudoLabels, dataset: ImageSet, results: Path, annotations: Path) -> Masks:
    """The masks of a detector for the images of a split, whose categories are the classes from 0 on."""
    of_image, _ = read_instances(results, dict(enumerate(dataset.classes[1:])), annotations)
    if lost := sorted({name for name, entries in of_image.items() if entries} - set(dataset.ids)):
        raise UserError(f'{results} has detections in {name_some(lost)}, which {dataset.root.name} {dataset.split} '
                        'lacks; give those of this split.')
    listed = [(i, entry) for i, name in enumerate(dataset.ids) for entry in of_image.get(name, ())]
    found = [(i, entry) for i, entry in listed if read_mask(entry)[1].any()]
    if not found:
        raise UserError(f'no mask in {results} has a pixel; check them.')
    if empty := len(listed) - len(found):
        log.warning('%d of %d masks in %s have no pixel; left out', empty, len(listed), results)
    images, labels, scores = zip(*((i, entry['category_id'] + 1, entry['score']) for i, entry in found), strict=True)
    return Masks(np.array(images), np.array(labels), np.array(scores), LEAST if p.confidence is None else p.confidence,
                 lambda k: read_mask(found[k][1])[1], dataset.classes)


def write_maps(p: PseudoLabels, dataset: ImageSet, masks: Masks) -> tuple[np.ndarray, list[tuple[str, Path]]]:
    """Write the label map of every image, and pictures of some: a confusion matrix, 0 without truth, and pictures."""
    output, classes = Path(p.output_dir), len(dataset.classes)
    drawn = {name: output / PICTURES / f'{name}.png' for name in dataset.ids[:p.num_visualizations]}
    kept = confident(masks.image, masks.scores, masks.least, p.keep_best)
    log.info('%d of %d masks are kept; %d have a confidence of %.3f or more', kept.sum(), len(kept),
             (masks.scores >= masks.least).sum(), masks.least)
    order = np.lexsort((-masks.scores, masks.image))  # the best of each image first
    members_of = np.split(order, np.searchsorted(masks.image[order], np.arange(1, len(dataset))))

    def write(index: int) -> np.ndarray | int:
        name, sample, members = dataset.ids[index], dataset.load(index), members_of[index].tolist()
        drawn_masks, shape = [masks.draw(k) for k in members], sample['image'].shape[:2]
        if wrong := [mask.shape for mask in drawn_masks if mask.shape != shape]:
            raise UserError(f'a mask of {name} is {wrong[0][1]} x {wrong[0][0]}, its image {shape[1]} x {shape[0]}; '
                            'make the masks from these images.')
        labels = label_map(drawn_masks, masks.labels[members], kept[members], shape, p.overlap, p.ignore_below)
        save_label_map(labels, output / MAPS / f'{name}.png')
        truth = sample.get('semseg')
        if name in drawn:
            parts = {'image': sample['image'], 'label map': labels} | ({} if truth is None else {'ground truth': truth})
            save_image(panel(list(parts.values()), list(parts)), drawn[name])
        return 0 if truth is None else confusion_matrix(truth, np.where(labels == VOID, np.uint8(0), labels), classes,
                                                        len(masks.names))

    remove_stale(output / PICTURES, ())
    confusion = sum(in_threads(write, progress(range(len(dataset)), 'label maps', len(dataset))))
    return np.asarray(confusion), list(drawn.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, PseudoLabels, processes=False)
    parser.add_argument('--results', help="a detector's results, in COCO's format")
    parser.add_argument('--coco', help='COCO file that names the images of --results')
    args = parser.parse_args(argv)
    p = parser.load(args)
    device = start(p, 0, __file__, argv, identity(p, p.val_db_name))
    dataset = open_images(p, p.val_db_name, p.val_split, bool(p.truth_boxes) or (None if p.with_labels else False),
                          p.saliency if p.results is None else None, skip=True)
    if p.results is None or p.coco is None:
        masks = cluster_masks(p, dataset, device)
    else:
        masks = detected_masks(p, dataset, find_file(p.results), find_file(p.coco))
    if dataset.truth is not None:
        require_known(masks.names, dataset.classes)
    maps = Path(p.output_dir) / MAPS
    with whole_label_maps(maps, dataset.ids, masks.names):
        confusion, pictures = write_maps(p, dataset, masks)
    log.info('Label maps: %s', maps)
    made = {'data': f'{dataset.root.name} {dataset.split}', 'images': len(dataset),
            'masks': str(p.results or dataset.masks)}
    if p.results is None:
        made |= {name: p[name] for name in ('features', 'pretraining', 'backbone', 'val_size', 'clusters')}
    if dataset.truth is not None:
        report_scores(p, 'Pseudo labels', {'pseudo_labels': confusion}, masks.names, dataset.classes, made, pictures)
    else:
        write_run_report(p, 'Pseudo labels', {}, masks.names, pictures={PREDICTIONS: pictures})


if __name__ == '__main__':
    run_script(main)
