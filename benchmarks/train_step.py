"""Time and peak memory of one pretraining step, beside the reference: the same mathematics in its plainest form.

    python benchmarks/train_step.py --backbone resnet18 --batch 16 --size 96 --steps 7 --precision fp32 bf16
    python benchmarks/train_step.py --backbone timm/tf_efficientnet_lite0 --batch 64 --size 224 --steps 3

All train on the same pairs in one process, in turn, step by step; medians are printed, and the median of
the ratios step by step. Memory is measured in a process for each (on a GPU: as PyTorch allots it). Then a
step is taken apart, and set beside the time in which one loader worker makes its pairs from 500 px JPEGs.
"""
import argparse
import copy
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.transforms.v2 import functional

from data.views import ContrastivePair, ContrastiveView
from data.voc import VOCSegmentation
from experiments.estimate import draw_batch
from experiments.shapes import generate
from models.backbones import IMAGENET, build_backbone, freeze_layers
from models.convolutions import DilatedDepthwiseConv, SameConv2d
from models.segmentation import ContrastiveSegmentationModel
from pretrain.losses import compute_losses
from pretrain.maskcontrast import MaskContrast
from utils.config.cli import ArgumentParser
from utils.run.devices import DTYPES, Precision
from utils.run.errors import UserError
from utils.run.script import run_script
from utils.run.trainer import build_optimizer

Batch = dict[str, Tensor]


class PlainEncoder(nn.Module):
    """Backbone and torchvision's decoder as they come."""

    def __init__(self, backbone: str, dim: int) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        for module in self.backbone.modules():
            if isinstance(module, (DilatedDepthwiseConv, SameConv2d)):
                module.__class__ = nn.Conv2d  # type: ignore[assignment]
        self.decoder = nn.Sequential(*list(DeepLabHead(self.backbone.out_channels, 1))[:-1])
        self.head = nn.Conv2d(256, dim, 1)
        self.classification_head = nn.Conv2d(256, 1, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder(self.backbone(x))
        return tuple(F.interpolate(head(features), x.shape[-2:], mode='bilinear')  # type: ignore[return-value]
                     for head in (self.head, self.classification_head))


class PlainMaskContrast(nn.Module):
    """The method written down line by line, both losses included."""

    queue: Tensor

    def __init__(self, encoder: PlainEncoder, dim: int, K: int, m: float = 0.999, T: float = 0.5) -> None:
        super().__init__()
        self.m, self.T = m, T
        self.q, self.pointer = encoder, 0
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer('queue', F.normalize(torch.randn(dim, K), dim=0))

    def forward(self, b: Batch) -> Tensor:
        mask, batch = b['query_mask'].bool(), len(b['query'])
        embedding, saliency = self.q(b['query'])
        embedding = F.normalize(embedding, dim=1).permute(0, 2, 3, 1)  # B x H x W x dim
        labels = torch.arange(batch, device=mask.device)[:, None, None].expand_as(mask)[mask]
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


class Way:
    """One way to take a training step; on a GPU the reference is in float32 throughout, without TF32.

    Args:
        name: 'reference', or the precision of this project's way.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.device = name, torch.device(args.device)
        torch.manual_seed(0)
        self.batch = draw_batch(args.batch, args.size)
        K, dim = -(-128 // args.batch) * args.batch, 32  # the presets' K, in whole batches
        encoder = (PlainEncoder if name == 'reference' else ContrastiveSegmentationModel)(args.backbone, dim)
        freeze_layers(encoder.backbone, args.freeze)
        self.model: Any
        if name == 'reference':
            for view in ('query', 'key'):
                self.batch[view] = functional.normalize(self.batch[view] / 255, *IMAGENET)
            self.precision = Precision(self.device)
            self.model = PlainMaskContrast(encoder, dim, K).to(self.device)
        else:
            self.precision = Precision(self.device, name)
            self.model = MaskContrast(encoder, dim, K)
            self.precision.to_device(self.model)
            if args.compile:
                self.model.compile()
        if self.device.type == 'cuda':
            self.batch = {view: value.pin_memory() for view, value in self.batch.items()}  # as the loader does
        self.model.train()
        self.optimizer = build_optimizer('sgd', self.model.parameters(), lr=0.004, momentum=0.9, weight_decay=1e-4)

    def loss(self) -> Tensor:
        if self.name == 'reference':
            return self.model({view: value.to(self.device, non_blocking=True) for view, value in self.batch.items()})
        return compute_losses(self.model, self.batch, self.precision)['loss']

    def step(self) -> float:
        """One step of SGD; returns its seconds."""
        if self.device.type == 'cuda':  # a switch of the whole process
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.name != 'reference'
            torch.backends.cudnn.benchmark = True  # as the scripts do
        self.wait()
        start = time.perf_counter()
        self.precision.step(self.loss(), self.optimizer)
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def taken_apart(self) -> dict[str, float]:
        """Seconds of the parts of one step of this project's way."""
        parts: dict[str, float] = defaultdict(float)

        @contextmanager
        def part(name: str) -> Iterator[None]:
            self.wait()
            start = time.perf_counter()
            yield
            self.wait()
            parts[name] += time.perf_counter() - start

        def timed(function: Callable, name: str) -> Callable:
            def call(*args: object, **kwargs: object) -> object:
                with part(name):
                    return function(*args, **kwargs)
            return call

        query, key = self.model.model_q, self.model.model_k
        query.maps, key.embed = timed(query.maps, 'query forward'), timed(key.embed, 'key forward')
        with part('losses, bank and momentum'):
            loss = self.loss()
        del query.maps, key.embed
        parts['losses, bank and momentum'] -= parts['query forward'] + parts['key forward']
        with part('backward'):
            self.precision.scaler.scale(loss).backward()
        with part('optimizer'):
            self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return dict(parts)


def peak_memory(name: str, args: argparse.Namespace) -> float | None:
    """MB at the peak of two steps, the second with the optimizer's state, on a GPU of the one after them.

    In a new process; None if it was killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(own_peak_memory, name, args).result()
        except BrokenProcessPool:  # the system ends a process for which it has no memory
            return None


def own_peak_memory(name: str, args: argparse.Namespace) -> float:
    """As ``peak_memory``, of this process."""
    torch.set_num_threads(args.threads)
    way = Way(name, args)
    for _ in range(2):
        way.step()
    if args.device == 'cuda':
        forget_trials(args.device)
        way.step()
    return peak_of_process(args.device)


def forget_trials(device: str) -> None:
    """Count the peak of a GPU anew: in the first steps cuDNN tries algorithms, some of which take much memory."""
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()


def peak_of_process(device: str) -> float:
    """MB at the peak of this process: what it holds, or what PyTorch allots on a GPU."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def input_seconds(count: int, size: int) -> float:
    """Seconds in which one process makes ``count`` pairs from drawn 500 px JPEGs."""
    with tempfile.TemporaryDirectory() as folder:
        base = VOCSegmentation(generate(Path(folder) / 'drawn', 8, 1, 500), 'train', saliency='supervised_model')
        pairs = base.transformed(ContrastivePair(base, ContrastiveView(size)))
        for index in range(8):
            pairs[index, index]
        start = time.perf_counter()
        for index in range(count):
            pairs[index % 8, index]
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--backbone', default='resnet18', help='of the encoder: resnet18, resnet50 or timm/<name>')
    parser.add_argument('--batch', type=int, default=16, help='pairs a step')
    parser.add_argument('--size', type=int, default=96, help='side of the views, pixels')
    parser.add_argument('--freeze', action='store_true', help='freeze the first stages, as the published presets do')
    parser.add_argument('--steps', type=int, default=7, help='steps that are timed')
    parser.add_argument('--threads', type=int, default=2, help='of PyTorch on the CPU')
    parser.add_argument('--precision', nargs='+', default=['fp32'], choices=list(DTYPES),
                        help="of this project's networks, each a way of its own")
    parser.add_argument('--compile', action='store_true', help="torch.compile in this project's way")
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'], help='where they train')
    args = parser.parse_args(argv)
    memory = {name: peak_memory(name, args) for name in ('reference', *args.precision)}  # while this process is small
    if all(memory[name] is None for name in args.precision):
        raise UserError(f'{args.batch} pairs at {args.size} px do not fit into the memory of this machine; lower '
                        '--batch or --size.')

    torch.set_num_threads(args.threads)
    ways = [Way(name, args) for name, peak in memory.items() if peak is not None]
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for count in range(args.steps + 2):
        for way in ways:
            taken = way.step()
            if count >= 2:  # the first two warm up
                seconds[way.name].append(taken)
    first = next(way for way in ways if way.name != 'reference')
    apart = [first.taken_apart() for _ in range(args.steps)]

    machine = torch.cuda.get_device_name() if args.device == 'cuda' else f'{args.threads} threads'
    print(f'{args.backbone}, {args.batch} pairs at {args.size} px, {machine}, torch {torch.__version__}, '
          f'median of {args.steps} steps')
    print(f'{"":<22}{"ms a step":>10}{"ratio":>12}{"peak MB":>10}{"share":>10}')
    for name, peak in memory.items():
        title = 'reference, fp32' if name == 'reference' else f'ours, {name}'
        if peak is None:
            print(f'{title:<22}does not fit into the memory of this machine')
            continue
        taken, plain, ratio, share = seconds[name], memory['reference'], '-', '-'
        if plain is not None:
            ratio = f'{statistics.median(a / b for a, b in zip(seconds["reference"], taken, strict=True)):.2f}'
            share = f'{peak / plain:.0%}'
        print(f'{title:<22}{1000 * statistics.median(taken):10.1f}{ratio:>12}{peak:10.0f}{share:>10}')
    print(f'parts of a step, {first.name}, ms:')
    for part in apart[0]:
        print(f'  {part:<28}{1000 * statistics.median(parts[part] for parts in apart):8.1f}')
    print(f'  {"(its pairs, one worker)":<28}{1000 * input_seconds(args.batch, args.size):8.1f}')


if __name__ == '__main__':
    run_script(main)
