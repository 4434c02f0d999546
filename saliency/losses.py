"""The hybrid loss of BASNet (Qin et al., CVPR 2019, section 3.4): pixels, patches and the whole map."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA, SSIM_CONSTANTS = 11, 1.5, (0.01 ** 2, 0.03 ** 2)


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of maps (N, 1, H, W) in 0..1; Gaussian window, zero padding.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.
    """
    distance = torch.arange(SSIM_WINDOW, dtype=pred.dtype, device=pred.device) - SSIM_WINDOW // 2
    window = torch.exp(-distance ** 2 / (2 * SSIM_SIGMA ** 2))
    window = (window / window.sum())
    kernel = torch.outer(window, window)[None, None]                         # 1 x 1 x 11 x 11
    products = torch.cat([pred, target, pred * pred, target * target, pred * target], dim=1)
    local = F.conv2d(products, kernel.expand(5, 1, -1, -1), padding=SSIM_WINDOW // 2, groups=5)
    mean_p, mean_t, pp, tt, pt = local.unbind(dim=1)                         # each N x H x W
    var_p, var_t, cov = pp - mean_p ** 2, tt - mean_t ** 2, pt - mean_p * mean_t
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    return (similarity / ((mean_p ** 2 + mean_t ** 2 + c1) * (var_p + var_t + c2))).mean()


def soft_iou(pred: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of maps (N, 1, H, W) in 0..1, computed per image, then averaged.

    Two empty maps agree: their IoU is 1.
    """
    intersection = (pred * target).flatten(1).sum(dim=1)
    union = (pred + target).flatten(1).sum(dim=1) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-12), torch.ones_like(union)).mean()


def hybrid_loss(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms for one output of the network; their sum is its loss.

    Args:
        score: (N, 1, H, W) raw scores, before the sigmoid.
        target: (N, 1, H, W) masks in 0..1, of the same dtype.

    Returns:
        (BCE, 1 - SSIM, 1 - soft IoU), scalars.
    """
    pred = torch.sigmoid(score)
    return F.binary_cross_entropy_with_logits(score, target), 1 - ssim(pred, target), 1 - soft_iou(pred, target)


def basnet_loss(scores: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum of the hybrid loss over all outputs of ``saliency.basnet_network.BASNet``, with equal weight."""
    return torch.stack([torch.stack(hybrid_loss(score, target)).sum() for score in scores]).sum()
