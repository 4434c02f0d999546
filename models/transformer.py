"""A frozen vision transformer of timm: its class token, and the queries and keys of its last attention.

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.1.
"""
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.backbones import IMAGENET, TIMM, TimmBackbone, find_timm, names_no_weights
from models.weights import Weights, load_strict
from utils.run.errors import UserError

log = logging.getLogger(__name__)
logging.getLogger('timm.layers.pos_embed').setLevel(logging.WARNING)  # else it tells of each new size
OTHER = f'choose another vision transformer, e.g. {TIMM}vit_small_patch16_224.dino.'
NEAR = 0.1  # added to the number of positions a side, as DINO's own code does against rounding


class Tokens(NamedTuple):
    """What a transformer makes of B images of N patches."""
    cls: Tensor  # (B, C) class token after the last norm
    queries: Tensor  # (B, heads, d) of the class token, in the last attention, before scaling
    keys: Tensor  # (B, heads, N, d) of the patches, likewise


class _LastAttention(TorchFunctionMode):
    """A block in which the queries and keys (B, heads, tokens, d) of the last attention are kept."""
    found: tuple[Any, ...] = ()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.found = args[:2]
        return func(*args, **(kwargs or {}))


class FrozenTransformer(nn.Module):
    """A vision transformer of timm with a class token and plain softmax attention, for images of any size.

    ``pos_embed`` is how a learned grid of positions comes to another size: by timm, or as in 'dino' (cubic, where the
    i-th of n outputs a side reads at (i + 0.5) * side / (n + 0.1) - 0.5). ``patch`` is height and width of a patch,
    pixels; ``mean`` and ``std`` are of RGB in 0..1.
    """

    def __init__(self, network: Any, name: str, pos_embed: str = 'dino', mean: Sequence[float] = IMAGENET[0],
                 std: Sequence[float] = IMAGENET[1]) -> None:
        super().__init__()
        if (getattr(network, 'cls_token', None) is None or not hasattr(network, 'set_input_size')
                or isinstance(network.norm, nn.Identity) or hasattr(network.patch_embed, 'backbone')):
            raise UserError(f'{name} has no class token, with a norm of its own, over a grid of patches; {OTHER}')
        self.network, self.name, self.pos_embed = network.eval().requires_grad_(False), name, pos_embed
        self.patch: tuple[int, int] = tuple(network.patch_embed.patch_size)
        self.trained, self.trained_grid = network.pos_embed, network.patch_embed.grid_size
        self.mean, self.std = mean, std

    def pad(self, image: Tensor) -> Tensor:
        """A normalised image (3, H, W) with zeros at the right and at the bottom, up to whole patches."""
        down, right = (-side % patch for side, patch in zip(image.shape[-2:], self.patch, strict=True))
        return F.pad(image, (0, right, 0, down))

    def _resize(self, height: int, width: int) -> tuple[int, int]:
        """Ready the network for images of a size; the grid of their patches."""
        (rows, columns), trained = self.trained_grid, self.trained
        grid = height // self.patch[0], width // self.patch[1]
        self.network.pos_embed = trained  # timm resamples what is there from the grid that it had last
        self.network.patch_embed.set_input_size(img_size=(rows * self.patch[0], columns * self.patch[1]))
        self.network.set_input_size(img_size=(height, width))
        if trained is not None and self.pos_embed == 'dino' and (height != width or grid != self.trained_grid):
            prefix = trained.shape[1] - rows * columns  # not placed on the grid
            placed = trained[:, prefix:].unflatten(1, self.trained_grid).permute(0, 3, 1, 2)
            scale = (grid[0] + NEAR) / rows, (grid[1] + NEAR) / columns
            placed = F.interpolate(placed, scale_factor=scale, mode='bicubic', recompute_scale_factor=False)
            positions = torch.cat([trained[:, :prefix], placed.flatten(2).transpose(1, 2)], 1)
            self.network.pos_embed = nn.Parameter(positions, False)
        return grid

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, H, W), H and W multiples of a patch. Raises UserError for another attention."""
        rows, columns = self._resize(*images.shape[-2:])
        with _LastAttention() as attention:
            tokens = self.network.forward_features(images)
        prefix, shape = self.network.num_prefix_tokens, (len(images), self.network.num_prefix_tokens + rows * columns)
        if not attention.found or any((x.shape[0], x.shape[-2]) != shape for x in attention.found):
            raise UserError(f'{self.name} has no softmax attention over its patches in the last block; {OTHER}')
        queries, keys = attention.found
        return Tokens(tokens[:, 0], queries[:, :, 0], keys[:, :, prefix:])


def load_transformer(backbone: str, weights: Weights | None, pos_embed: str = 'dino') -> FrozenTransformer:
    """timm/<name> with weights of DINO's or timm's names, None: random ones. Raises UserError for those of another.

    Weights in a file under a name without a tag get the mean and standard deviation of ImageNet, as DINO's do.
    """
    (timm, name), loaded = find_timm(backbone), TimmBackbone(backbone)
    colours = loaded.mean, loaded.std  # of those that timm has under that name
    if weights is not None and names_no_weights(backbone, weights) and colours != IMAGENET:
        log.info('%s is taken to want colours as DINO does; %s.TAG tells of other weights', weights.source, backbone)
        colours = IMAGENET
    transformer = FrozenTransformer(timm.create_model(name, num_classes=0), backbone, pos_embed, *colours)
    if weights is not None:
        load_strict(loaded, loaded.fit(weights))
        transformer.network.load_state_dict(loaded.network.state_dict())
    return transformer
