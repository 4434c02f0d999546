"""The fully connected CRF (Kraehenbuehl and Koltun, NeurIPS 2011) behind ``--crf-postprocess``."""
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.run.errors import UserError
from utils.run.parallel import process_pool

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (image, logits) -> label map


def require_crf() -> None:
    """Raise UserError unless pydensecrf can be imported."""
    if importlib.util.find_spec('pydensecrf') is None:
        raise UserError('the CRF needs pydensecrf, which is not installed; install a C++ compiler, then '
                        'pip install pydensecrf2.')


def dense_crf(image: np.ndarray, logits: Tensor | np.ndarray, iterations: int = 10, pos_xy_std: float = 1,
              pos_w: float = 3, bi_xy_std: float = 67, bi_rgb_std: float = 3, bi_w: float = 4,
              min_probability: float = 0) -> np.ndarray:
    """Image (H, W, 3) uint8 RGB, logits (classes, h, w), resized (bilinear), softmax, CRF -> (H, W) uint8 class ids.

    The bilateral kernel (bi) gets the image as BGR, as in the published code: its lattice is an approximation that the
    order of the channels changes (by 0.1 to 0.3 % of the pixels). Standard deviations, also of the Gaussian kernel
    (pos), are in pixels (xy) and grey levels (rgb). A ``min_probability`` above 0 is a quicker approximation: classes
    below it in every pixel are left out, and an ordinary blur stands in for the lattice of the Gaussian kernel.
    """
    require_crf()
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax
    height, width = image.shape[:2]
    resized = F.interpolate(torch.as_tensor(logits)[None].float(), (height, width), mode='bilinear')[0]
    probabilities = torch.softmax(resized, 0).cpu().numpy()  # classes x H x W
    highest = probabilities.max((1, 2))
    kept = np.flatnonzero(highest >= min(min_probability, highest.max()))
    if len(kept) == 1:
        return np.full((height, width), kept[0], np.uint8)
    crf = DenseCRF2D(width, height, len(kept))
    unary = np.ascontiguousarray(unary_from_softmax(probabilities[kept]))  # classes x pixels
    crf.setUnaryEnergy(unary)
    bgr = np.ascontiguousarray(image[..., ::-1])
    if min_probability == 0:
        crf.addPairwiseGaussian(sxy=pos_xy_std, compat=pos_w)
    crf.addPairwiseBilateral(sxy=bi_xy_std, srgb=bi_rgb_std, rgbim=bgr, compat=bi_w)
    if min_probability == 0:
        field = crf.inference(iterations)
    else:
        blur = partial(cv2.GaussianBlur, ksize=(0, 0), sigmaX=pos_xy_std, borderType=cv2.BORDER_CONSTANT)
        norm = 1 / np.sqrt(blur(np.ones((height, width), np.float32)))  # symmetric, as the library's
        field, *buffers = crf.startInference()
        for _ in range(iterations):  # the Gaussian kernel's message joins the unary energy of the next step
            planes = np.ascontiguousarray(field).reshape(-1, height, width)
            message = np.stack([norm * blur(norm * plane) for plane in planes])
            crf.setUnaryEnergy(unary - pos_w * message.reshape(unary.shape))
            crf.stepInference(field, *buffers)
    marginals = np.array(field)  # classes x pixels, a pixel's classes side by side
    return kept.astype(np.uint8)[marginals.argmax(0)].reshape(height, width)


@contextmanager
def crf_in_workers(crf: Mapping[str, Any], workers: int) -> Iterator[Refine]:
    """A function (image, logits) -> label map that runs ``dense_crf`` in worker processes, on one core each.

    Call it from several threads to keep several workers busy; 0 workers: in this process. Raises UserError if one is
    killed, and what ``dense_crf`` raises.
    """
    refine = partial(dense_crf, **crf)
    with process_pool(workers) if workers else nullcontext() as pool:
        yield refine if pool is None else lambda *arguments: pool.submit(refine, *arguments).result()
