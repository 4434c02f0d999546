"""The random pairs of views of pretraining, drawn as torchvision draws them and made by OpenCV on 8 bit images."""
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from data.image_set import ImageSet
from data.transforms import Sample, uniform
from utils.run.errors import UserError

GREY_WEIGHTS = np.array([[0.2989, 0.587, 0.114]], np.float32)  # of ITU-R BT.601, as torchvision rounds them
SOLARISED = np.where(np.arange(256) < 128, np.arange(256), 255 - np.arange(256)).astype(np.uint8)  # by grey level
CUT_OFF = -0.49997  # OpenCV rounds to 8 bits; less almost a half, it cuts the fraction off, as torchvision does
MIN_FOREGROUND, MAX_FOREGROUND = 0.01, 0.99
DRAWS, IMAGES = 3, 50  # of views for an image, and of images for a sample
Array = np.ndarray


class Draw(NamedTuple):
    """What is random in a view."""
    crop: tuple[int, int, int, int]  # top, left, height, width
    jitter: list[tuple[str, float]]  # the colour changes in their order
    grey: bool
    flip: bool
    solarise: bool = False


class ContrastiveView:
    """The random view of pretraining (paper, section 4.1; MoCo v2's augmentations without blur).

    A view is drawn first and made afterwards, so that a mask without foreground costs no work on its image.
    The same draws give what torchvision's v2 transforms on tensors give, to one grey level.

    ``size`` is the side of the result, pixels; ``scale`` and ``ratio`` are ranges of the crop's share of the area and
    of its aspect ratio; ``jitter`` is how far brightness, contrast, saturation and hue may change. With
    ``solarise_probability``, which is not of the paper but of BYOL (Grill et al., 2020), bright values are inverted.
    """

    def __init__(self, size: int = 224, scale: Sequence[float] = (0.2, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3),
                 jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1), jitter_probability: float = 0.8,
                 grey_probability: float = 0.2, flip_probability: float = 0.5,
                 solarise_probability: float = 0.0) -> None:
        self.size = size
        self.crop, self.jitter = v2.RandomResizedCrop(size, scale=scale, ratio=ratio), v2.ColorJitter(*jitter)
        self.jitter_probability, self.grey_probability = jitter_probability, grey_probability
        self.flip_probability, self.solarise_probability = flip_probability, solarise_probability

    def draw(self, mask: Array) -> Draw:
        """Draw a view of an image with this mask (H, W) from PyTorch's CPU generator."""
        crop = self.crop.make_params([torch.from_numpy(mask)])
        jitter = []
        if uniform(0, 1) < self.jitter_probability:
            drawn = self.jitter.make_params([])
            names = [list(COLOUR)[i] for i in drawn['fn_idx'].tolist()]
            jitter = [(name, drawn[f'{name}_factor']) for name in names if drawn[f'{name}_factor'] is not None]
        return Draw((crop['top'], crop['left'], crop['height'], crop['width']), jitter,
                    grey=uniform(0, 1) < self.grey_probability, flip=uniform(0, 1) < self.flip_probability,
                    solarise=self.solarise_probability > 0 and uniform(0, 1) < self.solarise_probability)

    def make_mask(self, mask: Array, draw: Draw) -> Array:
        """(H, W) -> (size, size), nearest at pixel centres: the mask does not shift against its image."""
        top, left, height, width = draw.crop
        centres = 2 * np.arange(self.size) + 1  # in halves of an output pixel
        columns = left + (centres[::-1] if draw.flip else centres) * width // (2 * self.size)
        return mask[top + centres * height // (2 * self.size)].take(columns, axis=1)

    def make_image(self, image: Array, draw: Draw) -> Tensor:
        """(H, W, 3) uint8 -> (3, size, size) uint8; the crop is bilinear with antialiasing."""
        top, left, height, width = draw.crop
        part = torch.from_numpy(image[top:top + height, left:left + width])
        batch = part[None].permute(0, 3, 1, 2)  # 1 x 3 x h x w, channels last: the kernel made for it is fast
        small = F.interpolate(batch, (self.size, self.size), mode='bilinear', antialias=True)
        view = np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())
        for name, factor in draw.jitter:
            view = COLOUR[name](view, factor)
        if draw.grey:
            view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # rounded, as Pillow does
        if draw.solarise:
            view = cv2.LUT(view, SOLARISED)
        if draw.flip:
            view = cv2.flip(view, 1)
        planes = np.empty((3, self.size, self.size), np.uint8)
        cv2.split(view, list(planes))
        return torch.from_numpy(planes)


def _grey(image: Array) -> Array:
    """(H, W, 3) uint8 -> (H, W) uint8."""
    return cv2.convertScaleAbs(cv2.transform(image.astype(np.float32), GREY_WEIGHTS), beta=CUT_OFF)


def _brightness(image: Array, factor: float) -> Array:
    return cv2.addWeighted(image, factor, image, 0, CUT_OFF)


def _contrast(image: Array, factor: float) -> Array:
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * cv2.mean(_grey(image))[0] + CUT_OFF)


def _saturation(image: Array, factor: float) -> Array:
    grey = cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, CUT_OFF)


def _hue(image: Array, factor: float) -> Array:
    """Turn the hue by a share of the circle; in float32, for 8 bits hold the hue to a degree or two only."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in degrees, value in 0..255
    hsv[..., 0] += np.float32(360 * (factor % 1))
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)  # takes the hue modulo 360
    return cv2.convertScaleAbs(rgb, alpha=255.999 / 255, beta=CUT_OFF)  # torchvision's way to 8 bits


COLOUR = {'brightness': _brightness, 'contrast': _contrast, 'saturation': _saturation, 'hue': _hue}  # as ColorJitter's


class ContrastivePair:
    """A transform of ``images``: two views of one with their masks, both with a foreground share in (0.01, 0.99).

    Views are drawn at most three times for an image, then another random image takes its place: 50 in a row raise
    UserError. A sample holds 'query' and 'key', (3, size, size) uint8, with 'query_mask' and 'key_mask', (size, size)
    uint8 in {0, 1}, and 'id'.
    """

    def __init__(self, images: ImageSet, view: ContrastiveView) -> None:
        self.images, self.view = images, view

    def __call__(self, sample: Sample) -> Sample:
        tried = chain([sample], (self.images.load(int(torch.randint(len(self.images), ()))) for _ in range(IMAGES - 1)))
        for sample in tried:
            image, mask = sample['image'], sample['sal']
            for _ in range(DRAWS if mask.any() else 0):
                draws = {name: self.view.draw(mask) for name in ('query', 'key')}
                masks = {name: self.view.make_mask(mask, draw) for name, draw in draws.items()}
                if all(MIN_FOREGROUND < cv2.countNonZero(view) / view.size < MAX_FOREGROUND for view in masks.values()):
                    return {'id': sample['id'], **{name: self.view.make_image(image, draws[name]) for name in draws},
                            **{f'{name}_mask': torch.from_numpy(view) for name, view in masks.items()}}
        raise UserError(f'{IMAGES} images in a row, the last {sample["id"]}, gave no two views with a foreground share '
                        f'between {MIN_FOREGROUND} and {MAX_FOREGROUND}; the masks in {self.images.masks} look empty '
                        'or full: check them.')
