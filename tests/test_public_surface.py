"""What users and their scripts rely on, as tests/public_surface.json has it.

That is: flags with their defaults, config keys with types and defaults, files and the names in them, exit codes,
printed lines.

Everything is found out by running the scripts, none of our modules is imported. Entries may be added, none may go or
change. After an addition this command writes the file anew; look through its diff, where no line should be red:

    python tests/test_public_surface.py
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PINNED = ROOT / 'tests' / 'public_surface.json'
SCRIPTS = ('pretrain/main.py', 'segmentation/linear_finetune.py', 'segmentation/eval.py', 'segmentation/kmeans.py',
           'segmentation/retrieval.py', 'segmentation/score_predictions.py', 'segmentation/predict.py',
           'segmentation/visualize.py', 'segmentation/table.py', 'saliency/predict.py', 'saliency/train.py')
CONFIGS = {'pretrain/main.py': 'demo/pretrain', 'segmentation/linear_finetune.py': 'demo/linear_finetune',
           'segmentation/eval.py': 'demo/linear_finetune', 'segmentation/score_predictions.py': 'demo/linear_finetune',
           'segmentation/kmeans.py': 'demo/kmeans', 'segmentation/retrieval.py': 'demo/retrieval',
           'saliency/train.py': 'saliency/basnet'}
EVALUATE = ('val_size=32', 'num_visualizations=2')
TRAIN = ('epochs=1', 'train_batch_size=4', 'log_every=1')
LINEAR = (*TRAIN, *EVALUATE, 'train_size=32')
OPAQUE = ('config', 'optimizer')  # entries of checkpoints whose names are pinned above, or are PyTorch's


def start(script: str, *words: object) -> subprocess.Popen:
    environment = os.environ | {'CUDA_VISIBLE_DEVICES': '', 'COLUMNS': '200', 'OMP_NUM_THREADS': '1',
                                'MPLBACKEND': 'module://of_a_notebook'}  # which is not installed here
    return subprocess.Popen([sys.executable, script, *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment)


def run(script: str, *words: object, expected: int = 0) -> str:
    """What a script that ends with the expected exit code prints; of one that ends with 2 the sentence."""
    process = start(script, *words)
    out, err = process.communicate(timeout=500)
    assert process.returncode == expected, f'{script} ended with {process.returncode}: {err}'
    return err if expected else out


class Runs:
    """Scripts run on a small drawn data set, with their outputs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / 'data'

    def words(self, script: str, output: str, *overrides: str) -> list[str]:
        return ['--config_env', 'configs/demo/env.yml', '--config_exp', f'configs/{CONFIGS[script]}.yml', '--set',
                f'root_dir={self.folder}', f'db_root={self.data}', f'output_dir={output}', 'num_workers=0',
                'device=cpu', *overrides]

    def __call__(self, script: str, output: str, *overrides: str, flags: tuple = ()) -> str:
        return run(script, *self.words(script, output, *overrides), *flags)

    def stopped(self, script: str, output: str, number: signal.Signals, *overrides: str) -> int:
        """The exit code of a run that gets a signal after its first checkpoint."""
        process = start(script, *self.words(script, output, 'checkpoint_every=1', *overrides))
        checkpoint, limit = self.folder / output / 'checkpoint.pth.tar', time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=300)
        return process.returncode


def flags_of(text: str) -> dict[str, str | None]:
    """{flag: default, null if the help names none} of a --help; a default in words is not taken."""
    options = text.split('\noptions:\n')[1].split('\n\n')[0]
    found = {}
    for entry in re.split(r'\n(?=  -)', '\n' + options)[1:]:
        default = re.search(r'\(default: ([^ )]+)\)', ' '.join(entry.split()))
        for name in re.findall(r'(?:^|, )(--?\w[\w-]*)', entry.split('\n')[0].strip()):
            found[name] = default and default.group(1)
    return found


def config_keys_of(text: str) -> dict[str, str]:
    """{key: 'type = default'} of a --help."""
    lines = text.split('\nkeys of ', 1)[-1]
    return dict(re.findall(r'^  ([\w.]+): (.+? = (?:"[^"]*"|\[[^\]]*\]|\(must be given\)|\S+))', lines, re.MULTILINE))


def names(value: Any) -> Any:
    """The names in a checkpoint: of tensors a list, of anything else {name: type}."""
    if not isinstance(value, dict):
        return type(value).__name__
    if value and all(isinstance(entry, torch.Tensor) for entry in value.values()):
        return list(value)
    return {name: names(entry) if name not in OPAQUE else type(entry).__name__ for name, entry in value.items()}


def kinds(value: Any, classes: list[str]) -> Any:
    """A JSON value with types in place of values; one entry for those named by classes or numbers, or of a list."""
    if isinstance(value, dict):
        general = {'<class>' if name in classes else '<number>' if name.isdecimal() else name: entry
                   for name, entry in value.items()}
        return {name: kinds(entry, classes) for name, entry in general.items()}
    if isinstance(value, list):
        return [kinds(entry, classes) for entry in value[:1]]
    return {bool: 'bool', str: 'text', type(None): 'null'}.get(type(value), 'number')


def printed(text: str) -> list[str]:
    """The different result lines, without their values."""
    lines = re.findall(r'^((?:mIoU|IoU class .+) is) -?\d+\.\d\d$', text, re.MULTILINE)
    return list(dict.fromkeys(f'{line} 0.00' for line in lines))


def commands(folder: Path) -> dict[str, Any]:
    """What the commands print and leave in the folder, and how they end."""
    go = Runs(folder)
    run('experiments/shapes.py', '--output', go.data / 'Shapes', '--train', 12, '--val', 6, '--size', 64)
    images = go.data / 'Shapes' / 'images'
    out = {'pretrain': go('pretrain/main.py', 'pretrain', *TRAIN, 'augmentation_kwargs.size=32')}
    given = (*EVALUATE, 'saliency=supervised_model')
    with ThreadPoolExecutor(2) as two:
        codes = {name: two.submit(go.stopped, script, name, number, 'epochs=500', *more) for name, script, number, more
                 in (('SIGTERM', 'pretrain/main.py', signal.SIGTERM, ('augmentation_kwargs.size=32',)),
                     ('SIGINT', 'segmentation/linear_finetune.py', signal.SIGINT, LINEAR[1:]))}
        linear = two.submit(go, 'segmentation/linear_finetune.py', 'linear_finetune', *LINEAR)
        kmeans = two.submit(go, 'segmentation/kmeans.py', 'kmeans', *given, 'num_clusters=3', 'num_seeds=2',
                            'overclustering=[3, 4]')
        retrieval = two.submit(go, 'segmentation/retrieval.py', 'retrieval', *given, 'ignore_classes=[star, ball]')
        masks = two.submit(run, 'saliency/predict.py', '--images', images, '--output', folder / 'saliency_predict',
                           '--method', 'unsupervised', '--workers', 0)
        wrong = {name: two.submit(run, script, *words, expected=2) for name, script, *words in (
            ('unknown flag', 'segmentation/predict.py', '--nothing'),
            ('unknown key', 'pretrain/main.py', *go.words('pretrain/main.py', 'wrong', 'epoch=1')),
            ('missing config', 'segmentation/retrieval.py', '--config_exp', 'nothing.yml'))}
        out |= {'linear_finetune': linear.result(), 'kmeans': kmeans.result(), 'retrieval': retrieval.result()}
        scored = two.submit(go, 'segmentation/score_predictions.py', 'offline', *LINEAR,
                            flags=('--predictions', folder / 'linear_finetune' / 'predictions'))
        evaluated = two.submit(go, 'segmentation/eval.py', 'eval', *LINEAR, flags=(
            '--crf-postprocess', '--state-dict', folder / 'linear_finetune' / 'best_model.pth.tar'))
        predicted = two.submit(run, 'segmentation/predict.py', '--images', images, '--output', folder / 'predict',
                               '--model', folder / 'kmeans' / 'clusters.pth.tar', '--workers', 1, '--device', 'cpu')
        masks.result()
        plain = folder / 'plain'
        plain.mkdir()
        (plain / 'images').symlink_to(images)
        (plain / 'saliency_masks').symlink_to(folder / 'saliency_predict')
        unlabelled = two.submit(go, 'segmentation/kmeans.py', 'clusters', *EVALUATE, f'db_root={plain}',
                                'val_db_name=.', 'val_split=all', 'saliency=masks', 'overclustering=[2, 3]')
        out |= {'offline': scored.result(), 'eval': evaluated.result()}
        predicted.result(), unlabelled.result()
    for sentence in (process.result() for process in wrong.values()):
        assert re.fullmatch(r'error: .+\n', sentence)
    folders = sorted({*out, 'clusters', 'predict', 'saliency_predict'})
    classes = json.loads((folder / 'linear_finetune' / 'results.json').read_text())['linear']['IoU'].keys()
    return {
        'files': {name: sorted(path.name for path in (folder / name).iterdir()
                               if path.name[0] != '.' and path.stem[:5] not in ('train', 'val_0')) for name in folders},
        'results.json': {name: kinds(json.loads(path.read_text()), list(classes)) for name in folders
                         for path in (folder / name).glob('results.json')},
        'report.json': {name: kinds(json.loads(path.read_text()), list(classes)) | {'left_out': {}} for name in folders
                        for path in (folder / name).glob('report.json')},
        'checkpoints': {f'{name}/{path.name}': names(torch.load(path, weights_only=True)) for name in folders
                        for path in sorted((folder / name).glob('*.pth.tar'))},
        'arrays': {f'{name}/{path.name}': np.load(path).files for name in folders
                   for path in sorted((folder / name).glob('*.npz'))},
        'printed': {name: printed(text) for name, text in out.items()},
        'exit codes': {name: code.result() for name, code in codes.items()} | dict.fromkeys(wrong, 2) | {'complete': 0},
    }


def surface(folder: Path) -> dict[str, Any]:
    """All that is pinned, as it is now."""
    with ThreadPoolExecutor(2) as two:
        helps = dict(zip(SCRIPTS, two.map(lambda script: run(script, '--help'), SCRIPTS), strict=True))
    return {'flags': {script: flags_of(text) for script, text in helps.items()},
            'config keys': {script: config_keys_of(text) for script, text in helps.items() if script in CONFIGS},
            **commands(folder)}


def differences(pinned: Any, found: Any, place: str = '') -> list[str]:
    """What has gone or changed; more entries are none. Lists keep their order."""
    if type(pinned) is not type(found):
        return [f'{place}: {pinned} -> {found}']
    if isinstance(pinned, dict):
        return [f'{place}: {name} has gone' for name in pinned if name not in found] + [
            line for name in pinned if name in found
            for line in differences(pinned[name], found[name], f'{place} / {name}')]
    if isinstance(pinned, list) and all(isinstance(entry, str) for entry in pinned):
        gone = [f'{place}: {name} has gone' for name in pinned if name not in found]
        in_order = [name for name in found if name in pinned] == pinned
        return gone or ([] if in_order else [f'{place}: another order'])
    if isinstance(pinned, list):
        return [line for one, other in zip(pinned, found, strict=True)
                for line in differences(one, other, f'{place}[]')]
    return [] if pinned == found else [f'{place}: {pinned} -> {found}']


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> dict[str, Any]:
    pytest.importorskip('pydensecrf', reason='the CRF is optional')
    return json.loads(json.dumps(surface(tmp_path_factory.mktemp('surface'))))


@pytest.mark.parametrize('part', json.loads(PINNED.read_text()) if PINNED.is_file() else ['nothing'])
def test_nothing_has_gone_or_changed(found: dict[str, Any], part: str) -> None:
    pinned = json.loads(PINNED.read_text())[part]
    assert pinned
    assert differences(pinned, found.get(part), part) == []


@pytest.mark.parametrize(('now', 'said'), [
    ({'a': {'x': 1, 'y': 2}, 'b': ['p', 'new', 'q'], 'more': 1}, []),
    ({'a': {'y': 2}, 'b': ['p', 'q']}, [' / a: x has gone']),
    ({'a': {'x': 3}, 'b': ['p', 'q']}, [' / a / x: 1 -> 3']),
    ({'a': {'x': '1'}, 'b': ['p', 'q']}, [' / a / x: 1 -> 1']),
    ({'a': {'x': 1}, 'b': ['q', 'p']}, [' / b: another order']),
    ({'a': {'x': 1}, 'b': ['p']}, [' / b: q has gone'])])
def test_differences_are_seen(now: dict[str, Any], said: list[str]) -> None:
    assert differences({'a': {'x': 1}, 'b': ['p', 'q']}, now) == said


def test_help_is_read() -> None:
    text = ('usage: x\n\noptions:\n  -h, --help  show\n  --set KEY=VALUE [KEY=VALUE ...]\n                override\n'
            '  --masks MASKS, --labels MASKS\n                folder (default: off)\n  --n N         one\n'
            '                (default: one\n                a GPU)\n\nkeys of the config file:\n'
            '  a.lr: float = 0.1      rate = 3\n  b: list[int] = [1, 2]  some\n  c: str | None = "x y"\n'
            '  d: int = (must be given)  more\n')
    assert flags_of(text) == {'-h': None, '--help': None, '--set': None, '--masks': 'off', '--labels': 'off',
                              '--n': None}
    assert config_keys_of(text) == {'a.lr': 'float = 0.1', 'b': 'list[int] = [1, 2]', 'c': 'str | None = "x y"',
                                    'd': 'int = (must be given)'}


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as made:
        PINNED.write_text(json.dumps(surface(Path(made)), indent=1) + '\n')
