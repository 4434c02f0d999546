"""The training loop of pretraining."""
from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.losses import accuracy, contrastive_loss, saliency_loss
from pretrain.maskcontrast import MaskContrast
from utils.errors import UserError
from utils.logger import progress
from utils.metrics import Mean
from utils.runtime import to_device

log = logging.getLogger(__name__)
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


def train_one_epoch(model: MaskContrast, loader: DataLoader, optimizer: torch.optim.Optimizer, device: torch.device,
                    epoch: int, log_every: int, on_means: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
    """One pass over the pairs.

    Args:
        on_means: called with the global step and the means of every ``log_every`` steps.

    Returns:
        the means of the last steps that were logged.

    Raises:
        UserError: the loss is not finite.
    """
    model.train()
    steps, recent, means = len(loader), Mean(), {}
    for step, batch in enumerate(progress(loader, f'epoch {epoch}', steps), 1):
        losses = compute_losses(model, batch, device)
        optimizer.zero_grad(set_to_none=True)
        losses['loss'].backward()
        optimizer.step()
        recent.update(**losses)
        if step % log_every == 0 or step == steps:
            means = recent.read()
            recent.reset()
            if not math.isfinite(means['loss']):
                raise UserError(f'the loss is {means["loss"]} at epoch {epoch}, step {step}; lower '
                                'optimizer_kwargs.lr and start again from the last checkpoint.')
            on_means(epoch * steps + step, means)
            log.info('epoch %d step %d/%d  %s', epoch, step, steps,
                     '  '.join(f'{name} {value:.4f}' for name, value in means.items()))
    return means
