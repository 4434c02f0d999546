"""Training of BASNet (Qin et al., CVPR 2019): its views, its initial weights, its loss, and how its maps are scored."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.transforms import Sample, uniform
from models.backbones import IMAGENET
from models.weights import Weights, load_strict
from saliency.maps import binarise, network_input, resize
from saliency.sources import MaskSource
from utils.run import distributed
from utils.run.devices import Precision, to_float32
from utils.run.log import progress

SSIM_WINDOW, SSIM_SIGMA, SSIM_CONSTANTS = 11, 1.5, (0.01 ** 2, 0.03 ** 2)
BETA2 = 0.3  # of the F-measure: precision counts more than recall (Achanta et al., CVPR 2009)
THRESHOLDS = 255  # 0/255 .. 254/255, of precision and recall


class TrainingView:
    """Resize to ``size`` x ``size`` pixels, random crop, horizontal flip (section 4.2).

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


def load_initial_weights(network: nn.Module, weights: Weights) -> None:
    """Load a BASNet, or its stages from a ResNet-34, whose stem is another. Raises UserError for other weights."""
    if weights.kind == 'backbone':
        network = nn.ModuleDict({f'layer{n}': network.get_submodule(f'encoder{n}') for n in (1, 2, 3, 4)})
        weights = weights.without('conv1.', 'bn1.')
    load_strict(network, weights, 'set pretraining to the checkpoint of a ResNet-34 or a BASNet')


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al., 2004) of maps (N, 1, H, W) in 0..1; Gaussian window, zero padding."""
    distance = torch.arange(SSIM_WINDOW, dtype=pred.dtype, device=pred.device) - SSIM_WINDOW // 2
    window = torch.exp(-distance ** 2 / (2 * SSIM_SIGMA ** 2))
    window = window / window.sum()
    kernel = torch.outer(window, window)[None, None]  # 1 x 1 x 11 x 11
    products = torch.cat([pred, target, pred * pred, target * target, pred * target], dim=1)
    local = F.conv2d(products, kernel.expand(5, 1, -1, -1), padding=SSIM_WINDOW // 2, groups=5)
    mean_p, mean_t, pp, tt, pt = local.unbind(dim=1)  # each N x H x W
    var_p, var_t, cov = pp - mean_p ** 2, tt - mean_t ** 2, pt - mean_p * mean_t
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    return (similarity / ((mean_p ** 2 + mean_t ** 2 + c1) * (var_p + var_t + c2))).mean()


def soft_iou(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images of the IoU of maps (N, 1, H, W) in 0..1; of two empty maps it is 1."""
    intersection = (pred * target).flatten(1).sum(dim=1)
    union = (pred + target).flatten(1).sum(dim=1) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-12), torch.ones_like(union)).mean()


def hybrid_loss(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """BCE, 1 - SSIM and 1 - soft IoU (section 3.4) of raw scores (N, 1, H, W) and masks in 0..1 of the same dtype."""
    pred = torch.sigmoid(score)
    return F.binary_cross_entropy_with_logits(score, target), 1 - ssim(pred, target), 1 - soft_iou(pred, target)


def basnet_loss(scores: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum of the hybrid loss over all outputs of the network, with equal weight."""
    return torch.stack([torch.stack(hybrid_loss(score, target)).sum() for score in scores]).sum()


def compute_losses(network: nn.Module, batch: dict[str, Any], precision: Precision) -> dict[str, Tensor]:
    """The 'loss' of one batch of views, in float32."""
    with precision.autocast():
        scores = network(precision.to_device(batch['image']))  # eight, each B x 1 x crop x crop
    return {'loss': basnet_loss([to_float32(score) for score in scores], precision.to_device(batch['sal']))}


def mask_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Of two masks (H, W) bool; of two empty ones it is 1."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum() / union) if union else 1.0


def map_scores(saliency: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU, mean absolute error, precision and recall at each threshold of one map: (2 + 2 THRESHOLDS,), to be averaged.

    The map is (H, W) in 0..1, and its mask that of ``saliency/predict.py``, empty for an image left out. In ``truth``,
    (H, W), objects are nonzero.
    """
    truth, mask = truth > 0, binarise(saliency)
    levels = np.minimum((saliency * THRESHOLDS).astype(int), THRESHOLDS - 1)
    chosen, hits = (np.bincount(values.ravel(), minlength=THRESHOLDS)[::-1].cumsum()[::-1]  # that reach a threshold
                    for values in (levels, levels[truth]))
    return np.concatenate([[mask_iou(np.zeros_like(truth) if mask is None else mask, truth),
                            np.abs(saliency - truth).mean()],
                           hits / np.maximum(chosen, 1), hits / max(int(truth.sum()), 1)])


def read_scores(mean: np.ndarray) -> dict[str, float]:
    """'mIoU', 'maxF' (of mean precision and recall at the best threshold) and 'MAE' in percent, as in results.json."""
    precision, recall = mean[2:].reshape(2, THRESHOLDS)
    f = (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, 1e-12)
    return {'mIoU': 100 * float(mean[0]), 'maxF': 100 * float(f.max()), 'MAE': 100 * float(mean[1])}


def validate(source: MaskSource, loader: DataLoader) -> dict[str, float]:
    """Score a mask source against precomputed masks, at each image's own size; see ``read_scores``.

    A batch has lists of 'image', (H, W, 3) uint8, and 'sal', (H, W) in {0, 1}; several processes take them in turn.
    """
    scores = [map_scores(saliency, truth) for batch in progress(loader, 'validation')
              for saliency, truth in zip(source(batch['image']), batch['sal'], strict=True)]
    totals = distributed.gather_objects((len(scores), np.sum(scores, axis=0)))
    return read_scores(sum(total for _, total in totals) / sum(count for count, _ in totals))
