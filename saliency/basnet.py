"""Masks of a trained BASNet (Qin et al., CVPR 2019)."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.resnet import IMAGENET
from models.weights import load_strict, read_weights
from saliency.basnet_network import BASNet
from saliency.maps import image_map, network_input
from utils.run.devices import pin, to_device
from utils.run.precision import tf32

SIZE = 256  # side of the input, as published


def load_basnet(path: Path) -> BASNet:
    """A BASNet with the weights of a checkpoint: the released state dict, or a checkpoint of training.

    Raises:
        UserError: the file is no checkpoint, or not one of BASNet; the sentence lists the names.
    """
    weights = read_weights(path)
    with torch.device('meta'):  # without spending time on random weights
        network = BASNet()
    network.to_empty(device='cpu')
    load_strict(network, weights, mend='give the checkpoint of a BASNet')
    return network


class BASNetSaliency:
    """A mask source around BASNet.

    Args:
        network: in any mode, on any device; each prediction switches it to eval mode.
        device: where it is.
        size: side to which images are resized for it, pixels.
        tf32: see ``utils.run.precision``.
    """

    def __init__(self, network: BASNet, device: torch.device, size: int = SIZE, tf32: bool = False) -> None:
        self.network, self.device, self.size, self.tf32 = network, device, size, tf32

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1."""
        self.network.eval()
        batch = torch.from_numpy(np.stack([network_input(image, (self.size, self.size), *IMAGENET)
                                           for image in images]))
        batch = to_device(pin(batch, self.device), self.device)
        with tf32(self.tf32):
            maps = torch.sigmoid(self.network(batch)[0])[:, 0]  # N x size x size, refined
        return [image_map(saliency, image) for saliency, image in zip(maps.cpu().numpy(), images, strict=True)]
