"""The experiments on the animals of VOC: what they run, when they do not, and what the tables say. No training."""
import csv
import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablations, experiment, voc_animals
from benchmarks.experiment import overrides_of
from utils.config import load_config
from utils.errors import UserError
from utils.schema import Kmeans, LinearFinetune, Pretrain, Retrieval

SCHEMAS = {'main': Pretrain, 'linear_finetune': LinearFinetune, 'kmeans': Kmeans, 'retrieval': Retrieval}


class Machine:
    """In place of the scripts: checks the config and writes figures that depend on it alone."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict]] = []
        self.fails_at = -1

    def __call__(self, command: list[str], cwd: Path) -> CompletedProcess:
        name, arguments = Path(command[1]).stem, command[2:]
        config = load_config(arguments[1], arguments[3], SCHEMAS[name], arguments[arguments.index('--set') + 1:])
        if len(self.started) == self.fails_at:
            return CompletedProcess(command, 75)
        self.started.append((name, config))
        trained = 'initial' not in config.pretraining
        figure = 10.0 + 5 * trained + 2 * (config.get('features') == 'backbone') + config.seed % 7

        def entry(value: float) -> dict:
            return {'mIoU': value, 'IoU': {'background': value + 30, 'cat': value - 30}}

        several = {'num_clusters': 20, **entry(figure), 'runs': [entry(figure - 1), entry(figure + 1)]}
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if name != 'main':
            (folder / 'results.json').write_text(json.dumps({
                'kmeans': {'kmeans': several, 'overclustering': [{**several, 'num_clusters': 5}]},
                'retrieval': {'retrieval': entry(figure)},
                'linear_finetune': {'linear': entry(figure), 'linear_crf': entry(figure + 1)}}[name]))
        return CompletedProcess(command, 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(experiment.subprocess, 'run', found)
    return found


def arguments(folder: Path, *more: str) -> list[str]:
    return ['--db-root', str(folder / 'db'), '--output', str(folder / 'out'), '--weights', 'w.pth', *more]


def cells(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in path.read_text().splitlines()]


def test_baselines_then_pretraining_then_protocols(machine: Machine, tmp_path: Path) -> None:
    voc_animals.main(arguments(tmp_path, '--seeds', '1', '2', '--masks', 'supervised', '--start', 'imagenet',
                               '--set', 'epochs=3', 'pretrain.epochs=4', 'val_size=64', 'device=cpu'))
    first = machine.started[:len(machine.started) // 2]
    assert [name for name, _ in first] == ['main', *['kmeans', 'retrieval', 'linear_finetune'] * 2, 'main', 'kmeans',
                                           'retrieval', 'linear_finetune', *['kmeans'] * 2, *['retrieval'] * 2]
    assert [config.epochs for name, config in first if name == 'main'] == [0, 4]
    assert {config.epochs for name, config in first if name == 'linear_finetune'} == {3}
    assert {config.val_size for name, config in first if name != 'main'} == {64}
    assert {config.seed for name, config in machine.started if name == 'main'} == {1, 2}
    assert first[0][1].pretraining == str(Path('w.pth').resolve())
    assert all(config.pretraining.endswith('checkpoint.pth.tar') for name, config in first if name != 'main')
    given = [(config.features, config.saliency) for name, config in first if name == 'kmeans']
    assert given == [('backbone', 'supervised_model'), ('embedding', 'supervised_model'),
                     ('embedding', 'supervised_model'), ('embedding', 'network'), ('backbone', 'supervised_model')]
    assert all(tuple(config.eval_classes) == ('cat', 'cow', 'dog', 'horse', 'sheep')
               for name, config in machine.started if name != 'main')

    table = {tuple(row[1:4]): row[5:] for row in cells(tmp_path / 'out' / 'table.md')}
    # seeds 100 and 200 give 2 and 4 more
    assert table['initial weights', 'backbone', 'given'] == ['15.0 ± 1.4', '15.0 ± 1.4', '15.0 ± 1.4', '15.0 ± 1.4',
                                                             '16.0 ± 1.4'][:len(voc_animals.FIGURES)]
    assert table['supervised masks', 'embedding', 'predicted'][2:] == ['18.0 ± 1.4', '-', '-']
    gains = {tuple(row[1:4]): row[5:] for row in cells(tmp_path / 'out' / 'gains.md')}
    assert gains['supervised masks', 'embedding', 'given'][2] == '+3.0 (+1.5 σ)'  # over the backbone's 15, not 13
    assert not any('initial' in name for name, *_ in gains)
    with (tmp_path / 'out' / 'figures.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['class'] == 'cat' and row['figure'] == 'Retrieval']
    assert float(rows[0]['mean']) == pytest.approx(15 - 30)
    assert 'Retrieval, animals' in (tmp_path / 'out' / 'classes.md').read_text()


def test_what_is_finished_is_not_run_again(machine: Machine, tmp_path: Path, capsys) -> None:
    small = arguments(tmp_path, '--seeds', '1', '--masks', 'supervised', '--start', 'random')
    machine.fails_at = 9
    with pytest.raises(SystemExit) as ended:
        voc_animals.main(small)
    assert ended.value.code == 75
    machine.fails_at = -1
    voc_animals.main(small)
    folders = [config.output_dir for _, config in machine.started]
    assert len(folders) == len(set(folders)) == 15
    voc_animals.main(small)
    assert len(machine.started) == 15
    capsys.readouterr()
    voc_animals.main([*small, '--set', 'linear.epochs=1', '--list'])
    assert '3 of 15 runs are left' in capsys.readouterr().out
    assert len(machine.started) == 15
    voc_animals.main([*small, '--set', 'linear.epochs=1'])
    assert [name for name, _ in machine.started[15:]] == ['linear_finetune'] * 3
    assert all(config.freeze_layers is False for name, config in machine.started if name == 'main')


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
    assert len({config.output_dir for config in trained}) == len(trained) == 5 + 1 + 4 + 2 + 4 + 1 + 3 + 4
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
    assert [row[1] for row in rows if row[0] == 'temperature T'] == ['0.1', '0.3', '0.5', '0.7', '1.0']
    assert [row[:2] for row in rows[2:5]] == [['initial weights', 'backbone'], ['initial weights', 'embedding'],
                                              ['temperature T', '0.1']]
    assert all('-' not in row for row in rows[2:])
    assert np.asarray(Image.open(tmp_path / 'out' / 'ablations.png')).std() > 0
    started = len(machine.started)
    voc_animals.main(arguments(tmp_path, '--seeds', '1', '2', '--start', 'imagenet', '--masks', 'supervised',
                               '--set', 'moco_kwargs.T=0.4'))
    assert {Path(config.output_dir).name for _, config in machine.started[started:]} == {
        f'{task}_{read}' for task in ('kmeans', 'retrieval') for read in ('embedding_predicted', 'backbone_given')}


def test_ablations_of_nothing_finished(machine: Machine, tmp_path: Path) -> None:
    small = arguments(tmp_path, '--seeds', '1', '--groups', 'temperature T', 'masks')
    ablations.main([*small, '--list'])
    assert not machine.started
    assert not (tmp_path / 'out' / 'ablations.png').exists()
    machine.fails_at = 12  # after the second of the variants
    with pytest.raises(SystemExit):
        ablations.main(small)
    ablations.main([*small, '--list'])
    assert [row[1] for row in cells(tmp_path / 'out' / 'ablations.md')[2:]] == ['backbone', 'embedding', '0.1']
    assert (tmp_path / 'out' / 'ablations.png').exists()
