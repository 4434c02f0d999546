"""The loop behind every script that trains: it saves, resumes, and stops when it is asked to."""
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.run import distributed
from utils.run.checkpoint import resume_training, save_training
from utils.run.errors import UserError, name_some
from utils.run.log import MetricsWriter, log_epoch, progress
from utils.run.optim import learning_rate, set_learning_rate
from utils.run.parallel import LOST_WORKER, lost_worker, starting_workers
from utils.run.precision import Precision, tf32
from utils.run.signals import SIGNALS, handled, stop, stop_at_once

log = logging.getLogger(__name__)


class Mean:
    """Running means of named scalars, summed on the device; reading them is the only synchronisation."""

    def __init__(self, sums: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.sums, self.count = dict(sums or {}), count

    def update(self, **values: Tensor) -> None:
        """Add one step's scalars."""
        self.add(Mean({name: value.detach().float() for name, value in values.items()}, 1))

    def add(self, other: 'Mean') -> None:
        """Add the steps of another."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += other.count

    def read(self) -> dict[str, float]:
        if not self.sums:
            return {}
        means = (torch.stack(list(self.sums.values())) / self.count).tolist()
        return dict(zip(self.sums, means, strict=True))


class Trainer:
    """Trains epoch by epoch and loses no work.

    What is in the checkpoint is taken up: ``epoch`` is the number of finished epochs, ``step`` that of
    the steps done of the next one, and ``extra`` what a script keeps besides. While it is entered,
    SIGTERM and SIGINT let the step be finished and saved, then raise StoppedError.

    Args:
        path: the checkpoint; the metrics go beside it.
        loader: a whole epoch in batches, whose 'id' names their images; ``sampler`` is its order.
        ids: the images of the loader's data set, in order; a run goes on with the same ones alone.
        config: written into the checkpoint.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints within an epoch; 0 leaves it to the epoch's end.

    Raises:
        UserError: the checkpoint cannot be read, belongs to another model or to other images, or is not the same for
            all processes.
    """

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision,
                 loader: DataLoader, sampler: Any, ids: Sequence[str], config: Mapping[str, Any], log_every: int,
                 checkpoint_every: int) -> None:
        self.path, self.model, self.optimizer, self.precision = path, model, optimizer, precision
        self.loader, self.sampler, self.ids, self.config = loader, sampler, list(ids), config
        self.log_every, self.checkpoint_every, self.writer = log_every, checkpoint_every, MetricsWriter(path.parent)
        state = resume_training(path, model, optimizer, ids)
        if state:
            precision.scaler.load_state_dict(state.get('scaler', {}))
            log.info('Resuming after epoch %d and %d steps from %s', state['epoch'], state['step'], path)
        self.epoch, self.step, self.extra = state.get('epoch', 0), state.get('step', 0), state.get('extra', {})
        found = distributed.gather_objects((self.epoch, self.step))
        if len(set(found)) > 1:
            raise UserError(f'the processes found different checkpoints at {path} (epoch and step '
                            f'{name_some(sorted(set(found)))}); output_dir must be one folder that all machines share.')
        # since the last line of the log; of the epoch up to there
        self.recent, self.whole = Mean(*state.get('recent', ())), Mean(*state.get('whole', ()))
        self.share = 1.0  # of the epoch's steps, what this process did itself, and not an earlier start of the run
        self._summary = ''  # of the last epoch
        self._unchecked: list[tuple[int, Sequence[str], Tensor]] = []  # step, images, loss
        self._signal: int | None = None

    def __enter__(self) -> 'Trainer':
        self._noting = handled(self._note, *SIGNALS)
        self._noting.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        lost = lost_worker(error)
        self._noting.__exit__(kind, error, traceback)
        self.writer.close()
        if lost:
            state = f' to resume from {self.path}' if self.path.is_file() else '; there is no checkpoint yet'
            raise UserError(f'{LOST_WORKER}, and rerun the same command{state}.') from error
        if kind is None and self._asked_to_stop():
            stop(self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _asked_to_stop(self) -> bool:
        """Whether a signal came to any process; every process asks at the same step."""
        return distributed.any_process(self._signal is not None)

    def epochs(self, epochs: int, scheduler: str, lr: float, **schedule: Any) -> Iterator[int]:
        """The epochs that are left, counted from 0, each with its rate, see ``learning_rate``, and summed up in a line.

        In each the caller trains (``train_one_epoch``), evaluates (within ``at_once``) and calls ``finish_epoch``.
        """
        for epoch in range(self.epoch, epochs):
            begun, rate = time.perf_counter(), learning_rate(scheduler, lr, epoch, epochs, **schedule)
            set_learning_rate(self.optimizer, rate)
            self.writer.add_scalars({'train/lr': rate}, epoch + 1)
            yield epoch
            log_epoch(epoch, epochs, f'{self._summary}, lr {rate:.5f}', time.perf_counter() - begun, self.share)

    def train_one_epoch(self, compute_losses: Callable[[dict[str, Any]], dict[str, Tensor]],
                        statistics: Callable[[], dict[str, float]] = dict) -> dict[str, float]:
        """One pass over the loader, or what is left of it.

        Args:
            compute_losses: maps a batch to 'loss', with its gradient, and what else to log.
            statistics: what else the writer gets at each line of the log, by its name there.

        Returns:
            the means of the epoch's steps.

        Raises:
            UserError: the loss is not finite, or the checkpoint cannot be written.
            StoppedError: a signal came, and the run is saved.
        """
        batch = self.loader.batch_size or 1
        self.sampler.epoch, self.sampler.start = self.epoch, self.step * batch * distributed.world_size()
        steps = self.step + len(self.loader)
        self.share = len(self.loader) / steps
        with starting_workers():
            batches = iter(self.loader)
        with tf32(self.precision.tf32):
            for images in progress(batches, f'epoch {self.epoch + 1}', steps, self.step):
                losses = compute_losses(images)
                self.precision.step(losses['loss'], self.optimizer)
                self.step += 1
                self._unchecked.append((self.step, images['id'], losses['loss'].detach()))
                self.recent.update(**losses)
                if self.step % self.log_every == 0 or self.step == steps:
                    self._log(steps, statistics)
                asked = self._asked_to_stop()
                if asked or (self.checkpoint_every and self.step % self.checkpoint_every == 0 and self.step < steps):
                    self._check()
                    self.save()
                if asked:
                    stop(self._signal)
        return self.whole.read()

    def _log(self, steps: int, statistics: Callable[[], dict[str, float]]) -> None:
        self._check()
        means = self.recent.read()
        if distributed.is_main():
            self.writer.add_scalars({**{f'train/{name}': value for name, value in means.items()}, **statistics()},
                                    self.epoch + 1, self.epoch * steps + self.step)
        log.info('epoch %d step %d/%d  %s', self.epoch + 1, self.step, steps,
                 '  '.join(f'{name} {value:.4f}' for name, value in means.items()))
        self.whole.add(self.recent)
        self.recent = Mean()

    def _check(self) -> None:
        """Read the losses since the last check, the one time that the device is waited for.

        Raises:
            UserError: one is not finite; the same sentence in all processes.
        """
        values = torch.stack([loss for *_, loss in self._unchecked]).tolist() if self._unchecked else []
        wrong = [(step, str(value), list(ids)) for (step, ids, _), value in zip(self._unchecked, values, strict=True)
                 if not math.isfinite(value)]
        self._unchecked = []
        found = [entry for of_process in distributed.gather_objects(wrong[:1]) for entry in of_process]
        if found:
            step, value, ids = min(found)
            good = f'{self.path} is the last good checkpoint' if self.path.is_file() else 'there is no checkpoint yet'
            raise UserError(f'the loss is {value} at epoch {self.epoch + 1}, step {step}, images '
                            f'{name_some(ids, 16)}; {good}: look at these images, or lower '
                            'optimizer_kwargs.lr in another output_dir.')

    def finish_epoch(self, shown: str = '', **extra: Any) -> None:
        """Count the epoch as done, ``shown`` in its summary, and save; ``extra`` replaces entries of ``self.extra``."""
        self._summary = f'loss {self.whole.read().get("loss", math.nan):.4f}' + (shown and f', {shown}')
        self.extra.update(extra)
        self.epoch, self.step, self.whole = self.epoch + 1, 0, Mean()
        self.save()

    def save(self) -> None:
        """Write the checkpoint, and the metrics up to it."""
        self.writer.flush()
        save_training(self.path, self.model, self.optimizer, self.config, ids=self.ids, epoch=self.epoch,
                      step=self.step, recent=(self.recent.sums, self.recent.count),
                      whole=(self.whole.sums, self.whole.count), extra=self.extra,
                      scaler=self.precision.scaler.state_dict())
        distributed.barrier()  # nobody leaves while it is being written

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Save, then a block that a signal ends at once: an evaluation, which can be done again."""
        self.save()
        with handled(stop_at_once, *SIGNALS):
            if self._signal is not None:
                stop(self._signal)
            yield
