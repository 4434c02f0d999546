"""Never losing work: killed, stopped and failing runs, taken up again to the same bits.

Every push kills two runs of each script that trains with SIGKILL and two with SIGTERM, and so many more with SIGKILL
until one has met a checkpoint that is being written. The long form kills 20 and 20:

    MASKCONTRAST_KILLS=20 python -m pytest tests/test_utils_run_trainer.py -k killed -s
"""
import contextlib
import errno
import importlib
import itertools
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models.segmentation
from data.loaders import SeededSampler, collate
from models.backbones import IMAGENET
from tests.test_scripts import Runner
from utils.config.load import Config
from utils.config.schema import Training
from utils.run.checkpoint import load_checkpoint, save_checkpoint
from utils.run.devices import Precision
from utils.run.errors import EXIT_STOPPED, EXIT_USER_ERROR, UserError
from utils.run.files import save_image
from utils.run.script import StoppedError, run_script
from utils.run.trainer import Trainer

KILLS = int(os.environ.get('MASKCONTRAST_KILLS', 2))
# every step is saved, so that many kills meet a checkpoint that is being written
KEYS = {'pretrain.main': ['epochs=2', 'checkpoint_every=1', 'model_kwargs.dropout=0.5'],
        'segmentation.linear_finetune': ['epochs=2', 'checkpoint_every=1', 'pretraining=none', 'network_lr_factor=0.1',
                                         'freeze_batchnorm=none', 'num_visualizations=0']}
FORKS = multiprocessing.get_context('forkserver')  # its server imports PyTorch once for all runs
FORKS.set_forkserver_preload(['tests.test_utils_run_trainer', *KEYS])


class SmallBackbone(nn.Sequential):
    """In place of the ResNet: quick steps, and a checkpoint of some megabytes."""
    out_channels = 8
    mean, std = IMAGENET

    def __init__(self, name: str) -> None:
        super().__init__(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.register_buffer('ballast', torch.zeros(10 ** 6))


def small_decoder(kind: str, in_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, models.segmentation.CHANNELS, 3, padding=1),
                         nn.BatchNorm2d(models.segmentation.CHANNELS), nn.ReLU(), nn.Dropout(dropout))


def run(script: str, arguments: list[str], output: Path) -> None:
    """What a process of ``start`` does."""
    multiprocessing.set_start_method('fork', force=True)  # of loader workers, as in a run from the command line
    os.setsid()  # a group of its own, for signals that go to the loader workers too
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)  # a file outlives a kill
    torch.set_num_threads(1)
    models.segmentation.build_backbone, models.segmentation.build_decoder = SmallBackbone, small_decoder
    run_script(lambda: importlib.import_module(script).main(arguments))


def start(runner: Runner, script: str, *overrides: str, output: str = 'output.txt') -> multiprocessing.Process:
    process = FORKS.Process(target=run, args=(script, runner.arguments(script, *KEYS[script], *overrides),
                                              runner.root_dir / output))
    process.start()
    return process


def end_of(process: multiprocessing.Process) -> int:
    process.join(300)
    hangs = process.exitcode is None
    if hangs:
        process.kill()
    assert not hangs
    return process.exitcode


def equal(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(
            equal(a[key], b[key]) for key in a if key not in ('num_workers', 'output_dir'))
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def final_state(folder: Path) -> list[dict]:
    return [load_checkpoint(path) for path in sorted(folder.glob('*.pth.tar'))]


@pytest.fixture(scope='module')
def runner(db_root: Path, tmp_path_factory) -> Runner:
    return Runner(db_root, tmp_path_factory.mktemp('runs'))


@pytest.mark.parametrize('script', list(KEYS))
def test_killed_at_a_random_moment_and_resumed_a_run_ends_in_the_same_bits(runner: Runner, script: str) -> None:
    output, folder = runner.root_dir / 'output.txt', runner.root_dir / 'killed'
    assert end_of(start(runner, script, f'output_dir={script}')) == 0, output.read_text()
    expected = final_state(runner.root_dir / script)
    assert expected[-1]['epoch'] == 2
    draw, length, counts = random.Random(script), 0.0, {'killed': 0, 'while writing': 0}
    ways = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * KILLS
    left = list(zip(ways, itertools.cycle([2, 2, 0]), strict=False))
    while left or not counts['while writing']:
        way, workers = left[-1] if left else (signal.SIGKILL, 0)
        begun = time.monotonic()
        process = start(runner, script, 'output_dir=killed', f'num_workers={workers}')
        process.join(draw.uniform(0, length))
        if draw.random() < 0.5 or not left:  # half of the kills come while a checkpoint is being written
            while process.is_alive() and not list(folder.glob('.*.unfinished')):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02) if left else 0)
        with contextlib.suppress(ProcessLookupError):  # SIGTERM goes to the loader workers too
            process.kill() if way == signal.SIGKILL else os.killpg(process.pid, way)
        code = end_of(process)
        counts['while writing'] += bool(list(folder.glob('.*.unfinished')))
        if code == 0:  # it was done before: draw another moment
            length = time.monotonic() - begun
        else:
            assert code in (-way, EXIT_STOPPED), output.read_text()
            again = start(runner, script, 'output_dir=killed', f'num_workers={2 - workers}')
            assert end_of(again) == 0, output.read_text()
            counts['killed'] += 1
            left = left[:-1]
        assert equal(final_state(folder), expected)
        assert not list(folder.glob('.*.unfinished'))
        shutil.rmtree(folder)
        assert counts['killed'] <= 2 * KILLS + 20, counts
    print(script, counts)


def test_a_second_run_in_the_same_folder_is_refused_and_ctrl_c_saves_the_first(runner: Runner, capsys) -> None:
    first = start(runner, 'pretrain.main', 'output_dir=shared', 'epochs=2000', 'num_workers=2', output='first.txt')
    checkpoint = runner.root_dir / 'shared' / 'checkpoint.pth.tar'
    while not checkpoint.exists():
        assert first.is_alive(), (runner.root_dir / 'first.txt').read_text()
        time.sleep(0.01)
    message = runner.fails('pretrain.main', 'output_dir=shared', 'epochs=2000', capsys=capsys)
    assert 'another run is writing to' in message
    os.killpg(first.pid, signal.SIGINT)
    assert end_of(first) == EXIT_STOPPED
    printed = (runner.root_dir / 'first.txt').read_text()
    assert printed.endswith('stopped by SIGINT; rerun the same command to resume\n')
    assert 'Traceback' not in printed
    state = load_checkpoint(checkpoint)
    assert (0, 0) < (state['epoch'], state['step']) < (2000, 0)
    assert f'epoch {state["epoch"] + 1} step {state["step"]}/3' in printed.splitlines()[-2]


def test_an_error_in_a_loader_worker_ends_the_run(runner: Runner, shapes: Path) -> None:
    for image in (shapes / 'images').iterdir():
        image.write_bytes(b'no image')
    process = start(runner, 'pretrain.main', 'output_dir=broken', 'num_workers=2', f'db_root={shapes.parent}',
                    output='broken.txt')
    assert end_of(process) == EXIT_USER_ERROR
    printed = (runner.root_dir / 'broken.txt').read_text()
    assert printed.splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in printed


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGBUS])
def test_a_killed_loader_worker_is_one_sentence(runner: Runner, number: int) -> None:
    folder = runner.root_dir / f'loader_{number:d}'
    printed, checkpoint = folder.with_suffix('.txt'), folder / 'checkpoint.pth.tar'
    process = start(runner, 'pretrain.main', f'output_dir={folder}', 'epochs=2000', 'num_workers=1',
                    output=printed.name)
    while not checkpoint.exists():
        assert process.is_alive(), printed.read_text()
        time.sleep(0.01)
    worker = ''
    while not worker:  # between two epochs there is none
        worker = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text()
    os.kill(int(worker.split()[0]), number)
    assert end_of(process) == EXIT_USER_ERROR, printed.read_text()
    assert printed.read_text().endswith(  # after PyTorch's own line on a bus error
        'error: a loader worker was killed, for lack of memory or of shared memory (/dev/shm; of a container by '
        '--shm-size): raise it or lower num_workers, and rerun: a training resumes.\n')
    assert 'Traceback' not in printed.read_text()


class Dying:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_loader_worker_of_an_evaluation_is_one_sentence(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: list(DataLoader(Dying(), num_workers=1)))
    assert ended.value.code == EXIT_USER_ERROR
    assert re.fullmatch('error: a loader worker was killed, .* lower num_workers, and rerun: a training resumes.\n',
                        capsys.readouterr().err)


def limited(size: int, action: Callable[[], None]) -> None:
    """Call with files limited to a size: the file system says no in the middle of a file, as a full one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_survives(tmp_path: Path, capsys) -> None:
    path = tmp_path / 'checkpoint.pth.tar'
    save_checkpoint({'epoch': 1}, path)
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: limited(10 ** 6, lambda: save_checkpoint({'model': torch.ones(10 ** 6)}, path)))
    assert ended.value.code == EXIT_USER_ERROR
    message = capsys.readouterr().err.strip()
    assert message.startswith(f'error: cannot write checkpoint {path} (File too large; {path} is the last good ')
    assert 'Traceback' not in message
    assert load_checkpoint(path) == {'epoch': 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8))
    with pytest.raises(OSError, match='File too large'):
        limited(2000, lambda: save_image(noise, tmp_path / f'a{suffix}'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_flush_leaves_the_file_of_before(tmp_path: Path, monkeypatch, number: int) -> None:
    path = tmp_path / 'checkpoint.pth.tar'
    save_checkpoint({'epoch': 1}, path)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(UserError, match=f'{os.strerror(number)}.*is the last good checkpoint'):
        save_checkpoint({'epoch': 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {'epoch': 1}
    assert list(tmp_path.iterdir()) == [path]


STEPS = 6


def settings(folder: Path, **keys: Any) -> Any:
    """The config of a training of six steps an epoch that leaves its checkpoint in ``folder``."""
    given = {'output_dir': str(folder), 'root_dir': '.', 'db_root': '.', 'epochs': 2, 'train_batch_size': 2, **keys}
    return Config(Training.model_validate(given).model_dump(), Training)


class Small:
    """A trainer of three weights in ``folder``: six steps an epoch, with dropout."""

    def __init__(self, folder: Path, checkpoint_every: int = 0, log_every: int = 4, rate: float = 0.1) -> None:
        torch.manual_seed(0)
        self.path, self.calls, self.losses = folder / 'checkpoint.pth.tar', 0, []
        self.model = nn.Linear(3, 1)
        loader = DataLoader(self, 2, sampler=SeededSampler(2 * STEPS, 0), collate_fn=collate,
                            generator=torch.Generator())
        p = settings(folder, checkpoint_every=checkpoint_every, log_every=log_every, optimizer_kwargs={'lr': rate})
        self.trainer = Trainer(p, self.model, torch.device('cpu'), loader, [f'image{i}' for i in range(2 * STEPS)])

    def __getitem__(self, item: tuple[int, int]) -> dict:
        return {'x': torch.tensor([1.0, item[0], item[1] % 7]) / 7, 'id': f'image{item[0]}'}

    def train(self, at: int = 0, event: Callable[[Tensor], Tensor] = lambda loss: loss) -> dict[str, float]:
        """An epoch; at one of the steps, counted from 1, something happens to the loss."""
        def compute(model: nn.Module, batch: dict, precision: Precision) -> dict[str, Tensor]:
            self.calls += 1
            loss = (nn.functional.dropout(model(batch['x'])) - 1).square().mean()
            self.losses.append(float(loss.detach()))
            return {'loss': event(loss) if self.calls == at else loss}
        return self.trainer.train_one_epoch(compute)


def test_a_checkpoint_of_another_config_is_not_taken_up(tmp_path: Path) -> None:
    Small(tmp_path / 'old').trainer.save()
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'checkpoint.pth.tar').write_bytes((tmp_path / 'old' / 'checkpoint.pth.tar').read_bytes())
    Small(tmp_path / 'new', log_every=2)  # changes nothing of the training
    with pytest.raises(UserError, match=r'is of a run with another config \(optimizer_kwargs.lr: 0.1 -> 0.2\); choose'):
        Small(tmp_path / 'new', rate=0.2)


def signalled(loss: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def test_a_signal_lets_the_step_end_and_be_saved(tmp_path: Path) -> None:
    whole = Small(tmp_path / 'whole')
    with whole.trainer.stoppable():
        means = [whole.train(), (whole.trainer.finish_epoch(), whole.train())[1]]
        whole.trainer.finish_epoch()
    assert means[0]['loss'] == pytest.approx(np.mean(whole.losses[:STEPS]))
    parts, handler = Small(tmp_path / 'parts'), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match='stopped by SIGTERM'), parts.trainer.stoppable():
        parts.train(3, signalled)
    assert signal.getsignal(signal.SIGTERM) == handler
    parts = Small(tmp_path / 'parts')
    assert (parts.trainer.epoch, parts.trainer.step) == (0, 3)
    with parts.trainer.stoppable():
        assert parts.train() == means[0]
        assert (parts.calls, parts.trainer.share) == (STEPS - 3, 0.5)
        parts.trainer.finish_epoch(best=1)
    parts = Small(tmp_path / 'parts')
    with pytest.raises(StoppedError, match='stopped by SIGTERM'), parts.trainer.stoppable():
        parts.train(STEPS, signalled)
    parts = Small(tmp_path / 'parts')
    assert (parts.trainer.epoch, parts.trainer.step, parts.trainer.extra) == (1, STEPS, {'best': 1})
    with parts.trainer.stoppable():
        assert parts.train() == means[1]
        assert parts.calls == 0
        parts.trainer.finish_epoch()
    first, second = (load_checkpoint(each.path) for each in (whole, parts))
    assert second.pop('extra') == {'best': 1}
    assert first.pop('extra') == {}
    assert equal(first, second)


def evaluate(folder: Path) -> None:
    small = Small(folder)
    with small.trainer.stoppable():
        small.train()
        with small.trainer.at_once():
            signalled(torch.zeros(()))


def test_a_signal_ends_an_evaluation_at_once_after_a_checkpoint(tmp_path: Path) -> None:
    process = FORKS.Process(target=evaluate, args=(tmp_path,))
    process.start()
    assert end_of(process) == EXIT_STOPPED
    small = Small(tmp_path)
    assert small.trainer.step == STEPS
    with contextlib.suppress(StoppedError), small.trainer.stoppable():
        signalled(torch.zeros(()))
        with small.trainer.at_once():
            pytest.fail('the evaluation began')


def test_a_signal_during_the_last_checkpoint_ends_the_run_after_it(tmp_path: Path) -> None:
    small = Small(tmp_path)
    with pytest.raises(StoppedError), small.trainer.stoppable():
        signalled(torch.zeros(()))


@pytest.mark.parametrize('checkpoint_every', [0, 2])
def test_a_loss_that_is_not_finite_names_step_and_images_and_is_not_saved(tmp_path: Path,
                                                                          checkpoint_every: int) -> None:
    small = Small(tmp_path, checkpoint_every)
    good = f'{small.path} is the last good checkpoint' if checkpoint_every else 'there is no checkpoint yet'
    images = [name for (name, _) in small.trainer.loader.sampler][4:6]
    with pytest.raises(UserError, match=f'the loss is nan at epoch 1, step 3, images image{images[0]}, '
                                        f'image{images[1]}; {good}'), small.trainer.stoppable():
        small.train(3, lambda loss: loss * math.nan)
    assert [load_checkpoint(path)['step'] for path in tmp_path.glob('*.tar')] == [2] * bool(checkpoint_every)


def test_a_truncated_checkpoint_of_a_run_is_to_be_restored_or_moved(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.trainer.save()
    small.path.write_bytes(small.path.read_bytes()[:-400])
    with pytest.raises(UserError, match='truncated .*; restore it, or move it away to start from the beginning'):
        Small(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    small = Small(tmp_path, checkpoint_every=1)
    with (pytest.raises(UserError, match=f'no longer finite.*{small.path} is the last good checkpoint'),
          small.trainer.stoppable()):
        small.train(3, lambda loss: loss + (loss - loss.detach()).sqrt())  # 0, with an infinite gradient
    assert load_checkpoint(small.path)['step'] == 2
