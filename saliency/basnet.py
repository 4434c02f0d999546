"""Masks of a trained BASNet (Qin et al., CVPR 2019)."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.basnet import BASNet
from saliency.maps import image_map, network_input
from utils.checkpoint import load_checkpoint
from utils.errors import UserError, name_some
from utils.runtime import pick_device

SIZE = (256, 256)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_basnet(path: Path) -> BASNet:
    """A BASNet with the weights of a checkpoint: a state dict, or one under 'model' or 'state_dict'.

    Raises:
        UserError: the file is no checkpoint, or not one of BASNet; the sentence lists the names.
    """
    state = load_checkpoint(path)
    for key in ('model', 'state_dict'):
        state = state[key] if isinstance(state.get(key), dict) else state
    state = {str(name).removeprefix('module.'): value for name, value in state.items()}
    with torch.device('meta'):  # without spending time on random weights
        network = BASNet()
    own = network.state_dict()
    shapes = [name for name, value in own.items() if name in state
              and (not isinstance(state[name], Tensor) or state[name].shape != value.shape)]
    problems = [f'{what}: {name_some(names, 3)}' for what, names in
                (('missing', [name for name in own if name not in state]),
                 ('unexpected', [name for name in state if name not in own]), ('of another shape', shapes)) if names]
    if problems:
        raise UserError(f'--weights {path} is not a BASNet ({"; ".join(problems)}); give the checkpoint of a BASNet.')
    network.load_state_dict(state, assign=True)
    return network.float()


class BASNetSaliency:
    """A mask source around BASNet.

    Args:
        weights: path of the checkpoint.
        device: 'auto', 'cpu' or 'cuda'.

    Raises:
        UserError: the checkpoint does not fit, or the device is not there.
    """

    def __init__(self, weights: Path, device: str = 'auto') -> None:
        self.device = pick_device(device)
        self.network = load_basnet(weights).to(self.device).eval()

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1."""
        batch = torch.from_numpy(np.stack([network_input(image, SIZE, MEAN, STD) for image in images]))
        maps = torch.sigmoid(self.network(batch.to(self.device))[0])[:, 0].cpu().numpy()  # N x 256 x 256, refined
        return [image_map(saliency, image) for saliency, image in zip(maps, images, strict=True)]
