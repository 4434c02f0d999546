"""One pass of the network over a split: a prototype, a packed mask and a histogram of each object."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from data.voc import VOID
from models.prototypes import weighted_prototypes
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, resize
from utils import distributed
from utils.errors import UserError
from utils.logger import progress
from utils.runtime import to_device

THRESHOLD = 0.5  # of the raw saliency score


@dataclass
class EmbeddedSplit:
    """What the protocols on prototypes need of the N objects in M images; of its maps only masks are kept, as bits.

    prototypes: (N, D) float32 of unit length, zero where the mask is empty.
    inside: (N, classes) pixels of each true class inside the object, at the image's size.
    outside: (M, classes) pixels of each true class of the image outside all of its objects.
    packed: each object's bits (np.packbits), empty if not kept.
    shapes: each image's (height, width).
    image: (N,) index of each object's image, ascending. One whole mask an image: 0, 1, 2, ...
    """
    prototypes: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    packed: list[np.ndarray]
    shapes: list[tuple[int, int]]
    image: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: an object at its image's own size."""
        height, width = self.shapes[self.image[index]]
        return np.unpackbits(self.packed[index], count=height * width).reshape(height, width).astype(bool)

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


@torch.inference_mode()
def embed_split(model: ContrastiveSegmentationModel | BackboneModel, loader: DataLoader, device: torch.device,
                num_classes: int, features: str = 'embedding', from_network: bool = True, keep_masks: bool = False,
                min_component: float | None = None) -> EmbeddedSplit:
    """Run the network once over a split (paper, section 4.2); processes share its batches, and each gets the whole.

    Args:
        model: has ``maps(images)``, see ContrastiveSegmentationModel.
        loader: batches of 'image' (B, 3, S, S), 'shape', 'semseg' (without it histograms are 0) and, for
            masks from files, 'sal'; the last two at the images' own sizes.
        num_classes: classes, background included.
        features: the map that is pooled, 'embedding' or 'backbone'.
        from_network: the mask is where the saliency score exceeds 0.5, and each of its pixels weighs
            its score; otherwise masks are those of 'sal', each pixel with weight 1.
        keep_masks: keep the masks, 1 bit a pixel.
        min_component: split masks into connected components, see ``split_mask``; None: one object an image.

    Raises:
        UserError: no image has a mask.
    """
    batches = []
    for batch in progress(loader, 'embedding'):
        images = to_device(batch['image'], device)
        maps = model.maps(images)
        size = images.shape[-1]
        if from_network:
            scores = resize(maps['saliency'], (size, size))  # B x 1 x S x S
            masks = (scores[:, 0] > THRESHOLD).to(torch.uint8).cpu().numpy()
        else:
            scores, masks = images.new_ones(len(images), 1, 1, 1), batch['sal']
        prototypes, inside, outside, packed, shapes, counts = [], [], [], [], [], []
        semsegs = batch.get('semseg') or [np.full(shape, VOID, np.uint8) for shape in batch['shape']]
        for i, (mask, semseg) in enumerate(zip(masks, semsegs, strict=True)):
            objects, count = split_mask(mask, min_component)
            ids = torch.arange(1, count + 1, device=device)[:, None, None]
            at_network = torch.from_numpy(resize_mask(objects, size, size).astype(np.int32)).to(device)
            weights = (at_network == ids) * scores[i]  # n x S x S
            prototypes.append(weighted_prototypes(maps[features][i:i + 1], weights[None])[0])
            objects = resize_mask(objects, semseg.shape[1], semseg.shape[0])
            histograms = object_histograms(objects, count, semseg, num_classes)
            outside.append(histograms[0])
            inside.append(histograms[1:])
            counts.append(count)
            shapes.append(semseg.shape)
            if keep_masks:
                packed += [np.packbits(objects == k) for k in range(1, count + 1)]
        batches.append((torch.cat(prototypes).cpu().numpy(), np.concatenate(inside), np.stack(outside), packed, shapes,
                        counts))
    columns = list(zip(*distributed.interleave(batches), strict=True))
    joined, shapes, counts = np.concatenate(columns[0]), list(chain(*columns[4])), list(chain(*columns[5]))
    split = EmbeddedSplit(joined, np.concatenate(columns[1]), np.concatenate(columns[2]), list(chain(*columns[3])),
                          shapes, np.repeat(np.arange(len(shapes)), counts))
    if not split.prototypes.any():
        raise UserError(f'none of the {len(shapes)} images has a mask; check the saliency masks, or train the saliency '
                        'head longer.')
    return split
