"""Label maps from object masks: cluster the masks, give each cluster a class, and paint the confident masks.

    python segmentation/pseudo_labels.py --config_env configs/env.yml \\
        --config_exp configs/maskdistill/pseudo_labels_VOCSegmentation.yml
    python segmentation/pseudo_labels.py --config_env configs/env.yml \\
        --config_exp configs/maskdistill/pseudo_labels_VOCSegmentation.yml --results detections.json --coco masks.json

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.2. Where the data set has ground truth each cluster
gets a class of it (with_labels: true), else it is a class of its own. With clusters: PATH they are those of kmeans.py;
with --results masks, classes and scores are those of a detector. Leaves label_maps/, which linear_finetune.py trains
on (its key label_maps), and classes.yml in it.
"""
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
import torch

from data.coco import Entry, box_of, decode, read_instances
from data.image_set import ImageSet
from data.images import read_objects
from data.loaders import identity, loader_in_order, open_images
from data.transforms import EvaluationTransform, normalize
from data.voc import VOID, name_labels
from models.build import build_prototype_model, initial_weights
from models.transformer import FrozenTransformer, load_transformer
from models.weights import fingerprint
from segmentation.cluster_model import ClusterModel
from segmentation.clustering import kmeans, nearest_centre, placeholders, silhouette
from segmentation.engine import report_scores
from segmentation.mask_labels import box_iou, classes_of_clusters, cluster_confidence, confident, label_map, standardise
from segmentation.metrics import confusion_matrix
from segmentation.objects import find_objects, pack, unpack
from utils.config.cli import ConfigParser
from utils.config.paths import find_file
from utils.config.schema import PseudoLabels
from utils.report.pictures import panel
from utils.report.results import remove_stale
from utils.report.run import PREDICTIONS, write_run_report
from utils.run.checkpoint import load_checkpoint
from utils.run.devices import to_device
from utils.run.errors import UserError, name_some
from utils.run.files import save_image, save_label_map
from utils.run.log import progress
from utils.run.parallel import in_threads
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)
MAPS, PICTURES = 'label_maps', 'visualizations'
SHARE, LEAST = 0.8, 0.9  # confidence where the config has none: share of clustered masks, score of a detector


class Masks(NamedTuple):
    """N masks, those of an image side by side."""
    image: np.ndarray  # (N,) index of the image of each
    labels: np.ndarray  # (N,) label of each, from 1 on
    scores: np.ndarray  # (N,) confidence, the more the better
    least: float  # score that a mask needs
    draw: Callable[[int], np.ndarray]  # index -> (H, W) bool
    names: Sequence[str]  # of the labels, background first; several may have one


@torch.inference_mode()
def box_feature(transformer: FrozenTransformer, image: np.ndarray, box: Sequence[float],
                device: torch.device) -> np.ndarray:
    """(C,) the class token of a box x, y, width, height in pixels, cut out of an image (H, W, 3) uint8.

    Raises UserError for a box without a pixel.
    """
    x, y, width, height = box
    crop = image[round(y):round(y + height), round(x):round(x + width)]
    if not crop.size:
        raise UserError(f'box {tuple(box)} holds no pixel of its image, {image.shape[1]} x {image.shape[0]}; check it.')
    padded = transformer.pad(normalize(crop, transformer.mean, transformer.std))
    return transformer(to_device(padded[None], device)).cls[0].float().cpu().numpy()


def box_class(mask: np.ndarray, objects: Sequence[Entry]) -> int:
    """The category of the object whose box has the best IoU with that of a mask (H, W), of equals the first, or -1."""
    if wrong := [e['image_id'] for e in objects if (e['height'], e['width'], len(e['bbox'])) != (*mask.shape, 4)]:
        raise UserError(f'image {wrong[0]} of truth_boxes has another size than its photograph, or no box; correct it.')
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in (box_of(mask), *(e['bbox'] for e in objects))], float)
    return objects[int(box_iou(corners[0], corners[1:]).argmax())]['category_id'] if objects else -1


def describer(p: PseudoLabels, device: torch.device,
              clusters: ClusterModel | None) -> Callable[[dict[str, Any]], list[np.ndarray]]:
    """A function from a batch, lists of 'image' and of numbered objects 'sal', to the (n, D) features of each image.

    Raises UserError if ``clusters`` were found with another network.
    """
    if p.features == 'box_cls':
        transformer = to_device(load_transformer(p.backbone, initial_weights(p, p.backbone)), device)
        return lambda batch: [np.array([box_feature(transformer, image, box_of(objects == k), device)
                                        for k in range(1, int(objects.max()) + 1)])
                              for image, objects in zip(batch['image'], batch['sal'], strict=True)]
    model: Any = to_device(build_prototype_model(cast(Any, p)), device)
    if clusters is not None and clusters.network['fingerprint'] != fingerprint(model):
        raise UserError(f'{p.clusters} was made with {clusters.network["pretraining"]}, another network than that of '
                        f'pretraining: {p.pretraining} and backbone: {p.backbone}; give those of kmeans.py.')
    prepare = EvaluationTransform(p.val_size, model.backbone.mean, model.backbone.std)

    def pooled(batch: dict[str, Any]) -> list[np.ndarray]:
        images = torch.stack([prepare({'image': image})['image'] for image in batch['image']])
        return [found.prototypes for found in find_objects(model, to_device(images, device), p.features, batch['sal'])]

    return pooled


def read_clusters(p: PseudoLabels) -> ClusterModel | None:
    """Those of kmeans.py, with names, if the config has some. Raises UserError if they are of other features."""
    if p.clusters is None:
        return None
    path = find_file(p.clusters, p.root_dir)
    clusters = ClusterModel.of(load_checkpoint(path), path)
    if clusters is None:
        raise UserError(f'{path} holds no clusters; give clusters.pth.tar of kmeans.py.')
    if len(clusters.centres) >= VOID:
        raise UserError(f'{path} has {len(clusters.centres)} clusters, and a label map holds {VOID - 1}; take fewer.')
    for key, ours in (('features', p.features), ('size', p.val_size), ('min_component', None)):
        if clusters.network.get(key) != ours:
            raise UserError(f'{path} was made with {key} {clusters.network.get(key)}, and this config has {ours}; '
                            'make both alike, without components.')
    return clusters.with_names_beside(path)


def cluster_masks(p: PseudoLabels, dataset: ImageSet, device: torch.device) -> Masks:
    """All masks of the split, clustered, by name of the classes of the ground truth where that is read.

    Raises UserError if there are fewer masks than clusters.
    """
    labelled = dataset.truth is not None
    boxes = read_instances(find_file(p.truth_boxes), dict(enumerate(dataset.classes[1:])))[0] if p.truth_boxes else {}
    if lacking := [name for name in dataset.ids if boxes and name not in boxes]:
        raise UserError(f'{p.truth_boxes} lacks the images {name_some(lacking)}; add them.')
    dataset.layers = [(key, folder, read_objects if key == 'sal' else read) for key, folder, read in dataset.layers]
    features, packed, images, classes = [], [], [], []
    clusters = read_clusters(p)
    describe = describer(p, device, clusters)
    for number, batch in enumerate(progress(loader_in_order(p, dataset), 'features')):
        truths = batch['semseg'] if labelled else [None] * len(batch['sal'])
        found = zip(describe(batch), batch['sal'], truths, strict=True)
        for index, (of_image, objects, truth) in enumerate(found, number * p.val_batch_size):
            for mask, feature in ((objects == k, feature) for k, feature in enumerate(of_image, 1)):
                if mask.any():
                    votes = np.bincount([] if truth is None else truth[mask], minlength=256)[1:len(dataset.classes)]
                    classes.append(box_class(mask, boxes[dataset.ids[index]]) if boxes
                                   else int(votes.argmax()) if votes.any() else -1)  # without background
                    features.append(feature)
                    packed.append(pack(mask))
                    images.append(index)
    if not features:
        raise UserError(f'no mask in {dataset.masks} has a pixel; check them.')
    if clusters is not None:
        points, names = clusters.whitening(np.array(features)), [(clusters.classes or ())[k] for k in clusters.labels]
        labels, centres = 1 + nearest_centre(points, clusters.centres)[0], clusters.centres
    else:
        points, counts = standardise(np.array(features)), p.candidates or [p.num_clusters]
        runs = {count: kmeans(points, count, p.seed, unit='masks') for count in counts}
        silhouettes = {count: silhouette(points, run.ids, p.seed) for count, run in runs.items()}
        for count, value in silhouettes.items():
            log.info('Silhouette of %d clusters is %.3f', count, value)
        count = max(counts, key=lambda count: np.nan_to_num(silhouettes[count], nan=-2))
        best, class_of, names = runs[count], np.arange(count), placeholders(count)
        if labelled:
            class_of = classes_of_clusters(best.ids, np.array(classes), count, len(dataset.classes) - 1)
            names = list(dataset.classes)
        labels, centres = 1 + class_of[best.ids], best.centres
    scores = cluster_confidence(points, centres)
    least = float(np.quantile(scores, 1 - (SHARE if p.confidence is None else p.confidence)))
    log.info('%d masks in %d clusters; those of confidence %.3f and more are kept', len(points), len(centres), least)
    return Masks(np.array(images), labels, scores, least, lambda i: unpack(packed[i]).astype(bool), names)


def detected_masks(p: PseudoLabels, dataset: ImageSet, results: Path, annotations: Path) -> Masks:
    """The masks of a detector for the images of a split, whose categories are the classes from 0 on."""
    if len(dataset.classes) == 1:
        raise UserError(f'{dataset.root} names no classes, which the categories of {results} would be; name them in '
                        'dataset.yml beside sets/.')
    of_image, _ = read_instances(results, dict(enumerate(dataset.classes[1:])), annotations)
    if lost := sorted({name for name, entries in of_image.items() if entries} - set(dataset.ids)):
        raise UserError(f'{results} has detections in {name_some(lost)}, which {dataset.root.name} {dataset.split} '
                        'lacks; give those of this split.')
    found = [(i, entry) for i, name in enumerate(dataset.ids) for entry in of_image.get(name, ())]
    return Masks(np.array([i for i, _ in found]), np.array([entry['category_id'] + 1 for _, entry in found]),
                 np.array([entry['score'] for _, entry in found]), LEAST if p.confidence is None else p.confidence,
                 lambda k: decode(found[k][1]), dataset.classes)


def write_maps(p: PseudoLabels, dataset: ImageSet, masks: Masks) -> tuple[np.ndarray, list[str]]:
    """Write the label map of every image, and pictures of some; a confusion matrix, 0 without truth, and IDs drawn."""
    output, classes = Path(p.output_dir), len(dataset.classes)
    kept, drawn = confident(masks.image, masks.scores, masks.least), dataset.ids[:p.num_visualizations]
    sides = np.searchsorted(masks.image, np.arange(len(dataset) + 1))

    def write(index: int) -> np.ndarray | int:
        name, sample = dataset.ids[index], dataset.load(index)
        members = np.arange(*sides[index:index + 2])
        members = members[(-masks.scores[members]).argsort(kind='stable')].tolist()  # the best first
        drawn_masks = [masks.draw(k) for k in members]
        height, width = sample['image'].shape[:2]
        if wrong := [mask.shape for mask in drawn_masks if mask.shape != (height, width)]:
            raise UserError(f'a mask of {name} is {wrong[0][1]} x {wrong[0][0]}, its image {width} x {height}; '
                            'make the masks from these images.')
        labels = label_map(drawn_masks, masks.labels[members].tolist(), kept[members].tolist(),
                           (height, width), p.overlap, p.ignore_below)
        save_label_map(labels, output / MAPS / f'{name}.png')
        if name in drawn:
            parts = {'image': sample['image'], 'label map': labels} | (
                {'ground truth': sample['semseg']} if 'semseg' in sample else {})
            save_image(panel(list(parts.values()), list(parts)), output / PICTURES / f'{name}.png')
        if 'semseg' not in sample:
            return 0
        return confusion_matrix(sample['semseg'], np.where(labels == VOID, 0, labels).astype(np.uint8), classes,
                                len(masks.names))

    confusion = sum(in_threads(write, progress(range(len(dataset)), 'label maps', len(dataset))))
    for folder, names in ((MAPS, dataset.ids), (PICTURES, drawn)):
        remove_stale(output / folder, names)
    return np.asarray(confusion), drawn


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, PseudoLabels, processes=False)
    parser.add_argument('--results', help="a detector's results, in COCO's format")
    parser.add_argument('--coco', help='COCO file that names the images of --results')
    args = parser.parse_args(argv)
    p = parser.load(args)
    device = start(p, 1, __file__, argv, identity(p, p.val_db_name))
    dataset = open_images(p, p.val_db_name, p.val_split, bool(p.truth_boxes) or (None if p.with_labels else False),
                          p.saliency if p.results is None else None, skip=True)
    if p.results is None or p.coco is None:
        masks = cluster_masks(p, dataset, device)
    else:
        masks = detected_masks(p, dataset, find_file(p.results), find_file(p.coco))
    name_labels(Path(p.output_dir) / MAPS, masks.names)  # first: without them labels would be classes
    confusion, drawn = write_maps(p, dataset, masks)
    output = Path(p.output_dir)
    log.info('Label maps: %s', output / MAPS)
    pictures = [(name, output / PICTURES / f'{name}.png') for name in drawn]
    made = {'masks': str(p.results or dataset.masks), 'features': p.features, 'pretraining': p.pretraining,
            'data': f'{dataset.root.name} {dataset.split}', 'images': len(dataset)}
    if dataset.truth is not None:
        report_scores(p, 'Pseudo labels', {'pseudo_labels': confusion}, masks.names, dataset.classes, made, pictures)
    else:
        write_run_report(p, 'Pseudo labels', {}, masks.names, pictures={PREDICTIONS: pictures})


if __name__ == '__main__':
    run_script(main)
