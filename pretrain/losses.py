"""The two losses of pretraining (paper, section 3.2 and 4.1), and what each of its steps computes."""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.run.devices import Precision

GPU_CHUNKS = 6  # a chunk of 32,768 pixels keeps a GPU for less time than its launches take
GPU_LOGITS = 2 ** 28  # of several chunks at most: 1 GiB


def saliency_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Class-balanced binary cross-entropy of the saliency head (paper, section 4.1).

    With w the share of background pixels of the whole batch, pixels of the object weigh w and the others 1 - w; the
    sum is divided by the number of pixels, and 0 if all are alike. Raw scores and masks in {0, 1} have one shape.
    """
    y = masks.to(scores.dtype)
    w = (masks == 0).sum().float() / masks.numel()  # float32 in any model, as the golden figures have it
    weight = torch.where(masks.bool(), w, 1 - w).to(scores.dtype)
    return F.binary_cross_entropy_with_logits(scores, y, weight)


def class_weights(labels: Tensor, num_keys: int, dtype: torch.dtype) -> Tensor:
    """1 / ln(1.02 + p_c) for each key, p_c the share of ``labels`` that are c (0 for those of the queue)."""
    counts = labels.new_zeros(num_keys).scatter_add_(0, labels, torch.ones_like(labels))  # bincount would wait
    return 1 / torch.log(1.02 + counts.to(dtype) / labels.numel())


def contrastive_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Pixel-to-prototype cross-entropy, its weighted mean by ``class_weights`` (paper, equation 3).

    Logits P x (B + K) are already divided by T; labels (P,) are the index, 0..B-1, of each foreground pixel's image.
    """
    return F.cross_entropy(logits, labels, class_weights(labels, logits.shape[1], logits.dtype))


class _Chunked(torch.autograd.Function):
    """The loss and its gradient with respect to q, computed together, a chunk of pixels at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, labels: Tensor, weight: Tensor, T: float,
                chunk: int) -> tuple[Tensor, Tensor]:
        gradient, scaled, label = torch.empty_like(q), keys / T, labels[:, None]  # P x dim, dim x (B + K), P x 1
        share = weight.index_select(0, labels)[:, None]
        minus = share.div_(share.sum()).neg()
        own, total, right = torch.empty_like(share), torch.empty_like(share), torch.empty_like(label, dtype=torch.bool)
        room = logits = q.new_empty(min(chunk, len(q)), scaled.shape[1])  # chunk x (B + K)
        tops, firsts = room.new_empty(len(room), 1), label.new_empty(len(room), 1)
        for pixels in range(0, len(q), chunk):
            part, rows = slice(pixels, pixels + chunk), slice(len(q) - pixels)
            logits, top, nearest = room[rows], tops[rows], firsts[rows]
            torch.matmul(q[part], scaled, out=logits)
            torch.max(logits, 1, True, out=(top, nearest))  # of equal ones the first: a collapse is no success
            torch.eq(nearest, label[part], out=right[part])
            torch.gather(logits.sub_(top), 1, label[part], out=own[part])
            torch.sum(logits.exp_(), 1, True, out=total[part])
            logits.mul_(share[part] / total[part]).scatter_add_(1, label[part], minus[part])  # d loss / d logits
            torch.matmul(logits, scaled.T, out=gradient[part])
        del room, logits
        ctx.save_for_backward(gradient)
        loss, accuracy = (total.log_().sub_(own) * share).sum(), right.float().mean()
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, = ctx.saved_tensors
        return gradient * slope, None, None, None, None, None


def chunked_contrastive_loss(q: Tensor, keys: Tensor, labels: Tensor, T: float, chunk: int) -> tuple[Tensor, Tensor]:
    """``contrastive_loss`` of q @ keys / T, and its ``accuracy``, with the logits of ``chunk`` pixels at a time.

    q is P x dim and keys dim x (B + K). These have no gradient, so that of q is known as soon as the logits are, and
    P x dim numbers are kept for the backward pass in place of P x (B + K).
    """
    return _Chunked.apply(q, keys, labels, class_weights(labels, keys.shape[1], q.dtype), T, chunk)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of pixels whose largest logit is their own prototype's, 0..1."""
    return (logits.argmax(1) == labels).float().mean()


def compute_losses(model: nn.Module, batch: dict[str, Any], precision: Precision,
                   chunk: int = 32768) -> dict[str, Tensor]:
    """One batch of ``collate_pairs``: 'loss' (with gradient), 'contrastive', 'saliency', 'accuracy', 'foreground'.

    Losses are in float32 or float64 in any ``precision``. ``chunk`` is the pixels of the contrastive loss at a time, on
    GPUs up to ``GPU_CHUNKS`` times as many; 0 holds all of its logits in memory.
    """
    views = ('query', 'query_pixels', 'key', 'key_pixels')
    encoder: Any = getattr(model, 'module', model).model_q  # behind DistributedDataParallel, if there is one
    stride = encoder.output_stride
    mask_q = precision.to_device(batch['query_mask'])[:, ::stride, ::stride]  # nearest
    with precision.autocast():
        output = model(*(precision.to_device(batch[name]) for name in views))
    if chunk:
        if precision.device.type == 'cuda':
            chunk *= min(GPU_CHUNKS, max(1, GPU_LOGITS // (chunk * output.keys.shape[1])))
        contrastive, top1 = chunked_contrastive_loss(output.q, output.keys, output.labels, output.T, chunk)
    else:
        logits = output.logits  # P x (B + K)
        contrastive, top1 = contrastive_loss(logits, output.labels), accuracy(logits, output.labels)
    losses = {'loss': contrastive, 'contrastive': contrastive, 'accuracy': top1, 'foreground': mask_q.float().mean()}
    if output.saliency is None:
        return losses
    saliency = saliency_loss(output.saliency, mask_q)
    return losses | {'saliency': saliency, 'loss': contrastive + saliency}
