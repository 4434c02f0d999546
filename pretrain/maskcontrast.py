"""MaskContrast: pixels of an object agree with the object's mean embedding in another view.

Van Gansbeke et al., "Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals",
ICCV 2021, section 3.2; the momentum encoder and the queue are those of MoCo (He et al., CVPR 2020).
"""
import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.segmentation import ContrastiveSegmentationModel, mask_prototypes, pixel_embeddings, resize
from utils.run import distributed
from utils.run.devices import to_float32


class Output(NamedTuple):
    q: Tensor  # P x dim: unit embeddings of the foreground pixels
    keys: Tensor  # dim x (B + K): B prototypes and the queue, without gradient
    T: float
    labels: Tensor  # P: the index of the pixel's own image, 0..B-1
    saliency: Tensor | None  # B x H x W raw scores

    @property
    def logits(self) -> Tensor:
        """P x (B + K): each foreground pixel against all keys, over T."""
        return self.q @ self.keys / self.T


class MaskContrast(nn.Module):
    """Query encoder, momentum (key) encoder, which starts as its copy, and queue.

    The embedding has ``dim`` dimensions and the queue K prototypes (0: there is none); m is the momentum of the key
    encoder and T the softmax temperature. ``gather_prototypes`` deviates from the paper: pixels are contrasted with the
    prototypes of all processes, and B is the global batch.
    """

    queue: Tensor
    queue_ptr: Tensor
    scale: Tensor  # of colours, and ``shift``: (3, 1, 1)
    shift: Tensor

    def __init__(self, encoder: ContrastiveSegmentationModel, dim: int = 32, K: int = 128, m: float = 0.999,
                 T: float = 0.5, gather_prototypes: bool = False) -> None:
        super().__init__()
        self.gather_prototypes, self.K, self.m, self.T = gather_prototypes, K, m, T
        self.model_q = encoder
        self.model_k = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer('queue', F.normalize(torch.randn(dim, K), dim=0))  # dim x K, unit columns
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))
        mean, std = (torch.tensor(colour, dtype=torch.float64).view(3, 1, 1)
                     for colour in (encoder.backbone.mean, encoder.backbone.std))
        self.register_buffer('scale', (1 / (255 * std)).float(), persistent=False)
        self.register_buffer('shift', (-mean / std).float(), persistent=False)

    def forward(self, im_q: Tensor, pixels_q: Tensor, im_k: Tensor, pixels_k: Tensor) -> Output:
        """One step: the query pixels and their keys; moves the key encoder and fills the queue.

        Views are (B, 3, H, W), uint8 or normalised; pixels are those of their masks, as of
        ``data.loaders.collate_pairs``. The keys come first, while no activations of the query encoder are in memory.
        """
        batch, size = len(im_q), [side // self.model_q.output_stride for side in im_q.shape[-2:]]
        with torch.no_grad():
            self._momentum_update()
            prototypes = self._key_prototypes(im_k, pixels_k, size)  # B x dim
            gathered = distributed.all_gather(prototypes)  # (B * processes) x dim
        maps = self.model_q.maps(self._normalised(im_q))
        with torch.autocast(im_q.device.type, enabled=False):
            q = pixel_embeddings(to_float32(maps['embedding']), size, pixels_q)  # P x dim
        image = pixels_q.long() // (size[0] * size[1])
        if self.gather_prototypes:
            prototypes, image = gathered, image + distributed.rank() * batch
        keys = torch.cat([prototypes.T, self.queue], dim=1)  # dim x (B + K)
        self._enqueue(gathered)
        saliency = None if 'saliency' not in maps else to_float32(resize(maps['saliency'], size)).squeeze(1)
        return Output(q, keys, self.T, image, saliency)

    def _normalised(self, images: Tensor) -> Tensor:
        """Images of 8 bits as the backbone's weights want them; others are so already."""
        return images if images.is_floating_point() else (images * self.scale).add_(self.shift)

    def _momentum_update(self) -> None:
        """k <- m k + (1 - m) q, for parameters and not for BatchNorm's buffers."""
        keys, queries = (tuple(model.parameters()) for model in (self.model_k, self.model_q))
        torch._foreach_lerp_(keys, queries, 1 - self.m)

    def _key_prototypes(self, im_k: Tensor, pixels_k: Tensor, size: Sequence[int]) -> Tensor:
        """B x dim unit prototypes of this process's key views.

        The key batch is shuffled over all processes for the encoder, so that BatchNorm statistics tell nothing about
        which key belongs to which query.
        """
        # other images than this process's, until their embeddings are back
        order, back = distributed.random_order(len(im_k), im_k.device)
        embedding = to_float32(self.model_k.embed(self._normalised(distributed.shuffle(im_k, order))))
        with torch.autocast(im_k.device.type, enabled=False):
            pixels = pixel_embeddings(distributed.shuffle(embedding, back), size, pixels_k)
            return mask_prototypes(pixels, pixels_k // (size[0] * size[1]), len(im_k))

    def _enqueue(self, prototypes: Tensor) -> None:
        """Write the prototypes of all processes, (B * processes) x dim, over the oldest; the ring wraps around."""
        if self.K == 0:
            return
        slots = (self.queue_ptr + torch.arange(len(prototypes), device=prototypes.device)) % self.K
        self.queue[:, slots] = prototypes.T.to(self.queue.dtype)
        self.queue_ptr.add_(len(prototypes)).remainder_(self.K)

    def bank_statistics(self) -> dict[str, float]:
        """Of the queue, on the CPU: 'bank/cosine', the mean of two entries, and 'bank/rank', its effective rank.

        That is the exponential of the entropy of the singular values, 1 to dim (Roy and Vetterli, 2007).
        """
        if self.K == 0:
            return {}
        bank = self.queue.cpu().double()
        cosine = (bank.sum(1).square().sum() - bank.square().sum()) / max(1, self.K * (self.K - 1))
        values = torch.linalg.svdvals(bank)
        return {'bank/cosine': float(cosine), 'bank/rank': float(torch.special.entr(values / values.sum()).sum().exp())}
