"""What a source of masks looks like, and how to get one by name."""
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.run.devices import pick_device, to_device
from utils.run.errors import UserError

METHODS = ('basnet', 'onnx', 'unsupervised')


class MaskSource(Protocol):
    """Anything that finds the salient objects of images."""

    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images, of any sizes -> one (H, W) float32 map in 0..1 for each."""


def build_source(method: str, weights: Path | None = None, onnx_config: Path | None = None,
                 device: str = 'auto', input_size: int | None = None) -> MaskSource:
    """The mask source of a name; its libraries are imported only here.

    Args:
        input_size: side of BASNet's input, pixels; None is the published one.

    Raises:
        UserError: what the method needs is missing, or what it does not take is given; files that do not fit.
    """
    if method not in METHODS:
        raise UserError(f"unknown --method '{method}'; choose one of {', '.join(METHODS)}.")
    if method == 'unsupervised' and weights is not None:
        raise UserError('--method unsupervised has no weights; leave out --weights, or choose basnet or onnx.')
    for option, value, owner in (('--onnx-config', onnx_config, 'onnx'), ('--input-size', input_size, 'basnet')):
        if method != owner and value is not None:
            raise UserError(f'{option} is for --method {owner}, not {method}; leave it out.')
    if method == 'unsupervised':
        from saliency.unsupervised import UnsupervisedSaliency
        return UnsupervisedSaliency()
    if weights is None:
        raise UserError(f'--method {method} needs --weights PATH, the file with the weights of its network; '
                        'or take --method unsupervised, which needs none.')
    if method == 'basnet':
        from saliency.basnet import SIZE, BASNetSaliency, load_basnet
        where = pick_device(device)
        return BASNetSaliency(to_device(load_basnet(weights), where), where, input_size or SIZE)
    if onnx_config is None:
        raise UserError('--method onnx needs --onnx-config PATH, a YAML file with input_size, mean and scale of the '
                        'network.')
    from saliency.onnx_network import OnnxSaliency, read_onnx_config
    return OnnxSaliency(weights, read_onnx_config(onnx_config), device)
