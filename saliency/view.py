"""The random view of an image and its mask that a saliency network is trained on."""
from __future__ import annotations

import numpy as np
import torch

from data.transforms import Sample, uniform
from models.resnet import IMAGENET
from saliency.maps import network_input, resize


class TrainingView:
    """Resize, random crop, horizontal flip (Qin et al., CVPR 2019, section 4.2).

    Args:
        size: side to which the image is resized, not keeping the aspect, pixels.
        crop: side of the random crop, pixels.
        flip_probability: of the flip.

    A sample's 'image' (H, W, 3) uint8 becomes (3, crop, crop) float32, normalised as for prediction; its 'sal'
    (H, W) in {0, 1} becomes (1, crop, crop) float32, the share of each pixel that is object.
    """

    def __init__(self, size: int = 256, crop: int = 224, flip_probability: float = 0.5) -> None:
        self.size, self.crop, self.flip_probability = size, crop, flip_probability

    def __call__(self, sample: Sample) -> Sample:
        size = (self.size, self.size)
        image, mask = network_input(sample['image'], size, *IMAGENET), resize(sample['sal'].astype(np.float32), size)
        top, left = (int(torch.randint(self.size - self.crop + 1, ())) for _ in range(2))
        rows, columns = slice(top, top + self.crop), slice(left, left + self.crop)
        image, mask = image[:, rows, columns], mask[None, rows, columns]
        if uniform(0, 1) < self.flip_probability:
            image, mask = image[..., ::-1], mask[..., ::-1]
        return {'id': sample['id'], 'image': torch.from_numpy(image.copy()), 'sal': torch.from_numpy(mask.copy())}
