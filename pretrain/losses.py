"""The two losses of pretraining."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def saliency_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Class-balanced binary cross-entropy of the saliency head (paper, section 4.1).

    With w = (number of y=0) / (number of pixels) over the whole batch, pixels of the object weigh w
    and the others 1 - w; the sum is divided by the number of pixels. 0 if all pixels are alike.

    Args:
        scores: raw scores, any shape.
        masks: same shape, 1 = object, 0 = background.
    """
    y = masks.to(scores.dtype)
    w = (masks == 0).sum().float() / masks.numel()  # float32 in any model, as the golden figures have it
    weight = torch.where(masks.bool(), w, 1 - w).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, y, weight)


def class_weights(labels: Tensor, num_classes: int, num_columns: int) -> Tensor:
    """1 / ln(1.02 + p_c) for each column, p_c the share of ``labels`` that are c (0 for bank columns)."""
    share = torch.bincount(labels, minlength=num_columns).double() / labels.numel()
    share[num_classes:] = 0
    return 1 / torch.log(1.02 + share)


def contrastive_loss(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Pixel-to-prototype cross-entropy, balanced over the objects (paper, equation 3).

    Args:
        logits: P x (B + K), already divided by the temperature.
        labels: P, the index in 0..B-1 of the image that each foreground pixel belongs to.
        num_classes: B, the number of images.

    Returns:
        PyTorch's weighted mean of the cross-entropy, weights by ``class_weights``.
    """
    weight = class_weights(labels, num_classes, logits.shape[1]).to(logits.dtype)
    return F.cross_entropy(logits, labels, weight=weight)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of pixels whose largest logit is their own prototype's, 0..1."""
    return (logits.argmax(1) == labels).float().mean()
