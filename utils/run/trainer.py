"""The loop behind every script that trains, with its optimiser: it saves, resumes, and stops when it is asked to."""
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.config.load import changes
from utils.config.schema import Training
from utils.run import distributed
from utils.run.checkpoint import last_good, resume_training, save_training
from utils.run.devices import Precision, tf32
from utils.run.errors import UserError, name_some
from utils.run.log import MetricsWriter, log_epoch, progress
from utils.run.parallel import starting_workers
from utils.run.script import SIGNALS, handled, stop, stop_at_once

log = logging.getLogger(__name__)
VOTE = 5.0  # seconds in which a signal is heard by all processes


def learning_rate(scheduler: str, lr: float, epoch: int, epochs: int, lr_decay_rate: float = 0.1,
                  lr_decay_epochs: Sequence[int] = ()) -> float:
    """The rate of an epoch (counted from 0); ``scheduler`` is 'poly', 'step', 'cosine' or 'constant'."""
    if scheduler == 'poly':
        return lr * (1 - epoch / epochs) ** 0.9
    if scheduler == 'step':
        return lr * lr_decay_rate ** sum(epoch > e for e in lr_decay_epochs)
    if scheduler == 'cosine':
        eta_min = lr * lr_decay_rate ** 3
        return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    assert scheduler == 'constant', scheduler
    return lr


def build_optimizer(name: str, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float,
                    momentum: float = 0.9, weight_decay: float = 1e-4, nesterov: bool = False) -> torch.optim.Optimizer:
    """'sgd' or 'adam' over the parameters that have a gradient, or over groups {'params': ..., 'lr_factor': 0.1}."""
    given: list[Any] = list(parameters)
    groups = given if isinstance(given[0], dict) else [{'params': given}]
    trained = [{**group, 'params': [p for p in group['params'] if p.requires_grad]} for group in groups]
    # one pass over the memory; on a GPU scaling then waits at no step
    fused = all(p.device.type in ('cpu', 'cuda') for group in trained for p in group['params']) or None
    optimizer: torch.optim.Optimizer
    if name == 'adam':
        optimizer = torch.optim.Adam(trained, lr, weight_decay=weight_decay, fused=fused)
    else:
        assert name == 'sgd', name
        optimizer = torch.optim.SGD(trained, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)
        if momentum:
            optimizer.register_step_pre_hook(_start_momentum)
    optimizer.register_load_state_dict_post_hook(_order_as_parameters)
    return optimizer


def _order_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    # The fused kernels read memory in order, whatever the strides: of a run with the other channels_last they would
    # give each weight the momentum of another.
    for p, state in optimizer.state.items():
        state.update({name: torch.empty_like(p, dtype=value.dtype).copy_(value)
                      for name, value in state.items() if torch.is_tensor(value) and value.shape == p.shape})


def _start_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # A momentum of zero changes no first step. Without it the fused kernel takes uninitialised memory, and leaves it so
    # where loss scaling skips the step for an overflow.
    for group in optimizer.param_groups:
        for p in group['params']:
            if p.grad is not None and optimizer.state[p].get('momentum_buffer') is None:
                optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)


class Mean:
    """Running means of named scalars, summed on the device; reading them is the only synchronisation."""

    def __init__(self, sums: Mapping[str, Any] | None = None, count: int = 0) -> None:
        self.sums: Any = Counter(sums)  # adds tensors as it adds numbers
        self.count = count

    def add(self, values: Mapping[str, Tensor], count: int = 1) -> None:
        """Add the scalars of a step, or their sums over several."""
        self.sums.update(values)
        self.count += count

    def read(self) -> dict[str, float]:
        means = (torch.stack(list(self.sums.values())) / self.count).tolist() if self.sums else []
        return dict(zip(self.sums, means, strict=True))


class Trainer:
    """Trains epoch by epoch and loses no work: what is in the checkpoint of ``p.output_dir`` is taken up.

    The model comes to the device, with the weights of the main process. ``loader`` gives an epoch in batches, whose
    'id' names their images; ``ids`` are those of its data set, with which alone a run goes on. ``epoch`` counts the
    finished epochs, ``step`` the steps of the next one, and ``extra`` is what a script keeps besides. Raises UserError
    if the device does not compute in ``p.precision``, or the checkpoint cannot be read, belongs to another model or to
    other images, or is not the same for all processes.
    """

    def __init__(self, p: Training, model: nn.Module, device: torch.device, loader: DataLoader, ids: Sequence[str],
                 groups: Sequence[dict[str, Any]] | None = None) -> None:
        self.p, self.loader, self.ids, self.path = p, loader, list(ids), Path(p.output_dir) / 'checkpoint.pth.tar'
        self.precision = Precision(device, p.precision, p.channels_last, p.tf32)
        self.model = self.precision.to_device(model)
        self._parallel = distributed.parallel(model)
        if distributed.world_size() > 1:
            torch.manual_seed(p.seed + distributed.rank())  # the weights are alike now; each has its own dropout
        self.optimizer = build_optimizer(p.optimizer, groups or model.parameters(), **p.optimizer_kwargs)
        self.writer = MetricsWriter(self.path.parent)
        state = resume_training(self.path, model, self.optimizer, ids)
        if changed := changes(p, state.get('config', p)):
            raise UserError(f'{self.path} is of a run with another config ({name_some([*changed.values()], 20)}); '
                            'choose another output_dir, or start from it with pretraining: PATH.')
        if state:
            self.precision.scaler.load_state_dict(state.get('scaler', {}))
            log.info('Resuming after epoch %d and %d steps from %s', state['epoch'], state['step'], self.path)
        self.epoch, self.step, self.extra = state.get('epoch', 0), state.get('step', 0), state.get('extra', {})
        found = set(distributed.gather_objects((self.epoch, self.step)))
        if len(found) > 1:
            raise UserError(f'the processes found different checkpoints at {self.path} (epoch and step '
                            f'{name_some(sorted(found))}); output_dir must be one folder that all machines share.')
        # since the last line of the log; of the epoch up to there
        self.recent, self.whole = Mean(*state.get('recent', ())), Mean(*state.get('whole', ()))
        self.share = 1.0  # of the epoch's steps, those not done by an earlier start of the run
        self._summary = ''  # of the last epoch
        self._unchecked: list[tuple[int, Sequence[str], Tensor]] = []  # step, images, loss
        self._signal: int | None = None
        self._votes = self._wait = 1  # steps between two votes, and those until the next
        self._voted = time.perf_counter()

    def began_with(self, name: str, digest: str, folder: Path | None) -> None:
        """Raises UserError unless what is read from a folder has the digest that it had when the training began."""
        if not distributed.alike(digest):
            raise UserError(f'the processes found different files in {folder}; all must see the same ones.')
        if self.extra.setdefault(name, digest) != digest:
            raise UserError(f'the files in {folder} are not those that this training began with; restore them, or '
                            'choose another output_dir.')

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """A block in which SIGTERM and SIGINT let the step be finished and saved, and then raise StoppedError."""
        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        with handled(note, *SIGNALS):
            yield
        if distributed.any_process(self._signal is not None):
            stop(self._signal)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, counted from 0, each with its learning rate, and summed up in a line.

        In each the caller calls ``train_one_epoch``, evaluates within ``at_once`` and calls ``finish_epoch``.
        """
        p = self.p
        for epoch in range(self.epoch, p.epochs):
            begun = time.perf_counter()
            rate = learning_rate(p.scheduler, p.optimizer_kwargs.lr, epoch, p.epochs, **p.scheduler_kwargs)
            for group in self.optimizer.param_groups:
                group['lr'] = rate * group.get('lr_factor', 1)
            self.writer.add_scalars({'train/lr': rate}, epoch + 1)
            yield epoch
            log_epoch(epoch, p.epochs, f'{self._summary}, lr {rate:.5f}', time.perf_counter() - begun, self.share)

    def train_one_epoch(self, compute_losses: Callable[[nn.Module, dict[str, Any], Precision], dict[str, Tensor]],
                        statistics: Callable[[], dict[str, float]] = dict) -> dict[str, float]:
        """One pass over the loader, or what is left of it; the means of the epoch's steps.

        ``compute_losses`` gives the 'loss' of a batch and what else to log, ``statistics`` what else the writer gets.
        Raises UserError if the loss is not finite, StoppedError if a signal came and the run is saved.
        """
        every, sampler, batch = self.p.checkpoint_every, self.loader.sampler, self.loader.batch_size or 1
        sampler.epoch, sampler.start = self.epoch, self.step * batch * distributed.world_size()  # type: ignore
        steps = self.step + len(self.loader)
        self.share = len(self.loader) / steps
        with starting_workers():
            batches = iter(self.loader)
        with tf32(self.precision.tf32):
            for images in progress(batches, f'epoch {self.epoch + 1}', steps, self.step):
                losses = compute_losses(self._parallel, images, self.precision)
                self.precision.step(losses['loss'], self.optimizer)
                self.step += 1
                self._unchecked.append((self.step, images['id'], losses['loss'].detach()))
                self.recent.add({name: value.detach().float() for name, value in losses.items()})
                if self.step % self.p.log_every == 0 or self.step == steps:
                    self._log(steps, statistics)
                asked = self._asked()
                if asked or (every and self.step % every == 0 and self.step < steps):
                    self.save()
                if asked:
                    stop(self._signal)
        return self.whole.read()

    def _asked(self) -> bool:
        """Whether a signal came to any process. All vote at the same steps, ``VOTE`` seconds apart at most."""
        if distributed.world_size() == 1:
            return self._signal is not None
        self._wait -= 1
        if self._wait:
            return False
        now = time.perf_counter()
        seconds, asked = distributed.largest((now - self._voted) / self._votes, self._signal is not None)
        self._votes = self._wait = max(1, min(2 * self._votes, int(VOTE / seconds)))
        self._voted = now
        return bool(asked)

    def _log(self, steps: int, statistics: Callable[[], dict[str, float]]) -> None:
        self._check()
        means = self.recent.read()
        if distributed.is_main():
            self.writer.add_scalars({**{f'train/{name}': value for name, value in means.items()}, **statistics()},
                                    self.epoch + 1, self.epoch * steps + self.step)
        log.info('epoch %d step %d/%d  %s', self.epoch + 1, self.step, steps,
                 '  '.join(f'{name} {value:.4f}' for name, value in means.items()))
        self.whole.add(self.recent.sums, self.recent.count)
        self.recent = Mean()

    def _check(self) -> None:
        """Wait for the losses since the last check. Raises UserError, alike in all processes, if one is not finite."""
        values = torch.stack([loss for *_, loss in self._unchecked]).tolist() if self._unchecked else []
        wrong = [(step, str(value), ids) for (step, ids, _), value in zip(self._unchecked, values, strict=True)
                 if not math.isfinite(value)]
        self._unchecked = []
        if found := [first for part in distributed.gather_objects(wrong[:1]) for first in part]:
            step, value, ids = min(found)
            raise UserError(f'the loss is {value} at epoch {self.epoch + 1}, step {step}, images {name_some(ids, 16)}; '
                            f'{last_good(self.path)}: look at these images, or lower optimizer_kwargs.lr in another '
                            'output_dir.')

    def finish_epoch(self, shown: str = '', **extra: Any) -> None:
        """Count the epoch as done, ``shown`` in its summary, and save; ``extra`` replaces entries of ``self.extra``."""
        self._summary = f'loss {self.whole.read().get("loss", math.nan):.4f}' + (shown and f', {shown}')
        self.extra.update(extra)
        self.epoch, self.step, self.whole = self.epoch + 1, 0, Mean()
        self.save()

    def save(self) -> None:
        """Write the checkpoint, unless a loss is not finite."""
        self._check()
        save_training(self.path, self.model, self.optimizer, self.p, ids=self.ids, epoch=self.epoch, step=self.step,
                      recent=(dict(self.recent.sums), self.recent.count),
                      whole=(dict(self.whole.sums), self.whole.count), extra=self.extra,
                      scaler=self.precision.scaler.state_dict())
        distributed.barrier()  # nobody leaves while it is being written

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Save, then a block that a signal ends at once: an evaluation of what is saved, which can be done again."""
        self.save()
        distributed.share_buffers(self.model)
        with handled(stop_at_once, *SIGNALS):
            if self._signal is not None:
                stop(self._signal)
            yield
            distributed.gather_objects(None, patient=True)  # what one process does alone may take long
