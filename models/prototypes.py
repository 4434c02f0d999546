"""Mean embeddings of object masks."""
import torch
from torch import Tensor
from torch.nn import functional as F


def mask_prototypes(embeddings: Tensor, masks: Tensor) -> Tensor:
    """Mean direction of the pixels of each mask (paper, section 3.2: z_M).

    Embeddings (B, D, H, W) of any length and masks (B, H, W), 1 inside the object and 0 outside -> (B, D): the pixels'
    unit vectors summed over the mask, at unit length; zero for an empty mask.
    """
    lengths = torch.linalg.vector_norm(embeddings, dim=1).clamp_min(1e-12)  # B x H x W
    weights = masks.to(embeddings.dtype) / lengths
    return F.normalize(torch.einsum('bdhw,bhw->bd', embeddings, weights), dim=1)


def upsampling_matrix(size: int, to: int, like: Tensor) -> Tensor:
    """(to, size) matrix of the bilinear resize of one axis, align_corners=False."""
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None, None], size=(to, size), mode='bilinear', align_corners=False)[0, 0]


def weighted_prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Prototypes of upsampled features, without upsampling them.

    The bilinear resize is linear, so summing resized features with full-size weights equals summing
    the small features with the weights carried back through the resize's transpose.

    Features (B, D, h, w), not normalised per pixel, and the weight of each pixel (B, H, W), 0 outside the mask, or
    (B, O, H, W) for O masks an image -> (B, D) or (B, O, D): normalise(sum over pixels of weight * resized feature);
    zero where all weights are 0.
    """
    rows = upsampling_matrix(features.shape[2], weights.shape[-2], features)  # H x h
    columns = upsampling_matrix(features.shape[3], weights.shape[-1], features)  # W x w
    small = rows.T @ weights.to(features.dtype) @ columns  # B x (O x) h x w
    return F.normalize(torch.einsum('bdhw,b...hw->b...d', features, small), dim=-1)
