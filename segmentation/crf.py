"""The fully connected CRF (Kraehenbuehl and Koltun, NeurIPS 2011) behind ``--crf-postprocess``."""
from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from models.segmentation import resize
from utils.errors import UserError


def require_crf() -> None:
    """Raise UserError unless pydensecrf can be imported."""
    if importlib.util.find_spec('pydensecrf') is None:
        raise UserError('the CRF needs pydensecrf, which is not installed; install a C++ compiler, then '
                        'pip install pydensecrf2.')


def dense_crf(image: np.ndarray, logits: Tensor, iterations: int = 10, pos_xy_std: float = 1, pos_w: float = 3,
              bi_xy_std: float = 67, bi_rgb_std: float = 3, bi_w: float = 4) -> np.ndarray:
    """Refine a segmentation with the image's colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        logits: (classes, h, w), resized to the image (bilinear), then softmax.
        iterations: of the mean field.
        pos_xy_std, pos_w: Gaussian kernel: standard deviation in pixels, weight.
        bi_xy_std, bi_rgb_std, bi_w: bilateral kernel: standard deviations in pixels and grey levels, weight.

    Returns:
        (H, W) uint8 class ids.

    Raises:
        UserError: pydensecrf is not installed.
    """
    require_crf()
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax
    height, width = image.shape[:2]
    probabilities = torch.softmax(resize(logits[None].float(), (height, width))[0], 0).cpu().numpy()
    crf = DenseCRF2D(width, height, len(probabilities))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    crf.addPairwiseGaussian(sxy=pos_xy_std, compat=pos_w)
    crf.addPairwiseBilateral(sxy=bi_xy_std, srgb=bi_rgb_std, rgbim=np.ascontiguousarray(image), compat=bi_w)
    marginals = np.array(crf.inference(iterations)).reshape(len(probabilities), height, width)
    return marginals.argmax(0).astype(np.uint8)
