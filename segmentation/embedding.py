"""One pass of the network over a split: a prototype, a packed mask and two histograms of each image."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from models.prototypes import weighted_prototypes
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, resize
from utils.errors import UserError
from utils.logger import progress
from utils.runtime import to_device

THRESHOLD = 0.5  # of the raw saliency score


@dataclass
class EmbeddedSplit:
    """What the protocols on prototypes need of N images; of its maps only the mask is kept, as bits.

    prototypes: (N, D) float32 of unit length, zero where the mask is empty.
    inside, outside: (N, classes) pixels of each true class inside and outside the mask, at the image's size.
    packed, shapes: each mask's bits (np.packbits) and its (height, width); empty lists if not kept.
    """
    prototypes: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    packed: list[np.ndarray]
    shapes: list[tuple[int, int]]

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8 in {0, 1} at the image's own size."""
        height, width = self.shapes[index]
        return np.unpackbits(self.packed[index], count=height * width).reshape(height, width)


@torch.inference_mode()
def embed_split(model: ContrastiveSegmentationModel | BackboneModel, loader: DataLoader, device: torch.device,
                num_classes: int, features: str = 'embedding', from_network: bool = True,
                keep_masks: bool = False) -> EmbeddedSplit:
    """Run the network once over a split (paper, section 4.2).

    Args:
        model: has ``maps(images)``, see ContrastiveSegmentationModel.
        loader: batches of 'image' (B, 3, S, S), 'semseg' and, for masks from files, 'sal', at their own sizes.
        num_classes: classes, background included.
        features: the map that is pooled, 'embedding' or 'backbone'.
        from_network: the mask is where the saliency score exceeds 0.5, and each of its pixels weighs
            its score; otherwise masks are those of 'sal', each pixel with weight 1.
        keep_masks: keep the masks, 1 bit a pixel.

    Raises:
        UserError: no image has a mask.
    """
    prototypes, inside, outside, packed, shapes = [], [], [], [], []
    for batch in progress(loader, 'embedding'):
        images = to_device(batch['image'], device)
        maps = model.maps(images)
        size = images.shape[-1]
        if from_network:
            scores = resize(maps['saliency'], images.shape[-2:])[:, 0]  # B x S x S
            weights = torch.where(scores > THRESHOLD, scores, 0)
            masks = [resize_mask(mask, semseg.shape[1], semseg.shape[0]) for mask, semseg
                     in zip((weights > 0).to(torch.uint8).cpu().numpy(), batch['semseg'], strict=True)]
        else:
            masks = batch['sal']
            weights = torch.from_numpy(np.stack([resize_mask(mask, size, size) for mask in masks])).to(device)
        prototypes.append(weighted_prototypes(maps[features], weights).cpu().numpy())
        for mask, semseg in zip(masks, batch['semseg'], strict=True):
            inside.append(np.bincount(semseg[mask > 0], minlength=256)[:num_classes])
            outside.append(np.bincount(semseg[mask == 0], minlength=256)[:num_classes])
            if keep_masks:
                packed.append(np.packbits(mask))
                shapes.append(mask.shape)
    split = EmbeddedSplit(np.concatenate(prototypes), np.stack(inside), np.stack(outside), packed, shapes)
    if not split.prototypes.any():
        raise UserError(f'none of the {len(inside)} images has a mask; check the saliency masks, or train the saliency '
                        'head longer.')
    return split
