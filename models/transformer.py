"""A frozen vision transformer of timm: its class token, and the queries and keys of its last attention.

MaskDistill (Van Gansbeke et al., arXiv 2206.06363, 2022), section 3.1.
"""
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.backbones import IMAGENET, TIMM, TimmBackbone, find_timm
from models.weights import Weights, load_strict
from utils.run.errors import UserError

logging.getLogger('timm.layers.pos_embed').setLevel(logging.WARNING)  # else it tells of each new size
NEAR = 0.1  # added to the number of positions a side, as DINO's own code does against rounding


Colour = tuple[float, ...]


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


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, C, h, w) of a trained grid on another one, as DINO does: cubic, without antialiasing.

    The i-th of n outputs a side reads at (i + 0.5) * h / (n + 0.1) - 0.5.
    """
    scale = [(new + NEAR) / old for new, old in zip(grid, positions.shape[-2:], strict=True)]
    return F.interpolate(positions, scale_factor=scale, mode='bicubic', recompute_scale_factor=False)


class FrozenTransformer(nn.Module):
    """A vision transformer of timm with a class token and plain softmax attention, for images of any size.

    ``pos_embed`` is how a learned grid of positions comes to another size: 'dino', see ``resample_positions``, or
    'timm'. ``patch`` is height and width of a patch, pixels; ``mean`` and ``std`` are of RGB in 0..1.
    """

    def __init__(self, network: Any, name: str, pos_embed: str = 'dino', mean: Colour = IMAGENET[0],
                 std: Colour = IMAGENET[1]) -> None:
        super().__init__()
        self.network, self.name, self.pos_embed = network.eval().requires_grad_(False), name, pos_embed
        if getattr(network, 'cls_token', None) is None or not hasattr(network, 'set_input_size'):
            raise UserError(f'{name} has no class token over a grid of patches; choose a vision transformer, e.g. '
                            f'{TIMM}vit_small_patch16_224.dino.')
        self.patch: tuple[int, int] = tuple(network.patch_embed.patch_size)
        self.trained, self.trained_grid = network.pos_embed, network.patch_embed.grid_size
        self.mean, self.std = mean, std

    def pad(self, image: Tensor) -> Tensor:
        """A normalised image (3, H, W) with zeros at the right and at the bottom, up to whole patches."""
        down, right = (-side % patch for side, patch in zip(image.shape[-2:], self.patch, strict=True))
        return F.pad(image, (0, right, 0, down))

    def _resize(self, height: int, width: int) -> tuple[int, int]:
        """Ready the network for images of a size; the grid of their patches."""
        grid = height // self.patch[0], width // self.patch[1]
        if self.trained is None:
            self.network.set_input_size(img_size=(height, width))
            return grid
        self.network.pos_embed = self.trained
        self.network.patch_embed.set_input_size(img_size=tuple(
            count * side for count, side in zip(self.trained_grid, self.patch, strict=True)))
        self.network.set_input_size(img_size=(height, width))
        prefix = self.trained.shape[1] - self.trained_grid[0] * self.trained_grid[1]  # not placed on the grid
        if self.pos_embed == 'dino' and (height != width or grid != self.trained_grid):
            placed = self.trained[:, prefix:].unflatten(1, self.trained_grid).permute(0, 3, 1, 2)
            resampled = resample_positions(placed, grid).flatten(2).transpose(1, 2)
            self.network.pos_embed = nn.Parameter(torch.cat([self.trained[:, :prefix], resampled], 1), False)
        return grid

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tokens:
        """Normalised images (B, 3, H, W), H and W multiples of a patch. Raises UserError for another attention."""
        rows, columns = self._resize(*images.shape[-2:])
        with _LastAttention() as attention:
            tokens = self.network.forward_features(images)
        prefix, shape = self.network.num_prefix_tokens, (len(images), self.network.num_prefix_tokens + rows * columns)
        if not attention.found or any((x.shape[0], x.shape[-2]) != shape for x in attention.found):
            raise UserError(f'{self.name} has no softmax attention of queries and keys over its patches in the last '
                            f'block; choose another vision transformer, e.g. {TIMM}vit_small_patch16_224.dino.')
        queries, keys = attention.found
        return Tokens(tokens[:, 0], queries[:, :, 0], keys[:, :, prefix:])


def load_transformer(backbone: str, weights: Weights | None, pos_embed: str = 'dino') -> FrozenTransformer:
    """timm/<name> with weights under DINO's or timm's names, None: random ones.

    Raises UserError for another network, and for weights that do not cover it; of those a head may be missing.
    """
    if not backbone.startswith(TIMM):
        raise UserError(f'backbone {backbone} is no vision transformer of timm; give {TIMM}<name>, e.g. '
                        f'{TIMM}vit_small_patch16_224.dino.')
    timm, name = find_timm(backbone)
    config = timm.models.get_pretrained_cfg(name)
    colours = IMAGENET if config is None else (tuple(config.mean), tuple(config.std))
    transformer = FrozenTransformer(timm.create_model(name, num_classes=0), backbone, pos_embed, *colours)
    if weights is not None:
        loaded = TimmBackbone(backbone)
        load_strict(loaded, loaded.fit(weights))
        transformer.network.load_state_dict(loaded.network.state_dict())
    return transformer
