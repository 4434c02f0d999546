"""The experiments on the animals of VOC: what they run, when they do not, and what the tables say. No training."""
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import ablations, voc_animals
from experiments import runner as experiment
from experiments.runner import overrides_of
from utils.config.load import load_config, save_config
from utils.config.paths import REPOSITORY
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval
from utils.report.pictures import line_panels
from utils.run.errors import UserError

SCHEMAS = {'main': Pretrain, 'linear_finetune': LinearFinetune, 'kmeans': Kmeans, 'retrieval': Retrieval}


class Machine:
    """In place of the scripts: checks and saves the config, and writes figures that depend on it alone."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict]] = []
        self.fails_at = -1

    def __call__(self, step: experiment.Step, root: Path, jobs: int) -> SimpleNamespace:
        code = self.run(Path(step.command[0]).stem, step.command[1:])
        return SimpleNamespace(poll=lambda: code)

    def run(self, name: str, arguments: tuple[str, ...]) -> int:
        config = load_config(arguments[1], arguments[3], SCHEMAS[name], arguments[arguments.index('--set') + 1:])
        if len(self.started) == self.fails_at:
            return 75
        self.started.append((name, config))
        trained = 'initial' not in config.pretraining
        figure = 10.0 + 5 * trained + 2 * (config.get('features') == 'backbone') + config.seed % 7

        def entry(value: float) -> dict:
            return {'mIoU': value, 'IoU': {'background': value + 30, 'cat': value - 30}}

        several = {'num_clusters': 20, 'num_runs': 2, 'std': 1.4, 'NMI': 50.0, **entry(figure),
                   'runs': [entry(figure - 1), entry(figure + 1)]}
        folder = save_config(config, config.output_dir).parent
        if name != 'main':
            (folder / 'results.json').write_text(json.dumps({
                'kmeans': {'kmeans': several, 'overclustering': [{**several, 'num_clusters': 5}]},
                'retrieval': {'retrieval': entry(figure)},
                'linear_finetune': {'linear': entry(figure), 'linear_crf': entry(figure + 1)}}[name]))
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(experiment, 'start', found)
    return found


def arguments(folder: Path, *more: str) -> list[str]:
    weights = folder / 'w.pth'
    weights.touch()
    return ['--db-root', str(folder / 'db'), '--output', str(folder / 'out'), '--weights', str(weights), *more]


def cells(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in path.read_text().splitlines()]


def test_baselines_then_pretraining_then_protocols(machine: Machine, tmp_path: Path) -> None:
    voc_animals.main(arguments(tmp_path, '--seeds', '1', '2', '--masks', 'supervised', '--start', 'imagenet',
                               '--set', 'epochs=3', 'pretrain.epochs=4', 'val_size=64', 'device=cpu'))
    first = machine.started[:len(machine.started) // 2]
    assert [name for name, _ in first] == ['main', *['kmeans', 'retrieval', 'linear_finetune'] * 2, 'main', 'kmeans',
                                           'retrieval', 'linear_finetune', *['kmeans', 'retrieval'] * 2]
    assert [config.epochs for name, config in first if name == 'main'] == [0, 4]
    assert {config.epochs for name, config in first if name == 'linear_finetune'} == {3}
    assert {config.val_size for name, config in first if name != 'main'} == {64}
    assert {config.seed for name, config in machine.started if name == 'main'} == {1, 2}
    assert first[0][1].pretraining == str(tmp_path / 'w.pth')
    assert all(config.pretraining.endswith('checkpoint.pth.tar') for name, config in first if name != 'main')
    given = [(config.features, config.saliency) for name, config in first if name == 'kmeans']
    assert given == [('backbone', 'supervised_model'), ('embedding', 'supervised_model'),
                     ('embedding', 'supervised_model'), ('embedding', 'network'), ('backbone', 'supervised_model')]
    assert all(tuple(config.eval_classes) == ('cat', 'cow', 'dog', 'horse', 'sheep')
               for name, config in machine.started if name != 'main')

    table = {tuple(row[1:4]): row[5:] for row in cells(tmp_path / 'out' / 'table.md')}
    # seeds 100 and 200 give 2 and 4 more
    assert table['initial weights', 'backbone', 'given'] == [*['15.0 ± 1.4 (n = 2)'] * 4,
                                                             '16.0 ± 1.4 (n = 2)']
    assert table['supervised masks', 'embedding', 'predicted'][2:] == ['18.0 ± 1.4 (n = 2)', '-', '-']
    gains = {tuple(row[1:4]): row[5:] for row in cells(tmp_path / 'out' / 'gains.md')}
    assert gains['supervised masks', 'embedding', 'given'][2] == '+3.0 (+1.5 σ)'  # over the backbone's 15, not 13
    assert not any('initial' in name for name, *_ in gains)
    with (tmp_path / 'out' / 'figures.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['class'] == 'cat' and row['metric'] == 'Retrieval']
    assert float(rows[0]['mean']) == pytest.approx(15 - 30)
    assert 'Retrieval, animals' in (tmp_path / 'out' / 'classes.md').read_text()


def test_a_single_seed_gains_without_deviations(machine: Machine, tmp_path: Path) -> None:
    call = arguments(tmp_path, '--seeds', '1', '2', '--masks', 'supervised', '--start', 'imagenet')
    voc_animals.main(call)
    (tmp_path / 'out' / 'imagenet' / 'seed_2' / 'supervised' / 'retrieval_embedding_given' / 'finished.json').unlink()
    voc_animals.main([*call, '--list'])
    gains = {tuple(row[1:4]): row[5:] for row in cells(tmp_path / 'out' / 'gains.md')}
    found = gains['supervised masks', 'embedding', 'given']
    assert ['σ' in cell for cell in found] == [True, True, False, True, True]


def test_what_is_finished_is_not_run_again(machine: Machine, tmp_path: Path, capsys) -> None:
    small = arguments(tmp_path, '--seeds', '1', '--masks', 'supervised', '--start', 'random')
    machine.fails_at = 9
    with pytest.raises(SystemExit) as ended:
        voc_animals.main(small)
    assert ended.value.code == 75
    voc_animals.main([*small, '--list'])
    assert [row[1:4] for row in cells(tmp_path / 'out' / 'table.md')[2:]] == [
        ['initial weights', 'backbone', 'given'], ['initial weights', 'embedding', 'given'],
        ['supervised masks', 'embedding', 'given']]  # what has a figure
    machine.fails_at = -1
    voc_animals.main(small)
    folders = [config.output_dir for _, config in machine.started]
    assert len(folders) == len(set(folders)) == 15
    voc_animals.main(small)
    assert len(machine.started) == 15
    assert all(config.freeze_layers is False for name, config in machine.started if name == 'main')


@pytest.mark.parametrize(('script', 'name', 'more'), [
    (voc_animals, 'table.md', ('--masks', 'supervised')), (ablations, 'ablations.md', ('--groups', 'temperature T'))])
def test_finished_seeds_have_their_table(machine: Machine, tmp_path: Path, script, name: str, more: tuple) -> None:
    call = arguments(tmp_path, *more, '--start', 'imagenet', '--seeds', '1')
    script.main(call)
    machine.fails_at = 2 * len(machine.started) + 1  # at the second step of the last seed
    with pytest.raises(SystemExit):
        script.main([*call, '2', '3'])
    table = (tmp_path / 'out' / name).read_text()
    assert '(n = 2)' in table
    assert '(n = 3)' not in table


@pytest.mark.parametrize(('key', 'left', 'named'), [('linear.epochs=1', 3, 'linear_backbone_given'),
                                                    ('pretrain.epochs=1', 15, 'initial/pretrain')])
def test_runs_with_other_settings_are_kept_apart(machine: Machine, tmp_path: Path, capsys, key: str, left: int,
                                                 named: str) -> None:
    small = arguments(tmp_path, '--seeds', '1', '--masks', 'supervised', '--start', 'random')
    voc_animals.main(small)
    capsys.readouterr()
    voc_animals.main([*small, '--set', key, '--list'])
    assert f'{left} of 15 runs are left' in capsys.readouterr().out
    with pytest.raises(UserError, match=f'out holds runs with other settings .*{named}.*choose another --output'):
        voc_animals.main([*small, '--set', key])
    assert len(machine.started) == 15


@pytest.mark.parametrize('text', ['seed=9', 'pretrain.saliency=unsupervised_model', 'output_dir=x'])
def test_keys_of_the_experiment_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=f'--set {text}: the experiment sets'):
        voc_animals.main(arguments(tmp_path, '--set', text))


@pytest.mark.parametrize(('number', 'jobs'), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_stopped_experiment_lets_its_training_save(tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    ready, saved = tmp_path / 'ready', tmp_path / 'saved'
    child = (f'import pathlib, signal, sys, time\n'
             f'def save(number, frame):\n'
             f'    time.sleep(0.5)\n'
             f'    pathlib.Path({str(saved)!r}).write_text(str(number))\n'
             f'    sys.exit(75)\n'
             f'signal.signal(signal.{number.name}, save)\n'
             f'pathlib.Path({str(ready)!r}).touch()\n'
             f'time.sleep(60)')
    parent = ('from pathlib import Path; from experiments.runner import Chain, Step; '
              'from utils.run.script import run_script\n'
              f'run_script(lambda: Chain(Path({str(tmp_path)!r}), Path()).run('
              f'[Step("x", ("-c", {child!r}))], {jobs}))')
    with subprocess.Popen([sys.executable, '-c', parent], cwd=REPOSITORY) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 75
    assert saved.read_text() == str(int(number))


def test_twenty_one_classes_are_rows_of_their_own(machine: Machine, tmp_path: Path) -> None:
    voc_animals.main(arguments(tmp_path, '--seeds', '1', '--masks', 'supervised', '--start', 'random', '--all-classes'))
    rows = cells(tmp_path / 'out' / 'table.md')[2:]
    assert [row[4] for row in rows] == ['animals', 'all 21'] * 5
    assert sum(tuple(config.eval_classes) == () for name, config in machine.started if name != 'main') == 13


def test_keys_go_to_the_scripts_that_have_them() -> None:
    given = ['epochs=2', 'linear.epochs=3', 'val_size=8', 'moco_kwargs={T: 0.1}', 'num_seeds=1', 'device=cpu']
    assert overrides_of('pretrain', given) == ['epochs=2', 'moco_kwargs={T: 0.1}', 'device=cpu']
    assert overrides_of('linear', given) == ['epochs=2', 'epochs=3', 'val_size=8', 'device=cpu']
    assert overrides_of('kmeans', given) == ['val_size=8', 'num_seeds=1', 'device=cpu']
    with pytest.raises(UserError, match=r'--set kmeans\.epochs=1: no script of the experiment has the key epochs'):
        overrides_of('pretrain', ['kmeans.epochs=1'])


def test_ablations(machine: Machine, tmp_path: Path) -> None:
    groups = ['temperature T', 'parts left out', 'initial weights, nothing frozen', 'frozen stages', 'masks',
              'dimension of the embedding', 'epochs']
    ablations.main(arguments(tmp_path, '--seeds', '1', '2', '--groups', *groups, '--set', 'moco_kwargs.T=0.4'))
    trained = [config for name, config in machine.started if name == 'main' and config.seed == 1 and config.epochs]
    assert len({config.output_dir for config in trained}) == len(trained) == 6 + 1 + 4 + 2 + 4 + 1 + 3 + 4
    by_name = {Path(config.output_dir).parent.name: config for config in trained}
    assert by_name['T_0.1'].moco_kwargs.T == 0.1
    assert by_name['K_0'].moco_kwargs.T == 0.4
    assert (by_name['no_parts'].moco_kwargs.K, by_name['no_parts'].moco_kwargs.m) == (0, 0)
    assert by_name['no_parts'].augmentation_kwargs.scale == (1, 1)
    assert (by_name['frozen_0'].freeze_layers, by_name['frozen_none'].freeze_layers) == (0, False)
    assert (by_name['epochs_2'].epochs, by_name['ndim_8'].model_kwargs.ndim) == (2, 8)
    for name, config in machine.started:  # of what is the network's, the protocols are told
        if name != 'main':
            assert (config.model_kwargs.ndim == 8) == ('ndim_8' in config.pretraining)
            assert config.get('epochs', 20) == 20
    rows = cells(tmp_path / 'out' / 'ablations.md')
    assert rows[0] == ['ablation', 'variant', 'K-means, 20 clusters', 'K-means, 5 clusters', 'Retrieval', 'LC']
    assert [row[1] for row in rows if row[0] == 'temperature T'] == ['0.1', '0.2', '0.3', '0.5', '0.7', '1.0']
    assert [row[:2] for row in rows[2:5]] == [['initial weights', 'backbone'], ['initial weights', 'embedding'],
                                              ['temperature T', '0.1']]
    assert all('-' not in row for row in rows[2:])
    assert np.asarray(Image.open(tmp_path / 'out' / 'ablations.png')).std() > 0
    started = len(machine.started)
    voc_animals.main(arguments(tmp_path, '--seeds', '1', '2', '--start', 'imagenet', '--masks', 'supervised',
                               '--set', 'moco_kwargs.T=0.4'))
    assert {Path(config.output_dir).name for _, config in machine.started[started:]} == {
        f'{task}_{read}' for task in ('kmeans', 'retrieval') for read in ('embedding_predicted', 'backbone_given')}


def test_ablations_of_random_weights() -> None:
    names = ['frozen stages', 'masks']
    frozen = ablations.groups_of('random_two_cores', names, [])['frozen stages']
    assert frozen['nothing'] == ablations.FULL
    assert frozen['stem'] != ablations.FULL  # 0 is not false
    with pytest.raises(UserError, match='random_two_cores has no ImageNet weights'):
        ablations.groups_of('random_two_cores', list(ablations.GROUPS), [])


def test_panels_and_their_lines() -> None:
    groups = {str(i): {'K-means': [(0, 30.0, 1.0), (1, 40.0, 1.0)]} for i in range(4)}
    figure = line_panels(groups, '', '%', dict.fromkeys(groups, ('a', 'b')), {'K-means': 35.0, 'LC': 20.0})
    assert sum(axes.axison for axes in figure.axes) == 4
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == '--'] == [35.0]


def test_ablations_of_nothing_finished(machine: Machine, tmp_path: Path) -> None:
    small = arguments(tmp_path, '--seeds', '1', '--groups', 'temperature T', 'masks')
    ablations.main([*small, '--list'])
    assert not machine.started
    assert not (tmp_path / 'out' / 'ablations.png').exists()
    machine.fails_at = 15  # after the second of the variants
    with pytest.raises(SystemExit):
        ablations.main(small)
    ablations.main([*small, '--list'])
    assert [row[1] for row in cells(tmp_path / 'out' / 'ablations.md')[2:]] == ['backbone', 'embedding', '0.1', '0.2']
    assert (tmp_path / 'out' / 'ablations.png').exists()


def test_a_seed_counts_once(tmp_path: Path) -> None:
    parser = voc_animals.experiment_parser('one line')
    assert parser.parse_args(arguments(tmp_path, '--seeds', '2', '1', '2')).seeds == [2, 1]
    with pytest.raises(UserError, match='-1 is too small; give at least 0'):
        parser.parse_args(arguments(tmp_path, '--seeds=-1'))
