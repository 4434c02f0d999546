"""The network's objects: those of a batch, and one pass over a split for the protocols on prototypes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from models.prototypes import weighted_prototypes
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, resize
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.log import progress

THRESHOLD = 0.5  # of the raw saliency score


@dataclass
class EmbeddedSplit:
    """What the protocols on prototypes need of the N objects in M images; of its maps only masks are kept, as bits.

    prototypes: (N, D) float32 of unit length, zero where the mask is empty.
    inside: (N, classes) pixels of each true class inside the object, at the size that the split is scored at.
    outside: (M, classes) pixels of each true class of the image outside all of its objects.
    packed: each object's bits (np.packbits), empty if not kept.
    packed_shapes: (height, width) of each image's packed masks; they are resized (nearest) to the image.
    shapes: each image's (height, width).
    image: (N,) index of each object's image, ascending. One whole mask an image: 0, 1, 2, ...
    """
    prototypes: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    packed: list[np.ndarray]
    packed_shapes: list[tuple[int, int]]
    shapes: list[tuple[int, int]]
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: an object at its image's own size."""
        height, width = self.packed_shapes[self.image[index]]
        mask = np.unpackbits(self.packed[index], count=height * width).reshape(height, width)
        shape = self.shapes[self.image[index]]
        return (mask if mask.shape == shape else resize_mask(mask, shape[1], shape[0])).astype(bool)

    def majority(self) -> np.ndarray:
        """(N,) class of most pixels of each object, -1 for one without a valid pixel."""
        return np.where(self.inside.any(1), self.inside.argmax(1), -1)

    def paint(self, image: int, labels: np.ndarray, rest: int) -> np.ndarray:
        """The label map of an image, (H, W) uint8: each object's entry of ``labels`` (N,), ``rest`` around them."""
        painted = np.full(self.shapes[image], rest, np.uint8)
        for index in range(*np.searchsorted(self.image, [image, image + 1])):
            painted[self.mask(index)] = labels[index]
        return painted


def split_mask(mask: np.ndarray, min_component: float | None = None) -> tuple[np.ndarray, int]:
    """The objects of a mask: the whole of it, or each of its connected components (8 neighbours).

    Args:
        mask: (H, W) uint8 in {0, 1}.
        min_component: share of the image below which a component is dropped; None keeps the mask whole.

    Returns:
        (H, W) integers, 0 outside and 1..n in the objects, and n.
    """
    if min_component is None:
        return mask, 1
    _, segments, stats, _ = cv2.connectedComponentsWithStats(mask)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_component * mask.size
    kept[0] = False  # segment 0 is the rest
    return (np.cumsum(kept) * kept).astype(np.uint16)[segments], int(kept.sum())


def object_histograms(objects: np.ndarray, count: int, semseg: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each true class in each object, void not counted.

    Args:
        objects: (H, W) ids 0..count, 0 outside.
        semseg: (H, W) uint8 class ids, 255 = void.

    Returns:
        (count + 1, num_classes) int64; row 0 is what lies outside.
    """
    pairs = objects.astype(np.uint32) << 8 | semseg
    return np.bincount(pairs.ravel(), minlength=(count + 1) * 256).reshape(count + 1, 256)[:, :num_classes]


class Objects(NamedTuple):
    """The objects of one image.

    ids: (h, w) integers, 0 outside and 1..n in the objects; (S, S), or of the size of a given mask.
    prototypes: (n, D) of unit length, zero where the mask is empty.
    scores: (S, S) raw saliency scores, or a single 1 for a given mask.
    """
    ids: np.ndarray
    prototypes: Tensor
    scores: Tensor


@torch.inference_mode()
def find_objects(model: ContrastiveSegmentationModel | BackboneModel, images: Tensor, features: str = 'embedding',
                 masks: Sequence[np.ndarray] | None = None, min_component: float | None = None) -> list[Objects]:
    """Run the network on a batch (paper, section 4.2).

    Args:
        model: has ``maps(images)``, see ContrastiveSegmentationModel.
        images: (B, 3, S, S), normalised, on the model's device.
        features: the map that is pooled, 'embedding' or 'backbone'.
        masks: (H, W) uint8 in {0, 1} each, whose pixels weigh 1; None: the mask is where the saliency score
            exceeds 0.5, and each of its pixels weighs its score.
        min_component: split masks into connected components, see ``split_mask``; None: one object an image.
    """
    maps = model.maps(images)
    size, device = images.shape[-1], images.device
    if masks is None:
        scores = resize(maps['saliency'], (size, size))[:, 0]  # B x S x S
        masks = list((scores > THRESHOLD).to(torch.uint8).cpu().numpy())
    else:
        scores = images.new_ones(len(images), 1, 1)
    found = []
    for i, mask in enumerate(masks):
        objects, count = split_mask(mask, min_component)
        ids = torch.arange(1, count + 1, device=device)[:, None, None]
        at_network = torch.from_numpy(resize_mask(objects, size, size).astype(np.int32)).to(device)
        weights = (at_network == ids) * scores[i]  # n x S x S
        found.append(Objects(objects, weighted_prototypes(maps[features][i:i + 1], weights[None])[0], scores[i]))
    return found


def embed_split(model: ContrastiveSegmentationModel | BackboneModel, loader: DataLoader, device: torch.device,
                num_classes: int, features: str = 'embedding', from_network: bool = True, keep_masks: bool = False,
                min_component: float | None = None, size: int | None = None) -> EmbeddedSplit:
    """Run the network once over a split, see ``find_objects``; processes share its batches, and each gets the whole.

    Args:
        loader: batches of 'image' (B, 3, S, S), 'shape', 'semseg' (without it histograms are 0) and, for
            masks from files, 'sal'; the last two at the images' own sizes.
        num_classes: classes, background included.
        from_network: take the network's masks, not those of 'sal'.
        keep_masks: keep the masks, 1 bit a pixel: as they are scored, or without 'semseg' as they are found.
        size: side of the square at which masks and ground truth are scored, both resized to it (nearest); None: the
            image's own height and width.

    Raises:
        UserError: no image has a mask.
    """
    batches = []
    for batch in progress(loader, 'embedding'):
        prototypes, inside, outside, packed, packed_shapes, shapes, counts = [], [], [], [], [], [], []
        found = find_objects(model, to_device(batch['image'], device), features, None if from_network else batch['sal'],
                             min_component)
        semsegs = batch.get('semseg') or [None] * len(found)
        for objects, semseg, shape in zip(found, semsegs, batch['shape'], strict=True):
            ids, count = objects.ids, len(objects.prototypes)
            histograms = np.zeros((count + 1, num_classes), np.int64)
            if semseg is not None:
                height, width = shape if size is None else (size, size)
                ids, semseg = (resize_mask(labels, width, height) for labels in (ids, semseg))
                histograms = object_histograms(ids, count, semseg, num_classes)
            prototypes.append(objects.prototypes)
            outside.append(histograms[0])
            inside.append(histograms[1:])
            counts.append(count)
            shapes.append(tuple(shape))
            packed_shapes.append(ids.shape)
            if keep_masks:
                packed += [np.packbits(ids == k) for k in range(1, count + 1)]
        batches.append((torch.cat(prototypes).cpu().numpy(), np.concatenate(inside), np.stack(outside), packed,
                        packed_shapes, shapes, counts))
    columns = list(zip(*distributed.interleave(batches), strict=True))
    packed, packed_shapes, shapes, counts = (list(chain(*column)) for column in columns[3:])
    joined = [np.concatenate(column) for column in columns[:3]]
    split = EmbeddedSplit(joined[0], joined[1], joined[2], packed, packed_shapes, shapes,
                          np.repeat(np.arange(len(shapes)), counts))
    if not split.prototypes.any():
        raise UserError(f'none of the {len(shapes)} images has a mask; check the saliency masks, or train the saliency '
                        'head longer.')
    return split
