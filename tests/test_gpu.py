"""What a GPU computes: ``make test-gpu`` runs on it what every run of the tests does on the CPU."""
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import models.segmentation
from models.segmentation import LinearSegmentationModel
from pretrain import losses as pretrain_losses
from saliency import basnet as saliency_basnet
from saliency.basnet import BASNet, BASNetSaliency
from segmentation import engine as segmentation_engine
from tests.conftest import pytest_configure
from tests.golden_inputs import photo
from tests.test_pretrain_maskcontrast import batch_of, method
from tests.test_scripts import Runner
from tests.test_utils_run_trainer import SmallBackbone, small_decoder
from utils.run import trainer as training
from utils.run.checkpoint import load_checkpoint
from utils.run.devices import Precision, tf32, to_device
from utils.run.script import StoppedError
from utils.run.trainer import build_optimizer

CPU = torch.device('cpu')
SIZE, BATCH = 32, 4
# of losses against float32 on the CPU: relative difference at the first step, and later, when weights differ too
BARS = {'fp32': (1e-4, 0.02), 'bf16': (0.02, 0.05), 'fp16': (0.005, 0.05)}
gpu = pytest.mark.gpu
DEVICES = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=gpu)])


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    with tf32(False):
        yield


@contextmanager
def no_wait(device: torch.device) -> Iterator[None]:
    """PyTorch raises an error where the GPU is waited for."""
    if device.type == 'cpu':
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def pretraining() -> tuple[nn.Module, Callable, dict[str, Tensor]]:
    model, views = method(size=SIZE, batch=BATCH)
    return model, pretrain_losses.compute_losses, batch_of(views)


def linear() -> tuple[nn.Module, Callable, dict[str, Tensor]]:
    torch.manual_seed(0)
    return LinearSegmentationModel('resnet18', 4, dropout=0.0), segmentation_engine.compute_losses, {
        'image': torch.randn(BATCH, 3, SIZE, SIZE), 'semseg': torch.randint(4, (BATCH, SIZE, SIZE))}


def basnet() -> tuple[nn.Module, Callable, dict[str, Tensor]]:
    torch.manual_seed(0)
    return BASNet(), saliency_basnet.compute_losses, {
        'image': torch.randn(2, 3, 32, 32), 'sal': torch.rand(2, 1, 32, 32).round()}


@cache
def losses_of(task: Callable, device: torch.device, name: str) -> list[float]:
    """Two steps; the second waits for nothing, the first may while libraries start."""
    model, compute_losses, batch = task()
    precision = Precision(device, name)
    precision.to_device(model.train())
    optimizer = build_optimizer('sgd', model.parameters(), 0.01)
    if device.type == 'cuda':
        batch = {key: value.pin_memory() for key, value in batch.items()}
    losses = []
    for step in range(2):
        with no_wait(device if step else CPU):
            loss = compute_losses(model, batch, precision)['loss']
            precision.step(loss, optimizer)
            losses.append(loss.detach())
    return torch.stack(losses).tolist()


@pytest.mark.parametrize(('device', 'precision'), [
    ('cpu', 'fp32'), *(pytest.param('cuda', name, marks=gpu) for name in BARS)])
@pytest.mark.parametrize('task', [pretraining, linear, pytest.param(basnet, marks=gpu)])  # slow on a CPU
def test_steps_wait_for_nothing_and_stay_near_float32(task: Callable, device: str, precision: str) -> None:
    reference = losses_of(task, CPU, 'fp32')
    found = losses_of(task, torch.device(device), precision)
    first, later = BARS[precision]
    assert found == pytest.approx(reference, rel=later)
    assert found[0] == pytest.approx(reference[0], rel=first)
    print(task.__name__, device, precision, [x / y - 1 for x, y in zip(found, reference, strict=True)])


@pytest.mark.parametrize(('marks', 'hidden'), [('', True), ('not gpu', True), ('gpu', False)])
def test_gpus_are_hidden_from_tests_that_are_not_there_for_them(marks: str, hidden: bool,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    pytest_configure(SimpleNamespace(getoption={'markexpr': marks}.get))  # type: ignore[arg-type]
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ('' if hidden else '0,1')


@gpu
def test_a_wait_is_an_error() -> None:
    with pytest.raises(RuntimeError, match='synchroniz'), no_wait(torch.device('cuda')):
        torch.ones(1, device='cuda').item()


def momentum(path: Path) -> Tensor:
    state = load_checkpoint(path)['optimizer']['state']
    return torch.cat([state[index]['exp_avg'].flatten() for index in sorted(state)])


@pytest.mark.parametrize(('device', 'precision', 'bar'), [
    ('cpu', 'fp32', 0), pytest.param('cuda', 'fp32', 0.02, marks=gpu), pytest.param('cuda', 'fp16', 0.1, marks=gpu)])
def test_a_stopped_run_is_taken_up(db_root: Path, tmp_path: Path, device: str, precision: str, bar: float) -> None:
    """Other dropout, bank or scale of the loss would give other gradients: the momentum sums those of all steps."""
    run, count = Runner(db_root, tmp_path), itertools.count(1)
    keys = (f'device={device}', f'precision={precision}', 'tf32=false', 'checkpoint_every=2', 'pretraining=none',
            'model_kwargs.dropout=0.5')
    save = training.save_training

    def save_and_stop(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if next(count) == 3:
            raise StoppedError(None)

    with patch.multiple(models.segmentation, build_backbone=SmallBackbone, build_decoder=small_decoder):
        run('pretrain.main', *keys, 'output_dir=whole')
        with patch.object(training, 'save_training', save_and_stop), pytest.raises(StoppedError):
            run('pretrain.main', *keys, 'output_dir=stopped')
        run('pretrain.main', *keys, 'output_dir=stopped')
    whole, stopped = (tmp_path / name / 'checkpoint.pth.tar' for name in ('whole', 'stopped'))
    first, second = momentum(whole), momentum(stopped)
    assert (first - second).norm() <= bar * first.norm()
    assert load_checkpoint(whole)['epoch'] == load_checkpoint(stopped)['epoch'] == 2
    assert load_checkpoint(whole)['scaler'] == load_checkpoint(stopped)['scaler']
    assert bool(load_checkpoint(whole)['scaler']) == (precision == 'fp16')


@pytest.fixture(scope='module')
def run(db_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Holds a pretraining, a linear model and their evaluations, all of the CPU."""
    runner = Runner(db_root, tmp_path_factory.mktemp('cpu'))
    runner('pretrain.main', 'device=cpu', 'epochs=1')
    runner('segmentation.linear_finetune', 'device=cpu', 'epochs=1', 'network_lr_factor=0.1')
    evaluate(runner, 'cpu', 'reference')
    return runner


def evaluate(run: Runner, device: str, name: str) -> None:
    keys = (f'device={device}', f'output_dir=eval-{name}', 'epochs=1', 'network_lr_factor=0.1', 'tf32=false')
    run('segmentation.eval', *keys, flags=('--state-dict', str(run.root_dir / 'linear_finetune/best_model.pth.tar')))
    for script in ('kmeans', 'retrieval'):
        run(f'segmentation.{script}', f'device={device}', f'output_dir={script}-{name}')


@DEVICES
def test_evaluations_are_those_of_the_cpu(run: Runner, device: str) -> None:
    evaluate(run, device, device)
    maps = [[np.asarray(Image.open(path)) for path in sorted((run.root_dir / name / 'predictions').glob('*.png'))]
            for name in ('eval-reference', f'eval-{device}')]
    assert [found.shape for found in maps[0]] == [found.shape for found in maps[1]]
    assert len(maps[0]) == 6
    reference, found = (np.concatenate([one.ravel() for one in several]) for several in maps)
    assert (reference == found).mean() > 0.999
    for file in ('kmeans-{}/prototypes.npz', 'retrieval-{}/memory.npz'):
        reference, found = (np.load(run.root_dir / file.format(name))['prototypes'] for name in ('reference', device))
        np.testing.assert_allclose(found, reference, atol=1e-3)


@DEVICES
def test_masks_of_basnet_are_those_of_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    network, image = BASNet(), photo('basnet', 40, 50)
    to_device(network, CPU)
    reference, = BASNetSaliency(network, CPU, 64)([image])
    to_device(network, torch.device(device))
    found, = BASNetSaliency(network, torch.device(device), 64)([image])
    assert found.shape == image.shape[:2]
    assert np.abs(found - reference).mean() < 0.01
