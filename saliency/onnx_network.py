"""Masks of any salient-object network in ONNX format; needs the optional package onnxruntime.

The network reads (N, 3, height, width) and its first output is a map (N, 1, height, width). How its
input is prepared stands in a YAML file:

    input_size: [1024, 1024]      # height, width
    mean: [0.5, 0.5, 0.5]         # a value v in 0..1 becomes (v - mean) / scale
    scale: [1.0, 1.0, 1.0]
    divide_by_maximum: false      # bring the image to 0..1 by its maximum instead of 255
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from saliency.sources import image_map, network_input
from utils.config.keys import REQUIRED, Section, key, must
from utils.config.reader import Reader
from utils.run import distributed
from utils.run.errors import UserError


class OnnxConfig(Section):
    input_size: list[Annotated[int, Field(ge=1)]] = key(
        REQUIRED, 'height and width of the input of the network', min_length=2, max_length=2)
    mean: list[float] = key(REQUIRED, 'mean of red, green and blue, of values in 0..1', min_length=3, max_length=3)
    scale: Annotated[list[float], must(all, 'other than 0')] = key(
        REQUIRED, 'what red, green and blue are divided by after the mean is taken off', min_length=3, max_length=3)
    divide_by_maximum: bool = key(False, 'bring an image to 0..1 by its maximum instead of 255')


def read_onnx_config(path: Path) -> OnnxConfig:
    """The YAML file of a network. Raises UserError, which names every key that is wrong, or the missing file."""
    if not path.is_file():
        raise UserError(f'--onnx-config {path} does not exist; give a YAML file with input_size, mean and scale.')
    reader = Reader(OnnxConfig)
    reader.read_file(path)
    values = reader.check()
    if reader.errors:
        raise UserError('; '.join(reader.errors) + '.')
    return OnnxConfig(**values)


class OnnxSaliency:
    """A mask source around an ONNX network, on the device 'auto', 'cpu' or 'cuda'; each process takes a GPU of its own.

    Raises UserError if onnxruntime is not installed, or has no CUDA or cannot start it, or the file is no ONNX network.
    """

    def __init__(self, weights: Path, config: OnnxConfig, device: str = 'auto') -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError('--method onnx needs the package onnxruntime; run pip install onnxruntime.') from error
        if not weights.is_file():
            raise UserError(f'--weights {weights} does not exist; give the path of an .onnx file.')
        devices = ['cpu', *['cuda'] * ('CUDAExecutionProvider' in onnxruntime.get_available_providers())]
        if device not in ('auto', *devices):
            raise UserError(f'--device {device}: onnxruntime runs on {" or ".join(devices)} here; take it, or install '
                            'onnxruntime-gpu for cuda.')
        index = distributed.local_rank() % max(1, torch.cuda.device_count())
        on_cuda = [('CUDAExecutionProvider', {'use_tf32': '0', 'device_id': str(index)})]
        on_cuda = on_cuda if device != 'cpu' and 'cuda' in devices else []
        self.weights, self.config = weights, config
        try:
            self.session = onnxruntime.InferenceSession(str(weights), providers=[*on_cuda, 'CPUExecutionProvider'])
        except Exception as error:  # onnxruntime raises classes of its own for each way to be wrong
            said = str(error).partition('\n')[0]
            raise UserError(f'--weights {weights} is not an ONNX network ({said}); give an .onnx file.') from error
        if device == 'cuda' and 'CUDAExecutionProvider' not in self.session.get_providers():
            raise UserError('--device cuda: onnxruntime has CUDA but could not start it, and would compute on the CPU; '
                            'install the CUDA and cuDNN that it was built for, or take --device cpu.')

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1. Raises UserError for a network of another kind."""
        config, taken = self.config, self.session.get_inputs()[0]
        height, width = config.input_size
        batch = np.stack([network_input(image, (height, width), config.mean, config.scale, config.divide_by_maximum)
                          for image in images])
        parts = [batch] if taken.shape[0] == len(batch) or not isinstance(taken.shape[0], int) else batch[:, None]
        try:
            maps = np.concatenate([self.session.run(None, {taken.name: part})[0] for part in parts])
        except Exception as error:
            said = str(error).partition('\n')[0]
            raise UserError(f'--weights {self.weights} takes no input of {height} x {width} '
                            f'({said}); set input_size in --onnx-config to its own.') from error
        if maps.ndim == 4 and maps.shape[1] == 1:
            maps = maps[:, 0]
        if maps.ndim != 3 or len(maps) != len(images):
            raise UserError(f'--weights {self.weights}: the first output {maps.shape} is not one map an image; '
                            'give a salient-object network.')
        if not np.isfinite(maps).all():
            raise UserError(f'--weights {self.weights}: the network gives values that are not finite; give another '
                            'file, or correct its input_size, mean and scale.')
        return [image_map(saliency, image) for saliency, image in zip(maps, images, strict=True)]
