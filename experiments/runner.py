"""Runs of the scripts that make up an experiment: each in a folder of its own, and skipped once it is done."""
from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segmentation.metrics import standard_deviation
from utils.config.keys import schema_keys
from utils.config.paths import REPOSITORY
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval
from utils.report.results import read_results
from utils.run.errors import UserError, name_some
from utils.run.files import write_text
from utils.run.signals import SIGNALS, handled

SCRIPTS = {'pretrain': ('pretrain/main.py', Pretrain), 'linear': ('segmentation/linear_finetune.py', LinearFinetune),
           'kmeans': ('segmentation/kmeans.py', Kmeans), 'retrieval': ('segmentation/retrieval.py', Retrieval)}
FINISHED = 'finished.json'
OWN_KEYS = ('seed', 'output_dir', 'root_dir', 'db_root', 'features', 'saliency')  # what tells its runs apart


@dataclass(frozen=True)
class Run:
    """One start of a script.

    task: which one, a key of SCRIPTS.
    config: the file of the experiment, relative to the repository root.
    folder: where its results go, relative to the folder of the experiment.
    overrides, flags: 'key=value' and other arguments; they win over those of the command line.
    needs: the run whose network it reads.
    """
    task: str
    config: str
    folder: str
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    needs: Run | None = None


def add_experiment_arguments(parser: ArgumentParser) -> None:
    """Add --db-root, --output, --weights, --seeds, --set and --list to a script's arguments."""
    parser.add_argument('--db-root', type=Path, required=True, help='folder that holds VOCSegmentation/')
    parser.add_argument('--output', type=Path, required=True, help='folder of all runs, tables and plots')
    parser.add_argument('--weights', type=Path, help='ImageNet weights under the names of timm; default: timm fetches '
                                                     'them')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3],
                        help='one training of each kind for each; two processes can share them out in one --output: '
                             'the tables of all are those of a last call with all seeds')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone: '
                             f'{", ".join(SCRIPTS)}, e.g. pretrain.epochs=4 val_size=112')
    parser.add_argument('--list', action='store_true', help='print the commands that are left and run '
                        'none; the tables are of what is there')


def overrides_of(task: str, given: Sequence[str]) -> list[str]:
    """Those of the overrides '[task.]key=value' that the script of a task takes.

    Raises:
        UserError: no script has the key.
    """
    chosen = []
    for text in given:
        path = text.partition('=')[0]
        named, dot, rest = path.partition('.')
        tasks = [named] if dot and named in SCRIPTS else list(SCRIPTS)
        key = rest if tasks == [named] else path
        having = [name for name in tasks if any(known == key or known.startswith(f'{key}.') for known in
                                                schema_keys(SCRIPTS[name][1]))]
        if not having:
            raise UserError(f'--set {text}: no script of the experiment has the key {key}; '
                            'docs/configuration.md lists them.')
        if task in having:
            chosen.append(text.removeprefix(f'{named}.') if tasks == [named] else text)
    return chosen


def call(command: Sequence[str]) -> int:
    """Run a command in the repository and wait for it, also when a signal stops it: a training saves its step first.

    Returns:
        its exit code.
    """
    with subprocess.Popen(command, cwd=REPOSITORY, process_group=0) as child, \
            handled(lambda number, _: child.send_signal(number), *SIGNALS):  # in its own group: it gets each once
        return child.wait()


class Experiment:
    """Runs what is not finished, and reads the figures of what is.

    Args:
        args: with what ``add_experiment_arguments`` added.
    """

    def __init__(self, args: Namespace) -> None:
        self.root, self.db_root = args.output.resolve(), args.db_root.resolve()
        self.overrides, self.list_only = args.overrides, args.list
        for task in SCRIPTS:
            overrides_of(task, self.overrides)  # a wrong key is told before anything runs
        for text in self.overrides:
            if (key := text.partition('=')[0].rpartition('.')[2]) in OWN_KEYS:
                raise UserError(f'--set {text}: the experiment sets {key} itself; see --db-root, --output, --seeds and '
                                'the rows of its table.')

    def arguments(self, run: Run) -> list[str]:
        """The arguments of the run's script."""
        return ['--config_env', 'configs/env.yml', '--config_exp', run.config, *run.flags, '--set',
                *overrides_of(run.task, self.overrides), f'db_root={self.db_root}', f'root_dir={self.root}',
                f'output_dir={run.folder}', *run.overrides]

    def record(self, run: Run) -> list[str]:
        """What tells a run from those with other settings: its arguments, and those of the run that it needs."""
        return [*self.arguments(run), *(self.record(run.needs) if run.needs else ())]

    def finished(self, run: Run) -> bool:
        """Whether the run has ended well, with the same settings."""
        path = self.root / run.folder / FINISHED
        try:
            return path.is_file() and json.loads(path.read_text()) == self.record(run)
        except ValueError as error:
            raise UserError(f'{path} is damaged; delete it to do this run again.') from error

    def run(self, runs: Sequence[Run]) -> None:
        """Start each run that is not finished, one after the other.

        Raises:
            UserError: a folder holds a run with other settings.
            SystemExit: one failed or was stopped, with its exit code; started again, the experiment goes on there.
        """
        left = [run for run in dict.fromkeys(runs) if not self.finished(run)]
        print(f'{len(left)} of {len(set(runs))} runs are left to do')
        others = [run.folder for run in left if (self.root / run.folder / FINISHED).exists()]
        if others and not self.list_only:
            raise UserError(f'{self.root} holds runs with other settings ({name_some(others)}); '
                            'choose another --output, or delete these folders.')
        for number, run in enumerate(left, 1):
            command = [SCRIPTS[run.task][0], *self.arguments(run)]
            print(f'\n== {number} of {len(left)}: python {" ".join(command)}', flush=True)
            if self.list_only:
                continue
            code = call([sys.executable, *command])
            if code:
                raise SystemExit(code if code > 0 else 1)
            write_text(self.root / run.folder / FINISHED, json.dumps(self.record(run)))

    def figure(self, run: Run, task: str) -> dict[str, Any] | None:
        """The figures of a finished run, in percent: of K-means the mean of its runs.

        Args:
            task: the entry in results.json; 'kmeans 5' is the point of 5 clusters of the over-clustering curve.

        Returns:
            an entry with 'mIoU' and 'IoU'; None if the run is not finished.
        """
        path = self.root / run.folder / 'results.json'
        if not self.finished(run) or not path.is_file():
            return None
        results = read_results(path.parent)
        name, _, clusters = task.partition(' ')
        if clusters:
            return next((point for point in results['overclustering'] if point['num_clusters'] == int(clusters)), None)
        return results.get(name)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None of one value)."""
    return float(np.mean(values)), standard_deviation(values)


def shown(values: Sequence[float]) -> str:
    """'50.3 ± 1.4 (n = 3)', '50.3' of a single value, or '-' of none."""
    if not values:
        return '-'
    mean, deviation = mean_and_deviation(values)
    return f'{mean:.1f}' if deviation is None else f'{mean:.1f} ± {deviation:.1f} (n = {len(values)})'


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ['| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + ' |'
            for line in lines]
    rows.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(rows) + '\n'
