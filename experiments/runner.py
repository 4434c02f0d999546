"""A chain of scripts with their settings: finished steps are skipped, and steps that need each other wait."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config.keys import schema_keys
from utils.config.paths import REPOSITORY
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval, Run
from utils.report.results import read_results
from utils.run.errors import UserError, name_some
from utils.run.files import write_text
from utils.run.parallel import available_cores
from utils.run.signals import SIGNALS, handled

SCRIPTS: dict[str, tuple[str, type[Run]]] = {
    'pretrain': ('pretrain/main.py', Pretrain), 'linear': ('segmentation/linear_finetune.py', LinearFinetune),
    'kmeans': ('segmentation/kmeans.py', Kmeans), 'retrieval': ('segmentation/retrieval.py', Retrieval)}
FINISHED, OUTPUT = 'finished.json', 'output.txt'  # in the folder of a step


@dataclass(frozen=True)
class Step:
    """One call of a script: its path and arguments.

    folder: where its results go, below that of the chain.
    needs: steps whose results it reads.
    """
    folder: str
    command: tuple[str, ...]
    needs: tuple['Step', ...] = ()

    def settings(self) -> list[str]:
        """What tells the step from one with other settings: its arguments, and those of the steps that it needs."""
        return [*self.command[1:], *(word for step in self.needs for word in step.settings())]


def overrides_of(task: str, given: Sequence[str]) -> list[str]:
    """Those of the overrides '[task.]key=value' that the script of a task takes.

    Raises:
        UserError: no script has the key.
    """
    chosen = []
    for text in given:
        named, _, rest = text.partition('.')
        tasks, override = ([named], rest) if named in SCRIPTS else (list(SCRIPTS), text)
        key = override.partition('=')[0]
        having = [name for name in tasks if any(known == key or known.startswith(f'{key}.') for known in
                                                schema_keys(SCRIPTS[name][1]))]
        if not having:
            raise UserError(f'--set {text}: no script of the experiment has the key {key}; '
                            'docs/configuration.md lists them.')
        if task in having:
            chosen.append(override)
    return chosen


def start(step: Step, root: Path, jobs: int) -> subprocess.Popen:
    """Start a step; one of several at a time writes to output.txt in its folder and takes its share of the cores."""
    command = [sys.executable, *step.command]
    if jobs == 1:
        return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)  # a signal comes once: from here
    environment = {**os.environ, 'OMP_NUM_THREADS': str(-(-available_cores() // jobs)), 'TQDM_DISABLE': '1'}
    path = root / step.folder / OUTPUT
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('ab') as file:
        return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, env=environment, stdout=file,
                                stderr=subprocess.STDOUT)


class Chain:
    """Steps whose results stand below one folder.

    Args:
        given: overrides '[task.]key=value' of all steps.

    Raises:
        UserError: no script has a key.
    """

    def __init__(self, root: Path, db_root: Path, given: Sequence[str] = (), env: str = 'configs/env.yml') -> None:
        self.root, self.db_root, self.given, self.env = root.resolve(), db_root.resolve(), given, env
        overrides_of('pretrain', given)

    def step(self, task: str, config: str, folder: str, overrides: Sequence[str] = (), needs: tuple[Step, ...] = (),
             flags: Sequence[str] = (), script: str = '') -> Step:
        """The script of a task, or another that takes the same config."""
        return Step(folder, (script or SCRIPTS[task][0], '--config_env', self.env, '--config_exp', config, *flags,
                             '--set', *overrides_of(task, self.given), f'db_root={self.db_root}',
                             f'root_dir={self.root}', f'output_dir={folder}', *overrides), needs)

    def finished(self, step: Step) -> bool:
        """Whether it has ended well, with the same settings. Raises UserError if the note on that is damaged."""
        path = self.root / step.folder / FINISHED
        try:
            return path.is_file() and json.loads(path.read_text()) == step.settings()
        except ValueError as error:
            raise UserError(f'{path} is damaged; delete it to do this run again.') from error

    def result(self, step: Step, task: str) -> dict[str, Any] | None:
        """An entry of a step's results.json, in percent; None if the step is not finished.

        Args:
            task: name of the entry; 'kmeans 5' is the point of 5 clusters of the over-clustering curve.
        """
        if not self.finished(step):
            return None
        results, (name, _, clusters) = read_results(self.root / step.folder), task.partition(' ')
        if not clusters:
            return results.get(name)
        return next((point for point in results['overclustering'] if point['num_clusters'] == int(clusters)), None)

    def run(self, steps: Sequence[Step], jobs: int = 1, list_only: bool = False) -> None:
        """Run each step that is not finished, ``jobs`` at a time; a signal goes to all: a training saves its step.

        Raises:
            UserError: a folder holds a run with other settings.
            SystemExit: a step failed or was stopped, with its exit code; the others end first. Rerun to resume.
        """
        left = [step for step in dict.fromkeys(steps) if not self.finished(step)]
        total = len(left)
        print(f'{total} of {len(set(steps))} runs are left to do')
        others = [step.folder for step in left if (self.root / step.folder / FINISHED).exists()]
        if others and not list_only:
            raise UserError(f'{self.root} holds runs with other settings ({name_some(others)}); '
                            'choose another --output, or delete these folders.')
        if list_only:
            print(*(f'python {" ".join(step.command)}' for step in left), sep='\n')
            return
        running: dict[Step, subprocess.Popen] = {}
        code, signals = 0, []

        def forward(number: int, _: Any) -> None:
            signals.append(number)
            for child in running.values():
                child.send_signal(number)

        with handled(forward, *SIGNALS):
            while running or (left and not code and not signals):
                ready = [step for step in left if not any(need in left or need in running for need in step.needs)]
                for step in ready[:jobs - len(running)] if not code and not signals else []:
                    left.remove(step)
                    shown = step.folder if jobs > 1 else f'python {" ".join(step.command)}'
                    print(f'== {total - len(left)} of {total}: {shown}', flush=True)
                    running[step] = start(step, self.root, jobs)
                    if signals:  # it came while the step started
                        running[step].send_signal(signals[-1])
                statuses = {step: child.poll() for step, child in running.items()}
                for step, status in statuses.items():
                    if status is None:
                        continue
                    del running[step]
                    if status == 0:
                        write_text(self.root / step.folder / FINISHED, json.dumps(step.settings()))
                        continue
                    code = code or (status if status > 0 else 1)
                    if jobs > 1:
                        print(f'{step.folder} ended with {status}: {self.root / step.folder / OUTPUT}')
                if None in statuses.values():
                    time.sleep(0.05)
        if code or left:
            raise SystemExit(code or 75)
