"""What training of BASNet computes at each step, and how a mask source is scored."""
from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saliency.losses import basnet_loss
from saliency.postprocess import binarise
from saliency.scores import SaliencyScores
from saliency.sources import MaskSource
from utils.run import distributed
from utils.run.log import progress
from utils.run.precision import Precision, to_float32


def compute_losses(network: nn.Module, batch: dict[str, Any], precision: Precision) -> dict[str, Tensor]:
    """Forward one batch of views: 'loss', the hybrid loss summed over the network's eight outputs.

    Args:
        network: BASNet, or what ``distributed.parallel`` made of it.
        precision: how it computes; the loss is in float32.
    """
    with precision.autocast():
        scores = network(precision.to_device(batch['image']))                   # eight, each B x 1 x crop x crop
    target = precision.to_device(batch['sal'])
    return {'loss': basnet_loss([to_float32(score) for score in scores], target)}


def validate(source: MaskSource, loader: DataLoader) -> dict[str, float]:
    """Score a mask source against given masks, at each image's own size.

    Masks are made as ``saliency/predict.py`` makes them; an image that it would leave out has an empty one.

    Args:
        loader: batches of 'image', (H, W, 3) uint8 each, and 'sal', (H, W) in {0, 1} each; several processes take
            them in turn.

    Returns:
        'mIoU', 'maxF' and 'MAE' of all processes, see ``SaliencyScores.read``.
    """
    scores = SaliencyScores()
    for batch in progress(loader, 'validation'):
        for saliency, truth in zip(source.predict(batch['image']), batch['sal'], strict=True):
            mask = binarise(saliency)
            scores.update(saliency, np.zeros(truth.shape, bool) if mask is None else mask, truth)
    return sum(distributed.gather_objects(scores), SaliencyScores()).read()
