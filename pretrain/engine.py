"""What pretraining computes at each step."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pretrain.losses import accuracy, chunked_contrastive_loss, contrastive_loss, saliency_loss
from utils.run.devices import pin
from utils.run.distributed import unwrap
from utils.run.precision import Precision

CHUNK = 32768


def compute_losses(model: nn.Module, batch: dict[str, Any], precision: Precision,
                   chunk: int = CHUNK) -> dict[str, Tensor]:
    """Forward one batch of pairs: 'loss' (with gradient), 'contrastive', 'saliency', 'accuracy', 'foreground'.

    Args:
        model: MaskContrast, or what ``distributed.parallel`` made of it.
        precision: how the networks compute; losses are in float32 or float64 always.
        chunk: pixels of the contrastive loss at a time; 0 holds all of its logits in memory.
    """
    im_q, im_k = (precision.to_device(batch[view]) for view in ('query', 'key'))
    mask_q, mask_k = batch['query_mask'], batch['key_mask']
    encoder = unwrap(model).model_q
    if not encoder.upsample:
        stride = encoder.backbone.stride
        mask_q, mask_k = (pin(mask[:, ::stride, ::stride], precision.device) for mask in (mask_q, mask_k))  # nearest
    on_cpu = mask_q
    mask_q, mask_k = (precision.to_device(mask) for mask in (mask_q, mask_k))
    with precision.autocast():
        output = model(im_q, on_cpu, im_k, mask_k)
    if chunk:
        contrastive, top1 = chunked_contrastive_loss(output.q, output.columns, output.labels, output.prototypes,
                                                     output.T, chunk)
    else:
        logits = output.logits
        contrastive, top1 = contrastive_loss(logits, output.labels, output.prototypes), accuracy(logits, output.labels)
    losses = {'loss': contrastive, 'contrastive': contrastive,
              'accuracy': top1, 'foreground': mask_q.float().mean()}
    if output.saliency is not None:
        losses['saliency'] = saliency_loss(output.saliency, mask_q)
        losses['loss'] = contrastive + losses['saliency']
    return losses
