"""What happens to an image on its way to the network."""
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

Sample = dict[str, Any]
Colour = tuple[float, float, float]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with PyTorch's CPU generator at ``seed``, and leave the generator as it was."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed reaches for the GPUs, and takes 100 times as long
        yield


def uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def normalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float], whole: int = 255) -> Tensor:
    """(H, W, 3) in 0..whole -> (3, H, W) float32, the input of a network."""
    scaled = (image.astype(np.float32) / whole - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def denormalize(image: Tensor, mean: Colour, std: Colour) -> np.ndarray:
    """The way back: (3, H, W) normalised -> (H, W, 3) uint8."""
    values = image.cpu().numpy().transpose(1, 2, 0) * np.array(std, np.float32) + np.array(mean, np.float32)
    return (255 * values).round().clip(0, 255).astype(np.uint8)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, cubic, not keeping the aspect.

    The cubic kernel overshoots at edges; 8 bits cut what in float32 would reach from -60 to 300 to 0..255.
    """
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


def resize_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Nearest-neighbour resize of a (H, W) mask."""
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)


def mask_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Of two masks (H, W) bool; of two empty ones it is 1."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


def split_mask(mask: np.ndarray, min_component: float | None = None) -> tuple[np.ndarray, int]:
    """A mask (H, W) uint8 in {0, 1} -> (H, W) unsigned integers, 0 outside and 1..n in its objects, and n.

    An object is a connected component (8 neighbours) of at least ``min_component``, as a share of the image; with
    None it is the whole mask, or what the mask has numbered.
    """
    if min_component is None:
        return mask, max(1, int(mask.max(initial=0)))
    _, segments, stats, _ = cv2.connectedComponentsWithStats(mask)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_component * mask.size
    kept[0] = False  # segment 0 is what lies outside
    count = int(kept.sum())
    return (np.cumsum(kept) * kept).astype(np.min_scalar_type(count))[segments], count


class LinearTrainTransform:
    """Training transform of the linear classifier: flip, one affine map about the centre, resize; all in 8 bits.

    A sample's 'image' (H, W, 3) uint8 becomes (3, size, size) normalised, its 'semseg' (size, size) int64. The border
    that the affine map leaves has the ground truth ``border_label``: 0 as published, or 255.
    """

    def __init__(self, size: int, mean: Colour, std: Colour, border_label: int = 0, angle: float = 5,
                 scale: tuple[float, float] = (0.75, 1.25)) -> None:
        self.size, self.mean, self.std, self.border_label = size, mean, std, border_label
        self.angle, self.scale = angle, scale

    def __call__(self, sample: Sample) -> Sample:
        image, semseg = sample['image'], sample['semseg']
        if uniform(0, 1) < 0.5:
            image, semseg = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(semseg[:, ::-1])
        height, width = semseg.shape
        affine = cv2.getRotationMatrix2D((width / 2, height / 2), uniform(-self.angle, self.angle),
                                         uniform(*self.scale))
        image = cv2.warpAffine(image, affine, (width, height), flags=cv2.INTER_CUBIC)
        semseg = cv2.warpAffine(semseg, affine, (width, height), flags=cv2.INTER_NEAREST,
                                borderValue=self.border_label)
        return {**sample, 'image': normalize(resize_image(image, self.size), self.mean, self.std),
                'semseg': torch.from_numpy(resize_mask(semseg, self.size, self.size)).long()}


class EvaluationTransform:
    """Resize the image for the network; ground truth and masks keep the image's own size.

    'image' becomes (3, size, size) normalised; 'shape' is the image's own (height, width); 'original' the decoded image
    (H, W, 3) uint8 if its ID is among ``originals``, else None.
    """

    def __init__(self, size: int, mean: Colour, std: Colour, originals: Iterable[str] = ()) -> None:
        self.size, self.mean, self.std, self.originals = size, mean, std, frozenset(originals)

    def __call__(self, sample: Sample) -> Sample:
        return {**sample, 'shape': sample['image'].shape[:2],
                'original': sample['image'] if sample.get('id') in self.originals else None,
                'image': normalize(resize_image(sample['image'], self.size), self.mean, self.std)}
