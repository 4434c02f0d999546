"""Object masks from the attention of a frozen vision transformer.

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.1: one mask an image. Several come from MaskCut
(Wang et al., "Cut and Learn for Unsupervised Object Detection and Instance Segmentation", CVPR 2023), section 3.2.
"""
import logging
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

from data.transforms import normalize
from models.transformer import FrozenTransformer, Tokens
from utils.run.devices import Precision, tf32
from utils.run.errors import UserError

log = logging.getLogger(__name__)
CONNECTED, APART = 0.15, 1e-5  # MaskCut: cosine above which two patches belong together; weight of those that do not
SMALLEST = 0.01  # MaskCut: a mask of a smaller share of the patches ends the search
SAME = 1e-5  # share of a vector that rounding leaves
MOST = 2 ** 15  # patches of an image; MaskCut compares each with each
CORNERS = [0, 0, -1, -1], [0, -1, 0, -1]


def strongest(scores: Tensor, mass: float) -> Tensor:
    """Scores (..., N) with 0 in place of the smallest ones, whose shares of the sum add up to 1 - ``mass`` at most."""
    values, order = scores.sort(stable=True)
    kept = (values / values.sum(-1, keepdim=True)).cumsum(-1) > 1 - mass
    return torch.zeros_like(scores).scatter(-1, order, torch.where(kept, values, 0))


def largest(scores: Tensor, count: int) -> Tensor:
    """(N,) -> (count,) indices, of equal scores the lower first, where torch.topk leaves their order open."""
    return scores.sort(descending=True, stable=True).indices[:count]


def component(mask: np.ndarray, seed: int) -> np.ndarray:
    """The 4-connected component of a mask (rows, columns) bool that holds the patch ``seed``, counted row by row."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return labels == labels.flat[seed]


def salient_patches(query: Tensor, keys: Tensor, grid: tuple[int, int], heads: int = 5, topk: float = 0.4,
                    mass: float = 0.5) -> np.ndarray:
    """The object of one image: query (H, d) of the class token, keys (H, N, d) of its patches -> (rows, columns) bool.

    The patches of most attention in the first ``heads`` heads choose by all keys what is like them; of that the
    component of the first one is taken.
    """
    scores = torch.einsum('hd,hnd->n', query[:heads], keys[:heads]) / heads
    chosen = largest(strongest(scores, mass), int(topk * len(scores)))
    patches = keys.transpose(0, 1).flatten(1)  # N x (H * d)
    alike = chosen[patches[chosen] @ patches[chosen[0]] > 0]
    foreground = patches @ patches[alike].sum(0) > 0
    return component(foreground.view(grid).cpu().numpy(), int(chosen[0]))


def mask_cut(keys: Tensor, grid: tuple[int, int], count: int) -> np.ndarray:
    """Up to ``count`` objects of one image, each of what the others leave: keys (H, N, d) -> (rows, columns) uint8."""
    patches = F.normalize(keys.transpose(0, 1).flatten(1), dim=1)
    objects = np.zeros(grid, np.uint8)
    for number in range(1, count + 1):
        live = patches * torch.from_numpy(objects.ravel() == 0).to(patches.device)[:, None]
        affinity = torch.where(live @ live.T > CONNECTED, 1.0, APART)
        vector = _second_eigenvector(affinity)
        side = (vector > vector.mean()).reshape(grid)
        corners, outlier = side[CORNERS].sum(), np.abs(vector).argmax()
        if corners > 2 or (corners == 2 and not side.flat[outlier]):
            side = ~side
        side &= objects == 0
        found = component(side, int(np.where(side.ravel(), np.abs(vector), -1).argmax())) & side
        if found.mean() < SMALLEST:
            break
        objects[found] = number
    return objects


def _second_eigenvector(affinity: Tensor) -> np.ndarray:
    """(N,) of (D - W) x = lambda D x, of the second smallest eigenvalue (Shi and Malik, "Normalized Cuts", 2000)."""
    scale = affinity.sum(1).rsqrt()
    first = F.normalize(1 / scale, dim=0)  # of the normalised affinity, of eigenvalue 1

    def multiply(vector: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(vector.astype(np.float32).ravel()).to(affinity.device)
        x = scale * (affinity @ (scale * x))
        return (x - first * (first @ x)).cpu().numpy()

    start = np.cos(np.arange(len(affinity), dtype=np.float32))  # any one: the same image must give the same mask
    if np.linalg.norm(multiply(start)) < SAME * np.linalg.norm(start):  # all patches are alike
        return np.zeros(len(affinity))
    operator = LinearOperator(affinity.shape, multiply, dtype=np.float32)
    return eigsh(operator, k=1, which='LA', v0=start)[1][:, 0] * scale.cpu().numpy()


def to_pixels(objects: np.ndarray, patch: tuple[int, int], resized: tuple[int, int],
              size: tuple[int, int]) -> np.ndarray:
    """Objects on patches of an image ``resized`` to (height, width) -> (H, W) uint8 of ``size``; the first counts."""
    large = np.kron(objects, np.ones(patch, np.uint8))[:resized[0], :resized[1]]
    drawn = np.zeros(size, np.uint8)
    for number in range(int(objects.max()), 0, -1):
        mask = Image.fromarray((large == number) * np.uint8(255))
        drawn[np.asarray(mask.resize(size[::-1], Image.Resampling.BICUBIC)) > 0] = number
    return drawn


class TransformerSaliency:
    """A mask source, see ``saliency.sources``, by ``salient_patches``, or ``mask_cut`` for several ``masks_per_image``.

    ``resize`` is the shorter side of the network's input, pixels. Raises UserError for settings that it has not.
    """

    def __init__(self, transformer: FrozenTransformer, precision: Precision, resize: int = 640, heads: int = 5,
                 topk: float = 0.4, mass: float = 0.5, masks_per_image: int = 1) -> None:
        self.precision, self.transformer = precision, precision.to_device(transformer)
        self.resize, self.heads, self.topk, self.mass, self.count = resize, heads, topk, mass, masks_per_image
        if not (0 < topk <= 1 and 0 < mass <= 1):
            raise UserError(f'--topk {topk} and --mass {mass} must be shares; give more than 0, and 1 at most.')
        rows, columns = (-(-resize // side) for side in transformer.patch)
        if resize < max(transformer.patch) or int(topk * rows * columns) == 0:
            raise UserError(f'--topk {topk} of the {rows * columns} patches of a square image is none, or --resize '
                            f'{resize} less than a patch; raise them.')
        there = self._tokens([torch.zeros(3, 2 * transformer.patch[0], 2 * transformer.patch[1])]).queries.shape[1]
        if heads > there:
            raise UserError(f'--heads {heads} is more than the {there} of {transformer.name}; lower it.')

    def _tokens(self, inputs: list[Tensor]) -> Tokens:
        with self.precision.autocast():
            return self.transformer(self.precision.to_device(torch.stack(inputs)))

    @tf32(False)
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 each -> (H, W) uint8 object numbers, 0 outside."""
        patch, resized, inputs, drawn = self.transformer.patch, {}, dict[int, Tensor](), dict[int, np.ndarray]()
        for index, image in enumerate(images):
            height, width = (self.resize * side // min(image.shape[:2]) for side in image.shape[:2])
            if height * width > MOST * patch[0] * patch[1]:
                log.warning('%d x %d px make more than %d patches; no mask is looked for', *image.shape[1::-1], MOST)
                drawn[index] = np.zeros(image.shape[:2], np.uint8)
                continue
            small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            inputs[index] = self.transformer.pad(normalize(small, self.transformer.mean, self.transformer.std))
            resized[index] = height, width
        for shape in {tensor.shape for tensor in inputs.values()}:
            grid = shape[1] // patch[0], shape[2] // patch[1]
            members = [index for index, tensor in inputs.items() if tensor.shape == shape]
            tokens = self._tokens([inputs[index] for index in members])
            for index, query, keys in zip(members, tokens.queries.float(), tokens.keys.float(), strict=True):
                objects = (mask_cut(keys, grid, self.count) if self.count > 1 else salient_patches(
                    query, keys, grid, self.heads, self.topk, self.mass).astype(np.uint8))
                drawn[index] = to_pixels(objects, patch, resized[index], images[index].shape[:2])
        return [drawn[index] for index in range(len(images))]
