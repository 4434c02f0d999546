"""What a source of masks looks like, and how to get one by name."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from utils.run.devices import pick_device, to_device
from utils.run.errors import UserError

METHODS: dict[str, dict[str, bool]] = {  # the options that each takes, and whether it needs them
    'basnet': {'--weights': True, '--input-size': False}, 'onnx': {'--weights': True, '--onnx-config': True},
    'unsupervised': {}}
# (H, W, 3) uint8 RGB images of any sizes -> a (H, W) float32 map in 0..1 of each, 1 on its salient objects
MaskSource = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def build_source(method: str, weights: Path | None = None, onnx_config: Path | None = None,
                 device: str = 'auto', input_size: int | None = None) -> MaskSource:
    """The mask source of a name; its libraries are imported only here. ``input_size`` is that of BASNet, pixels.

    Raises UserError for an option that the method needs or does not take, and for files that do not fit.
    """
    takes = METHODS[method]
    for option, value in (('--weights', weights), ('--onnx-config', onnx_config), ('--input-size', input_size)):
        if value is not None and option not in takes:
            raise UserError(f'--method {method} takes no {option}; leave it out.')
        if value is None and takes.get(option):
            raise UserError(f'--method {method} needs {option} PATH; or take --method unsupervised, which needs none.')
    if method == 'unsupervised':
        from saliency.unsupervised import unsupervised_saliency
        return unsupervised_saliency
    if method == 'basnet':
        from saliency.basnet import SIZE, BASNetSaliency, load_basnet
        where = pick_device(device)
        return BASNetSaliency(to_device(load_basnet(cast(Path, weights)), where), where, input_size or SIZE)
    from saliency.onnx_network import OnnxSaliency, read_onnx_config
    return OnnxSaliency(cast(Path, weights), read_onnx_config(cast(Path, onnx_config)), device)
