"""What pretraining computes at each step."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.losses import accuracy, contrastive_loss, saliency_loss
from pretrain.maskcontrast import MaskContrast
from utils.runtime import to_device

REDUCTION = 8  # of the masks, when the network's outputs are not upsampled


def compute_losses(model: MaskContrast, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Forward one batch of pairs: 'loss' (with gradient), 'contrastive', 'saliency', 'accuracy', 'foreground'."""
    im_q, im_k = (to_device(batch[view], device) for view in ('query', 'key'))
    mask_q, mask_k = (batch[view + '_mask'].to(device, non_blocking=True) for view in ('query', 'key'))
    if not model.model_q.upsample:
        mask_q, mask_k = (mask[:, ::REDUCTION, ::REDUCTION] for mask in (mask_q, mask_k))  # nearest
    output = model(im_q, mask_q, im_k, mask_k)
    contrastive = contrastive_loss(output.logits, output.labels, len(im_q))
    losses = {'loss': contrastive, 'contrastive': contrastive,
              'accuracy': accuracy(output.logits.detach(), output.labels), 'foreground': mask_q.float().mean()}
    if output.saliency is not None:
        losses['saliency'] = saliency_loss(output.saliency, mask_q)
        losses['loss'] = contrastive + losses['saliency']
    return losses
