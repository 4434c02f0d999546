"""What pretraining computes at each step."""
from typing import Any

from torch import Tensor, nn

from pretrain.losses import accuracy, chunked_contrastive_loss, contrastive_loss, saliency_loss
from utils.run.devices import Precision, pin

CHUNK = 32768


def compute_losses(model: nn.Module, batch: dict[str, Any], precision: Precision,
                   chunk: int = CHUNK) -> dict[str, Tensor]:
    """One batch of pairs: 'loss' (with gradient), 'contrastive', 'saliency', 'accuracy', 'foreground'.

    Losses are in float32 or float64 in any ``precision``. ``chunk`` is the pixels of the contrastive loss at a time; 0
    holds all of its logits in memory.
    """
    im_q, im_k = (precision.to_device(batch[view]) for view in ('query', 'key'))  # B x 3 x H x W
    masks = [batch['query_mask'], batch['key_mask']]  # B x H x W
    encoder: Any = getattr(model, 'module', model).model_q  # behind DistributedDataParallel, if there is one
    if not encoder.upsample:
        stride = encoder.backbone.stride
        masks = [pin(mask[:, ::stride, ::stride], precision.device) for mask in masks]  # nearest
    mask_q, mask_k = (precision.to_device(mask) for mask in masks)
    with precision.autocast():
        output = model(im_q, masks[0], im_k, mask_k)
    if chunk:
        contrastive, top1 = chunked_contrastive_loss(output.q, output.keys, output.labels, output.T, chunk)
    else:
        logits = output.logits  # P x (B + K)
        contrastive, top1 = contrastive_loss(logits, output.labels), accuracy(logits, output.labels)
    losses = {'loss': contrastive, 'contrastive': contrastive, 'accuracy': top1, 'foreground': mask_q.float().mean()}
    if output.saliency is None:
        return losses
    saliency = saliency_loss(output.saliency, mask_q)
    return losses | {'saliency': saliency, 'loss': contrastive + saliency}
