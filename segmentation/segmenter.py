"""A trained model as a function from an image to its label map.

    from segmentation.segmenter import Segmenter
    segment = Segmenter.load('results/kmeans/clusters.pth.tar')   # or best_model.pth.tar of linear_finetune.py
    labels = segment(image)                                       # (H, W, 3) uint8 -> (H, W) class ids
    names = segment.classes
"""
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.transforms import EvaluationTransform, resize_mask
from data.voc import VOC_CLASSES, read_classes, scored_classes
from models.build import build_prototype_model, trained_linear_model
from models.crf import Refine
from models.weights import fingerprint, identify
from saliency.methods import build_source
from saliency.sources import CERTAIN, binarise
from segmentation.cluster_model import ClusterModel
from segmentation.engine import read_trained
from segmentation.objects import THRESHOLD, Objects, find_objects
from utils.config.reader import read_config
from utils.run.checkpoint import load_checkpoint
from utils.run.devices import Precision, pick_device, tf32, to_device, to_float32
from utils.run.errors import MissingFileError, UserError, name_some

log = logging.getLogger(__name__)
SIZE = 512  # side of the network's input, for weights that do not say
FOREIGN = 20.0  # taken off the score of a label inside an object of another label
MASKS = ('network', 'unsupervised', 'given')  # where the masks of new images come from


class Output(NamedTuple):
    """What the network says of one image, at its input size S."""
    labels: np.ndarray  # (S, S) uint8; of a precomputed mask of its size
    logits: np.ndarray | None = None  # (C, S, S) float32, if they are to be refined
    channels: np.ndarray = np.arange(256)  # label of each channel of the logits


class Segmenter:
    """Images in, label maps out; safe to ``prepare`` and ``finish`` in threads beside ``run``.

    The network's input is (3, ``size``, ``size``). ``model`` is a linear model or, with ``clusters``, the network that
    they were found with: each object then has the label of the nearest centre. Objects are those of ``masks``, one of
    ``MASKS``. ``crf`` are the arguments of ``dense_crf`` that the model was scored with.
    """

    def __init__(self, model: Any, classes: tuple[str, ...], size: int, device: torch.device,
                 clusters: ClusterModel | None = None, masks: str = 'network', precision: str = 'fp32',
                 crf: Mapping[str, Any] | None = None) -> None:
        to_device(model, device)
        self.autocast = Precision(device, precision).autocast
        self.model, self.classes, self.size, self.device, self.clusters = model, classes, size, device, clusters
        self.masks, self.source = masks, build_source('unsupervised') if masks == 'unsupervised' else None
        self.crf = dict(crf or {})
        # labels of one name are one
        self.table = np.array([*map(classes.index, classes), *range(len(classes), 256)], np.uint8)
        self.transform = EvaluationTransform(size, model.backbone.mean, model.backbone.std)

    @staticmethod
    def load(path: str | Path, device: str = 'auto', weights: str | Path | None = None,
             masks: str | None = None, precision: str = 'fp32') -> 'Segmenter':
        """From best_model.pth.tar of linear_finetune.py (or a released linear model) or clusters.pth.tar of kmeans.py.

        ``device`` is one of ``utils.config.schema.DEVICES``, ``weights`` the pretraining checkpoint that the clusters
        were found with, if it was moved, ``masks`` one of ``MASKS`` (None: what the clusters were found with),
        ``precision`` 'fp32' or 'bf16'. Raises UserError for other files, weights of another network, and masks that it
        lacks.
        """
        path, where = Path(path), pick_device(device)
        checkpoint = load_checkpoint(path)
        clusters = ClusterModel.of(checkpoint, path)
        if clusters is not None:
            clusters = clusters.with_names_beside(path)
            network = load_network(clusters.network, path, weights)
            masks = choose_masks(masks, clusters.network, path, network)
            return Segmenter(network, clusters.classes or (), clusters.network['size'], where, clusters, masks,
                             precision)
        if weights is not None or masks is not None:
            raise UserError(f'{path} holds all of its weights and needs no masks; leave out --weights and --masks, '
                            'which go with clusters.pth.tar.')
        run = read_config(path.parent) or {}
        model = trained_linear_model(identify(checkpoint, str(path)), run.get('backbone'))
        size, classes = int(run.get('val_size', SIZE)), _classes_of(path, run, model.classifier.out_channels)
        if not run:
            log.warning('No config.yml beside %s: taking %d px and the classes %s', path, size, name_some(classes, 3))
        return Segmenter(model, classes, size, where, precision=precision, crf=run.get('crf_kwargs'))

    def __call__(self, image: np.ndarray, refine: Refine | None = None, mask: np.ndarray | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) int32, indices of ``classes``; ``refine``: e.g. ``models.crf.dense_crf``.

        ``mask`` (H, W), nonzero on the object, is needed where ``masks`` are given. Raises UserError for another shape.
        """
        inputs = self.prepare(image)[None]
        mask = self.find_mask(image) if mask is None else (mask != 0).astype(np.uint8)
        if mask is not None and mask.shape != image.shape[:2]:
            raise UserError(f'a mask of shape {mask.shape} is not that of an image of shape {image.shape}; give '
                            '(height, width).')
        output, = self.run(inputs, refine is not None, None if mask is None else [mask])
        return self.finish(image, output, refine).astype(np.int32)

    def find_mask(self, image: np.ndarray) -> np.ndarray | None:
        """The mask of ``saliency/predict.py``, (H, W) uint8 in {0, 1}; None where another source has them."""
        if self.source is None:
            return None
        mask = binarise(self.source([image])[0])
        return np.zeros(image.shape[:2], np.uint8) if mask is None else mask.astype(np.uint8)

    def prepare(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (3, S, S) float32, normalised. Raises UserError for an image of another kind."""
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise UserError(f'an image of shape {image.shape} and type {image.dtype} cannot be segmented; give '
                            '(height, width, 3) uint8, RGB in 0..255.')
        return self.transform({'image': image})['image']

    @tf32(False)
    @torch.inference_mode()
    def run(self, images: Tensor, keep_logits: bool = False, masks: Sequence[np.ndarray] | None = None) -> list[Output]:
        """Run the network on a batch (B, 3, S, S), with the masks (H, W) uint8 in {0, 1} that it does not predict."""
        images = to_device(images, self.device)
        if self.clusters is not None:
            if masks is None and self.masks != 'network':
                raise UserError('these clusters need the mask of each image; give mask=, or load them with '
                                "masks='unsupervised'.")
            network, background, outputs = self.clusters.network, self.clusters.labels[0], []
            for objects in find_objects(self.model, images, network['features'], masks, network.get('min_component'),
                                        self.autocast):
                seen = objects.prototypes.any(1)  # else a mask vanishes at this size, and would be of any cluster
                found = np.where(seen, self.clusters.label(objects.prototypes), background)
                labels = np.array([background, *found], np.uint8)[objects.ids]
                outputs.append(Output(labels, *(object_logits(labels, objects, background) if keep_logits else ())))
            return outputs
        with self.autocast():
            logits = to_float32(self.model(images))  # B x C x S x S
        labels = self.table[logits.argmax(1).cpu().numpy()]
        kept = logits.cpu().contiguous().numpy() if keep_logits else [None] * len(labels)
        return [Output(*found, self.table) for found in zip(labels, kept, strict=True)]

    @staticmethod
    def finish(image: np.ndarray, output: Output, refine: Refine | None = None) -> np.ndarray:
        """The label map at the image's own size, (H, W) uint8; refined with ``refine`` if logits were kept."""
        if refine is None or output.logits is None:
            return resize_mask(output.labels, image.shape[1], image.shape[0])
        return output.channels[refine(image, output.logits)].astype(np.uint8)


def object_logits(labels: np.ndarray, objects: Objects, background: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (C, S, S) float32 whose argmax is a label map (S, S) of objects, and the label (C,) of each channel.

    The background, the first channel, has the saliency threshold everywhere; a label has the saliency score, not above
    the threshold outside the objects and far below it inside those of other labels. Precomputed masks are certain.
    """
    inside, scores = objects.ids > 0, objects.scores.cpu().numpy()
    if scores.size == 1:
        scores = THRESHOLD + CERTAIN * np.where(inside, 1, -1).astype(np.float32)
    channels = np.array([background, *np.setdiff1d(labels, background)])
    logits = np.full((len(channels), *labels.shape), THRESHOLD, np.float32)
    scores = np.where(inside, scores, np.minimum(scores, THRESHOLD))  # small components may have been dropped
    for channel, label in enumerate(channels[1:], 1):
        logits[channel] = scores - FOREIGN * (inside & (labels != label))
    return logits, channels


def load_network(network: Mapping[str, Any], clusters: Path, weights: str | Path | None) -> nn.Module:
    """The network of the file ``clusters``. Raises UserError if its checkpoint is gone, or holds another network."""
    source = str(weights or network['pretraining'])
    p: Any = SimpleNamespace(**{**network, 'saliency': network.get('masks', 'network'), 'pretraining': source})
    try:
        model = build_prototype_model(p)
    except MissingFileError as error:
        raise UserError(f'{clusters} was made with {source}, which is no longer there; give it with --weights.'
                        if weights is None else f'--weights: {error}') from error
    if fingerprint(model) != network['fingerprint']:
        raise UserError(f'{source} holds the weights of another network than the one {clusters} was made with; give '
                        'that one with --weights, or run kmeans.py again.')
    return model


def choose_masks(masks: str | None, network: Mapping[str, Any], clusters: Path, model: nn.Module) -> str:
    """Where the masks of new images come from, one of ``MASKS``: as asked for, else as those of the file ``clusters``.

    Where nothing says how those were made, the network predicts them, and a warning says so. Raises UserError if it
    cannot.
    """
    named, method, iou = (network.get(name) for name in ('masks', 'mask_method', 'mask_iou'))
    made = 'network' if named == 'network' else method
    predicts, chosen = getattr(model, 'classification_head', None) is not None, masks or made
    if masks not in (None, *MASKS):
        raise UserError(f'there are no masks {masks}; choose {", ".join(MASKS)}.')
    if chosen not in MASKS or (chosen == 'network' and not predicts):
        text = (f'{clusters} was made with {"unnamed" if named is None else f"the precomputed {named}"} masks'
                f'{f" of --method {method}" if method else ""}')
        if not predicts:
            raise UserError(f'{text}, and its network predicts none; give --masks unsupervised, or --masks FOLDER with '
                            'masks of the new images that were made as those were.')
        log.warning('%s, and new images get the masks that the network predicts%s: their objects may differ from those '
                    'of the clusters; --masks FOLDER takes others', text,
                    '' if iou is None else f', whose mean IoU with those was {iou:.2f}')
        return 'network'
    return chosen


def _classes_of(path: Path, run: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of a linear model's classes: those beside it, of the data set that it was scored on, or VOC's."""
    classes = read_trained(path)[1]
    if classes is not None and len(classes) != count:
        raise UserError(f'{path} has {count} classes, and {name_some(classes, 21)} stand beside it; restore the file '
                        'that was trained for these.')
    if classes is None:
        root, kept = Path(run.get('db_root', ''), run.get('val_db_name', '')), run.get('eval_classes') or ()
        stored = read_classes(root) if run and root.is_dir() else VOC_CLASSES
        known = set(kept) <= set(stored) and not run.get('label_maps')  # whose labels may be clusters
        classes = scored_classes(stored, kept)[0] if known else ()
    return classes if len(classes) == count else tuple(f'class_{label}' for label in range(count))
