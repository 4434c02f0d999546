"""What the project does on a GPU, step by step on a fictitious one; see ``tests.fake_gpu``.

    python -m tests.fake_gpu_steps backbone=resnet50 batch=64 size=224 precision=bf16

prints waits, launches and peak memory of one step of pretraining; keys are the arguments of ``pretraining``. Without
keys everything is run, steps with planted defects too, and printed for ``tests/test_simulated_gpu.py``.
"""
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from data.voc import VOC_CLASSES
from models.backbones import FROZEN, freeze_layers
from models.build import synchronise_batchnorm
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, LinearSegmentationModel
from pretrain import losses as pretrain_losses
from pretrain.losses import saliency_loss
from pretrain.maskcontrast import MaskContrast
from saliency import basnet as saliency_basnet
from saliency import transformer as saliency_transformer
from saliency.basnet import BASNet, BASNetSaliency
from segmentation import engine as segmentation_engine
from segmentation import objects as embedding
from tests.fake_gpu import FOREGROUND, ROOT, Watch, build, fictitious_gpu
from tests.test_utils_run_trainer import settings
from utils.run import distributed, trainer
from utils.run.devices import Precision

gather_into, randperm = distributed.gather_into, torch.randperm
GPU = torch.device('cuda', 0)
Record = dict[str, Any]


class Loader(list):
    """Batches; what a DataLoader with pinned memory gives."""

    def __init__(self, batch: dict[str, Any], count: int = 1) -> None:
        self.batch_size = len(batch['image' if 'image' in batch else 'query'])
        batch['id'] = ['an image'] * self.batch_size
        self.sampler = SimpleNamespace()
        super().__init__([batch] * count)


class Averaged(nn.Module):
    """In place of DistributedDataParallel, whose C++ code needs numbers; the gradients are not averaged."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


@contextmanager
def processes(count: int) -> Iterator[None]:
    """The first of several processes: collectives return at once; what goes by the CPU has numbers, and is answered."""
    if count == 1:
        yield
        return
    dist.init_process_group('fake', rank=0, world_size=count, store=FakeStore())
    with patch.multiple(distributed, DistributedDataParallel=Averaged, gather_objects=lambda value: [value] * count,
                        largest=lambda *values: list(values)):
        yield
    dist.destroy_process_group()


def train(watch: Watch, model: nn.Module, batch: dict[str, Any], losses: Callable, statistics: Callable = dict,
          steps: int = 2, groups: list[dict[str, Any]] | None = None, **keys: Any) -> Record:
    """Steps of ``Trainer``: the records of the last, of the 'first', and of the line in the 'log' that ends them."""
    records: list[Record] = []

    def note() -> None:
        records.append(watch.record())
        watch.reset()

    class Watched(trainer.Trainer):
        def _log(self, *args: Any) -> None:
            note()
            super()._log(*args)

    def step(*parts: Any) -> dict[str, Tensor]:
        note()
        return losses(*parts)

    writer = type('Writer', (), {'add_scalars': lambda *args: None})()
    with tempfile.TemporaryDirectory() as folder, patch('utils.run.trainer.MetricsWriter', lambda _: writer):
        watched = Watched(settings(Path(folder), log_every=steps, **keys), model, GPU, Loader(batch, steps), [], groups)
        watched.train_one_epoch(step, statistics)
    return {**records[-1], 'first': records[1], 'log': watch.record()}


@contextmanager
def placed(build: Callable[[], nn.Module]) -> Iterator[tuple[Watch, Any]]:
    """A fictitious GPU with a network on it, and nothing counted yet."""
    with torch.device('meta'):
        network = build()  # without spending time on random weights
    network.to_empty(device='cpu')
    with fictitious_gpu() as watch:
        Precision(GPU).to_device(network)
        network.to = lambda *_, **__: network  # which is there, and cannot be moved while it is held
        watch.hold([*network.parameters(), *network.buffers()])
        watch.reset()
        yield watch, network


def pretraining(precision: str = 'fp32', world: int = 1, backbone: str = 'resnet18', batch: int = 4, size: int = 64,
                K: int = 128, upsample: bool = True, chunk: int = 32768, gather: bool = False,
                sync_batchnorm: bool = False, frozen: bool = True, optimizer: str = 'sgd',
                steps: int = 2) -> Record:
    """A step of pretraining as pretrain/main.py puts it together; ``batch`` pairs in each of ``world`` processes."""
    def build() -> nn.Module:
        encoder = ContrastiveSegmentationModel(backbone, upsample=upsample)
        model = MaskContrast(encoder, K=K, gather_prototypes=gather)
        if sync_batchnorm:
            model = synchronise_batchnorm(model, GPU)
        if frozen:
            freeze_layers(model.model_q.backbone, FROZEN)
            freeze_layers(model.model_k.backbone, FROZEN)
        return model.train()

    with processes(world), placed(build) as (watch, model):
        kinds = (('', (batch, 3, size, size), torch.uint8), ('_mask', (batch, size, size), torch.uint8),
                 ('_pixels', (int(FOREGROUND * batch * (size if upsample else size // 8) ** 2),), torch.int32))
        views = {f'{view}{kind}': torch.empty(*shape, dtype=dtype).pin_memory() for view in ('query', 'key')
                 for kind, shape, dtype in kinds}
        return train(watch, model, views, partial(pretrain_losses.compute_losses, chunk=chunk), model.bank_statistics,
                     steps, precision=precision, optimizer=optimizer)


def linear(precision: str = 'fp32', whole: bool = False) -> Record:
    """A step of the linear classifier, or of the whole network."""
    with placed(lambda: LinearSegmentationModel('resnet18')) as (watch, model):
        groups = [{'params': model.classifier.parameters()}]
        if whole:
            groups.append({'params': model.network_parameters(), 'lr_factor': 0.1})
        else:
            model.freeze_all_but_classifier()
        model.set_train_mode('backbone')
        batch = {'image': torch.empty(4, 3, 64, 64).pin_memory(),
                 'semseg': torch.empty(4, 64, 64, dtype=torch.long).pin_memory()}
        return train(watch, model, batch, segmentation_engine.compute_losses, groups=groups, precision=precision)


def basnet(precision: str = 'fp32') -> Record:
    """A step of BASNet."""
    with placed(BASNet) as (watch, network):
        batch = {'image': torch.empty(2, 3, 64, 64).pin_memory(), 'sal': torch.empty(2, 1, 64, 64).pin_memory()}
        return train(watch, network, batch, saliency_basnet.compute_losses, precision=precision, optimizer='adam')


def evaluation_batch() -> Loader:
    return Loader({'image': torch.empty(3, 3, 64, 64).pin_memory(), 'shape': [(48, 72)] * 3, 'original': [None] * 3,
                   'semseg': [np.zeros((48, 72), np.uint8)] * 3, 'sal': [np.ones((48, 72), np.uint8)] * 3})


def validation() -> Record:
    """Validation of the linear model, one batch."""
    with placed(lambda: LinearSegmentationModel('resnet18')) as (watch, model):
        confusion = segmentation_engine.validate(model, evaluation_batch(), GPU, VOC_CLASSES, VOC_CLASSES)
        assert confusion.sum() == 3 * 64 * 64
        return watch.record()


def prediction() -> Record:
    """Prediction of the linear model with its logits, one batch."""
    with placed(lambda: LinearSegmentationModel('resnet18')) as (watch, model):
        assert len(list(segmentation_engine.run_network(model, evaluation_batch(), GPU, True))) == 3
        return watch.record()


def prototypes(**options: Any) -> Record:
    """Objects and prototypes of one batch, see ``embed_split``."""
    network = BackboneModel if options.get('features') == 'backbone' else ContrastiveSegmentationModel
    with placed(lambda: network('resnet18').eval()) as (watch, model):
        assert len(embedding.embed_split(model, evaluation_batch(), GPU, 21, keep_masks=True, **options)) == 3
        return watch.record()


def basnet_prediction() -> Record:
    """Masks of BASNet for two images."""
    with placed(BASNet) as (watch, network):
        BASNetSaliency(network, GPU, 64)([np.zeros((50, 60, 3), np.uint8)] * 2)
        return watch.record()


def transformer_masks(count: int = 1) -> Record:
    """Up to ``count`` masks of an image of 40 x 54 patches, of queries and keys as ViT-S has them; a product or two."""
    def once(operator: Any, v0: np.ndarray, **_: Any) -> tuple[None, np.ndarray]:
        return None, operator.matvec(v0)[:, None]

    with fictitious_gpu() as watch, patch.object(saliency_transformer, 'eigsh', once):
        query, keys = torch.empty(6, 64, device=GPU), torch.empty(6, 40 * 54, 64, device=GPU)
        watch.reset()
        if count > 1:
            saliency_transformer.mask_cut(keys, (40, 54), count)
        else:
            saliency_transformer.salient_patches(query, keys, (40, 54))
        return watch.record()


def known() -> Record:
    """Two launches; a view and an allocation are none; at most two of three tensors of 4 MiB live at a time."""
    with fictitious_gpu() as watch:
        x = torch.empty(1 << 20, device=GPU)
        y = x.view(1024, -1) * 2
        del x
        y.T.add(1)
        return watch.record()


SCENES = {
    'fp32': pretraining, 'bf16': lambda: pretraining('bf16'), 'fp16': lambda: pretraining('fp16'),
    'small outputs': lambda: pretraining(upsample=False),
    'four processes': lambda: pretraining(world=4),
    'four processes with all options': lambda: pretraining('bf16', world=4, chunk=0, gather=True, sync_batchnorm=True,
                                                           frozen=False, optimizer='adam'),
    'linear classifier': lambda: linear('bf16'), 'fine-tuning': lambda: linear('fp16', whole=True),
    'BASNet': lambda: basnet('fp16'), 'validation': validation, 'prediction': prediction, 'prototypes': prototypes,
    'prototypes of components': lambda: prototypes(features='backbone', from_network=False, min_component=0.01),
    'prediction of BASNet': basnet_prediction, 'mask of a transformer': transformer_masks,
    'MaskCut': lambda: transformer_masks(3), 'known': known}


def on_the_cpu(scores: Tensor, masks: Tensor) -> Tensor:
    return (saliency_loss(scores, masks) * torch.ones(2)).mean()


def with_item(scores: Tensor, masks: Tensor) -> Tensor:
    return saliency_loss(scores, masks) * float(masks.any())


def with_boolean_index(scores: Tensor, masks: Tensor) -> Tensor:
    return saliency_loss(scores[masks.bool()], masks[masks.bool()])


def unpinned(self: Precision, x: Any) -> Any:
    return (x.clone() if isinstance(x, Tensor) else x).to(self.device, non_blocking=True)


def blocking(self: Precision, x: Any) -> Any:
    return x.to(self.device)


def strided(gathered: Tensor, x: Tensor) -> Any:
    return gather_into(gathered, torch.stack([x, x], -1)[..., 0])


def order_on_the_cpu(count: int, device: torch.device) -> Tensor:
    return randperm(count)


def unfused(name: str, parameters: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9)


# name: what is replaced, by what, and the arguments of the step
PLANTS = {
    'tensor on the CPU': (pretrain_losses, 'saliency_loss', on_the_cpu, {}),
    'item': (pretrain_losses, 'saliency_loss', with_item, {}),
    'boolean index': (pretrain_losses, 'saliency_loss', with_boolean_index, {}),
    'unpinned copy': (Precision, 'to_device', unpinned, {}),
    'blocking copy': (Precision, 'to_device', blocking, {}),
    'unfused optimiser': (trainer, 'build_optimizer', unfused, {'precision': 'fp16'}),
    'index on the CPU': (torch, 'randperm', order_on_the_cpu, {'world': 4}),
    'strided collective': (distributed, 'gather_into', strided, {'world': 4})}


def planted(owner: Any, name: str, defect: Callable, options: dict[str, Any]) -> Record:
    with patch.object(owner, name, defect):
        return pretraining(**options, steps=1)


def record_of(scene: Callable[[], Record]) -> Record:
    """The record, or the 'error' that a GPU would raise."""
    try:
        return scene()
    except Exception as error:
        return {'error': f'{type(error).__name__}: {error}'}


def main(arguments: list[str]) -> None:
    if 'libfakecudart' not in os.environ.get('LD_PRELOAD', ''):
        with tempfile.TemporaryDirectory() as folder:
            again = subprocess.run([sys.executable, '-m', 'tests.fake_gpu_steps', *arguments], cwd=ROOT,
                                   env={**os.environ, **build(Path(folder))})
        sys.exit(again.returncode)
    if arguments:
        keys = dict(argument.split('=') for argument in arguments)
        print(json.dumps(pretraining(**{key: yaml.safe_load(value) for key, value in keys.items()}), indent=1))
    else:
        print(json.dumps({'scenes': {name: record_of(scene) for name, scene in SCENES.items()},
                          'plants': {name: record_of(partial(planted, *plant)) for name, plant in PLANTS.items()}}))


if __name__ == '__main__':
    main(sys.argv[1:])
