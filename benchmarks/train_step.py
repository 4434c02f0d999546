"""Time of one pretraining step, beside the plainest version of the same mathematics.

    python benchmarks/train_step.py [--backbone resnet18] [--batch 16] [--size 96] [--steps 7]

Both train on the same pairs in one process, in turn, step by step; the medians and their ratio are printed.
"""
from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from models.resnet import DilatedResNet
from models.segmentation import ContrastiveSegmentationModel
from pretrain.engine import compute_losses
from pretrain.maskcontrast import MaskContrast
from utils.runtime import place

Batch = dict[str, Tensor]


class PlainEncoder(nn.Module):
    """Backbone and torchvision's decoder as they come."""

    def __init__(self, backbone: str, dim: int) -> None:
        super().__init__()
        self.backbone = DilatedResNet(backbone)
        self.decoder = nn.Sequential(*list(DeepLabHead(self.backbone.out_channels, 1))[:-1])
        self.head = nn.Conv2d(256, dim, 1)
        self.classification_head = nn.Conv2d(256, 1, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder(self.backbone(x))
        return tuple(F.interpolate(head(features), x.shape[-2:], mode='bilinear')  # type: ignore[return-value]
                     for head in (self.head, self.classification_head))


class PlainMaskContrast(nn.Module):
    """The method written down line by line, both losses included."""

    def __init__(self, backbone: str, dim: int, K: int, m: float = 0.999, T: float = 0.5) -> None:
        super().__init__()
        self.m, self.T = m, T
        self.q, self.pointer = PlainEncoder(backbone, dim), 0
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.queue = F.normalize(torch.randn(dim, K), dim=0)

    def forward(self, b: Batch) -> Tensor:
        mask, batch = b['query_mask'].bool(), len(b['query'])
        embedding, saliency = self.q(b['query'])
        embedding = F.normalize(embedding, dim=1).permute(0, 2, 3, 1)  # B x H x W x dim
        labels = torch.arange(batch)[:, None, None].expand_as(mask)[mask]
        q = embedding[mask]  # P x dim
        with torch.no_grad():
            for k, p in zip(self.k.parameters(), self.q.parameters(), strict=True):
                k.mul_(self.m).add_(p, alpha=1 - self.m)
            key, _ = self.k(b['key'])
            key = F.normalize(key, dim=1) * b['key_mask'][:, None]
            prototypes = F.normalize(key.sum((2, 3)), dim=1)
        logits = torch.cat([q @ prototypes.T, q @ self.queue.clone()], 1) / self.T
        self.queue[:, self.pointer:self.pointer + batch] = prototypes.T
        self.pointer = (self.pointer + batch) % self.queue.shape[1]
        share = F.one_hot(labels, logits.shape[1]).float().mean(0)
        contrastive = F.cross_entropy(logits, labels, weight=1 / torch.log(1.02 + share))
        y = mask.float()
        w = 1 - y.mean()
        bce = F.binary_cross_entropy_with_logits(saliency[:, 0], y, reduction='none')
        return contrastive + (w * y * bce + (1 - w) * (1 - y) * bce).mean()


def make_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """A function that takes one SGD step and returns its seconds."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.004, momentum=0.9)

    def step() -> float:
        start = time.perf_counter()
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value.item()
        return time.perf_counter() - start

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', default='resnet18', choices=['resnet18', 'resnet50'])
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--steps', type=int, default=7)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    K, dim, edge = 8 * args.batch, 32, args.size // 4
    masks = torch.zeros(args.batch, args.size, args.size, dtype=torch.uint8)
    masks[:, edge:3 * edge, edge:3 * edge] = 1
    views = {name: torch.randn(args.batch, 3, args.size, args.size) for name in ('query', 'key')}
    batch = {**views, 'query_mask': masks, 'key_mask': masks}

    plain = PlainMaskContrast(args.backbone, dim, K).train()
    ours = MaskContrast(ContrastiveSegmentationModel(args.backbone, dim), dim, K).train()
    place(ours, torch.device('cpu'))
    steps = {'plain': make_step(plain, lambda: plain(batch)),
             'this project': make_step(ours, lambda: compute_losses(ours, batch, torch.device('cpu'))['loss'])}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for count in range(args.steps + 2):
        for name, step in steps.items():
            taken = step()
            if count >= 2:  # the first two warm up
                seconds[name].append(taken)
    print(f'{args.backbone}, {args.batch} pairs at {args.size} px, fp32, {args.threads} threads, '
          f'torch {torch.__version__}, median of {args.steps} steps')
    for name, taken in seconds.items():
        print(f'{name:<14}{statistics.median(taken):8.3f} s a step')
    ratios = [a / b for a, b in zip(seconds['plain'], seconds['this project'], strict=True)]
    print(f'plain / this project: {statistics.median(ratios):.2f}')


if __name__ == '__main__':
    main()
