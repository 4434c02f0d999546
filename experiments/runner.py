"""A chain of scripts with their settings: finished steps are skipped, and steps that need each other wait."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from models.crf import require_crf
from segmentation.metrics import standard_deviation
from utils.config.keys import schema_keys
from utils.config.paths import REPOSITORY, find_file
from utils.config.reader import Reader
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, PseudoLabels, Retrieval, Run
from utils.report.folder import fingerprint
from utils.report.results import read_results, with_spread
from utils.run.errors import EXIT_STOPPED, UserError, name_some
from utils.run.files import write_text
from utils.run.parallel import available_cores
from utils.run.script import SIGNALS, handled

SCRIPTS: dict[str, tuple[str, type[Run]]] = {
    'pretrain': ('pretrain/main.py', Pretrain), 'linear': ('segmentation/linear_finetune.py', LinearFinetune),
    'kmeans': ('segmentation/kmeans.py', Kmeans), 'retrieval': ('segmentation/retrieval.py', Retrieval),
    'pseudo_labels': ('segmentation/pseudo_labels.py', PseudoLabels)}
FINISHED, OUTPUT = 'finished.json', 'output.txt'  # in the folder of a step


class Step(NamedTuple):
    """A call of a script, whose results go to ``folder`` below that of the chain; it reads those of ``needs``."""
    folder: str
    command: tuple[str, ...]
    needs: tuple['Step', ...] = ()
    config: str = ''  # what its config file says

    def settings(self, config: bool = True) -> list[str]:
        """What tells it from a step with other settings: arguments, files in them, config, the steps that it needs."""
        paths = [Path(word.partition('=')[2] or word) for word in self.command[1:]]
        files = [_content(path, path.stat().st_mtime_ns) for path in paths if path.is_absolute() and path.is_file()]
        return [*self.command[1:], *files, *[self.config] * config,
                *(word for step in self.needs for word in step.settings(config))]

    def __str__(self) -> str:
        return f'python {" ".join(self.command)}'


@cache
def _content(path: Path, changed: int) -> str:
    """Of a file as of the time when it was changed."""
    return str(fingerprint(path))


def overrides_of(task: str, given: Sequence[str]) -> list[str]:
    """Those of the overrides '[task.]key=value' that a task's script takes. Raises UserError for a key of no script."""
    chosen = []
    for text in given:
        named, _, rest = text.partition('.')
        tasks, override = ([named], rest) if named in SCRIPTS else (list(SCRIPTS), text)
        key = override.partition('=')[0]
        having = [name for name in tasks if any(f'{known}.'.startswith(f'{key}.') for known in
                                                schema_keys(SCRIPTS[name][1]))]
        if not having:
            raise UserError(f'--set {text}: no script of the experiment has the key {key}; '
                            'docs/configuration.md lists them.')
        if task in having:
            chosen.append(override)
    return chosen


def mean_with_spread(values: Sequence[float]) -> str:
    """'45.68 ± 1.50 (n = 5)' of a value a seed; without ± if there is one."""
    return with_spread(sum(values) / len(values), standard_deviation(values), len(values))


def crf_flags() -> list[str]:
    """The CRF, if its library is there."""
    try:
        require_crf()
    except UserError as error:
        print(f'Without the CRF: {error}')
        return []
    return ['--crf-postprocess']


def start(step: Step, root: Path, jobs: int) -> subprocess.Popen:
    """Start a step; one of several at a time writes to output.txt in its folder and takes its share of the cores."""
    path, environment = root / step.folder / OUTPUT, dict(os.environ)
    if jobs > 1:
        path.parent.mkdir(parents=True, exist_ok=True)
        environment |= {'OMP_NUM_THREADS': str(-(-available_cores() // jobs)), 'TQDM_DISABLE': '1'}
    with path.open('ab') if jobs > 1 else nullcontext() as output:
        return subprocess.Popen([sys.executable, *step.command], cwd=REPOSITORY, env=environment, stdout=output,
                                stderr=output, start_new_session=True)  # a signal comes once: from the chain


class Chain:
    """Steps whose results stand below one folder; ``given`` are overrides '[task.]key=value' of all of them."""

    def __init__(self, root: Path, db_root: Path, given: Sequence[str] = (), env: str = 'configs/env.yml') -> None:
        self.root, self.db_root, self.given, self.env = root.resolve(), db_root.resolve(), given, env
        overrides_of('pretrain', given)

    def step(self, task: str, config: str, folder: str, overrides: Sequence[str] = (), needs: tuple[Step, ...] = (),
             flags: Sequence[str] = (), script: str = '') -> Step:
        """The script of a task, or another that takes the same config."""
        reader = Reader(SCRIPTS[task][1])
        reader.read_file(find_file(config))
        return Step(folder, (script or SCRIPTS[task][0], '--config_env', self.env, '--config_exp', config, *flags,
                             '--set', *overrides_of(task, self.given), f'db_root={self.db_root}',
                             f'root_dir={self.root}', f'output_dir={folder}', *overrides), needs,
                    json.dumps(reader.values, sort_keys=True, default=str))

    def finished(self, step: Step) -> bool:
        """Whether it has ended well, with the same settings. Raises UserError if the note on that is damaged."""
        path = self.root / step.folder / FINISHED
        try:
            # an earlier version took no note of the config
            return path.is_file() and json.loads(path.read_text()) in (step.settings(), step.settings(config=False))
        except ValueError as error:
            raise UserError(f'{path} is damaged; delete it to do this run again.') from error

    def results(self, step: Step) -> dict[str, dict[str, Any]]:
        """{task: entry} of a finished step, else none; a point of the over-clustering curve is 'kmeans 5'."""
        results = read_results(self.root / step.folder) if self.finished(step) else {}
        curve = results.pop('overclustering', [])
        own = results.get('kmeans', {}).get('num_clusters')
        return results | {f'kmeans {count}': point for point in curve if (count := point['num_clusters']) != own}

    def run(self, steps: Sequence[Step], jobs: int = 1, list_only: bool = False) -> None:
        """Run each step that is not finished, ``jobs`` at a time; a signal goes to all: a training saves its step.

        Raises UserError if a folder holds a run with other settings, and SystemExit when a step failed or a signal
        came, and all have ended. Rerun to resume.
        """
        left = [step for step in dict.fromkeys(steps) if not self.finished(step)]
        total = len(left)
        print(f'{total} of {len(set(steps))} runs are left to do')
        if list_only:
            print(*left, sep='\n')
            return
        others = [step.folder for step in left if (self.root / step.folder / FINISHED).exists()]
        if others:
            raise UserError(f'{self.root} holds runs with other settings ({name_some(others)}); '
                            'choose another --output, or delete these folders.')
        running: dict[Step, subprocess.Popen] = {}
        code, signals = 0, []
        with handled(lambda number, _: signals.append(number), *SIGNALS):
            while running or (left and not code):
                ready = [step for step in left if not code and not {*left, *running}.intersection(step.needs)]
                for step in ready[:jobs - len(running)]:
                    left.remove(step)
                    print(f'== {total - len(left)} of {total}: {step.folder if jobs > 1 else step}', flush=True)
                    running[step] = start(step, self.root, jobs)
                while signals:
                    code, number = code or EXIT_STOPPED, signals.pop(0)
                    for child in running.values():
                        child.send_signal(number)
                for step, status in [(step, child.poll()) for step, child in running.items()]:
                    if status is not None:
                        del running[step]
                    if status == 0:
                        write_text(self.root / step.folder / FINISHED, json.dumps(step.settings()))
                    elif status:
                        code = code or max(status, 1)  # below 0: a signal ended it
                        if jobs > 1:
                            print(f'{step.folder} ended with {status}: {self.root / step.folder / OUTPUT}')
                if running:
                    time.sleep(0.05)
        if code:
            raise SystemExit(code)
