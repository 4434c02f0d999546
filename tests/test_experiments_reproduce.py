"""The chain that reproduces the papers: its steps, its table, and all of it on a tiny drawn data set."""
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from data.voc import VOC_CLASSES
from experiments import reproduce, runner
from experiments.estimate import SCHEMAS, measure
from experiments.reproduce import PRESETS, Reproduction
from experiments.shapes import generate
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from pretrain.maskcontrast import MaskContrast
from utils.config.load import load_config
from utils.report import page
from utils.run.devices import tf32
from utils.run.errors import UserError

PROTOCOLS = ('linear_finetune', 'kmeans', 'retrieval', 'eval')


def steps_of(chain: Reproduction) -> dict[str, object]:
    """{folder: config} of the steps, which load."""
    found = {}
    for *_, step in chain.parts:
        words = step.command
        if words[0] in SCHEMAS:
            found[step.folder] = load_config(words[2], words[4], SCHEMAS[words[0]], words[words.index('--set') + 1:])
            assert {need.folder for need in step.needs} <= {*found, 'maskdistill/masks'}
    return found


def planned(folder: Path, preset: str, moco: bool, *shares: str, seed: int = 3) -> dict:
    (folder / 'moco.pth.tar').touch()
    chain = Reproduction(folder, folder / 'db', (), folder / 'moco.pth.tar' if moco else None, ())
    chain.plan(preset, seed, shares)
    return steps_of(chain)


def test_supervised(tmp_path: Path) -> None:
    plain, whole = planned(tmp_path, 'supervised', False), planned(tmp_path, 'supervised', True, '1%', '100%')
    names = [name.removeprefix('supervised/seed_3/') for name in whole]
    assert names == ['pretrain', 'linear', 'kmeans', 'finetune_01', 'finetune_100', 'pretrain_moco', 'retrieval']
    assert [name.removeprefix('supervised/seed_3/') for name in plain] == ['pretrain', 'linear', 'kmeans']
    of = dict(zip(names, whole.values(), strict=True))
    assert of['pretrain'].pretraining == 'imagenet_classification'
    assert of['pretrain_moco'].pretraining == 'imagenet_moco'
    encoders = {name: of[name].pretraining for name in ('linear', 'kmeans', 'finetune_01', 'retrieval')}
    assert encoders == {**dict.fromkeys(encoders, 'supervised/seed_3/pretrain/checkpoint.pth.tar'),
                        'retrieval': 'supervised/seed_3/pretrain_moco/checkpoint.pth.tar'}
    assert (of['kmeans'].seed, of['kmeans'].num_seeds, of['kmeans'].saliency) == (1234, 5, 'network')
    assert {of[name].seed for name in names if name != 'kmeans'} == {3}
    assert (of['finetune_01'].label_share, of['finetune_01'].network_lr_factor) == (0.01, 0.1)
    assert of['retrieval'].memory_split == 'trainaug'


def test_the_other_presets(tmp_path: Path) -> None:
    unsupervised = planned(tmp_path, 'unsupervised', True)
    assert [config.get('pretraining') for config in unsupervised.values()] == [
        'imagenet_moco', *['unsupervised/seed_3/pretrain/checkpoint.pth.tar'] * 3]
    assert unsupervised['unsupervised/seed_3/pretrain'].saliency == 'unsupervised_model'
    paper = planned(tmp_path, 'paper_60_epochs', True)
    assert paper['paper_60_epochs/seed_3/pretrain'].epochs == 60
    distilled = planned(tmp_path, 'maskdistill', True)
    assert [*distilled] == [f'maskdistill/seed_3/{name}' for name in ('pseudo_labels', 'distill', 'linear')]
    network, linear = distilled['maskdistill/seed_3/distill'], distilled['maskdistill/seed_3/linear']
    assert (network.label_maps, network.pretraining, network.loss) == (
        'maskdistill/seed_3/pseudo_labels/label_maps', 'imagenet_moco', 'ohem')
    assert (linear.pretraining, linear.network_lr_factor) == ('maskdistill/seed_3/distill/best_model.pth.tar', 0)


def test_published_are_entries_of_results_of_all_classes() -> None:
    for preset in PRESETS.values():
        for entry, published in preset['published'].items():
            assert entry.partition(' ')[0] in reproduce.report.TASKS
            assert not published.get('IoU') or tuple(published['IoU']) == VOC_CLASSES
            if 'IoU' in published:
                assert sum(published['IoU'].values()) / 21 == pytest.approx(published['mIoU'], abs=0.06)


def entry(value: float) -> dict:
    return {'mIoU': value, 'IoU': {'background': value + 30, 'cat': value - 30}}


def table(path: Path) -> dict[tuple[str, str], list[str]]:
    lines = [line.strip('|').split('|') for line in path.read_text().splitlines() if '|' in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {(preset, protocol): cells for preset, protocol, *cells in rows[2:]}


def test_the_table_has_what_is_finished_of_the_same_protocol(tmp_path: Path, capsys) -> None:
    (tmp_path / 'moco.pth.tar').touch()
    chain = Reproduction(tmp_path, tmp_path, (), tmp_path / 'moco.pth.tar', ())
    for seed in (1, 2):
        chain.plan('supervised', seed, ('1%',))
        chain.plan('maskdistill', seed)
    results = {'supervised/seed_1/linear': {'linear': entry(63.0)}, 'supervised/seed_2/linear': {'linear': entry(64.0)},
               'supervised/seed_1/kmeans': {'kmeans': {'num_clusters': 20, **entry(44.0)}, 'overclustering': [
                   {'num_clusters': count, **entry(55)} for count in (20, 300, 500)]},
               'supervised/seed_1/finetune_01': {'finetuned': entry(30)},
               'maskdistill/seed_1/distill': {'distilled': entry(40.0)},
               'maskdistill/seed_1/pseudo_labels': {'pseudo_labels': entry(50.0)}}
    for *_, step in chain.parts:
        if step.folder in results:
            (tmp_path / step.folder).mkdir(parents=True)
            (tmp_path / step.folder / 'results.json').write_text(json.dumps(results[step.folder]))
            (tmp_path / step.folder / 'finished.json').write_text(json.dumps(step.settings()))
    (tmp_path / 'supervised/seed_2/kmeans').mkdir()  # a run that has not finished
    (tmp_path / 'supervised/seed_2/kmeans/results.json').write_text(json.dumps({'kmeans': entry(0.0)}))
    chain.write(['in percent'])
    assert table(tmp_path / 'table.md') == {
        ('supervised', 'Linear classifier'): ['63.9', '63.50 ± 0.71 (n = 2)', '-0.40'],
        ('supervised', 'Linear classifier + CRF'): ['65.5', '-', '-'],
        ('supervised', 'K-means'): ['44.2', '44.00 (n = 1)', '-0.20'],
        ('supervised', 'K-means, 500 clusters'): ['57.0', '55.00 (n = 1)', '-2.00'],
        ('supervised', 'Retrieval'): ['49.6', '-', '-'],
        ('supervised', 'Retrieval, 7 classes'): ['62.3', '-', '-'],
        ('maskdistill', 'Distilled'): ['45.8', '40.00 (n = 1)', '-'],
        ('maskdistill', 'Linear classifier'): ['58.7', '-', '-'],
        ('maskdistill', 'Linear classifier + CRF'): ['62.8', '-', '-'],
        ('supervised', 'K-means, 300 clusters'): ['-', '55.00 (n = 1)', '-'],
        ('supervised', 'Fine-tuned, 1%'): ['-', '30.00 (n = 1)', '-'],
        ('maskdistill', 'Label maps'): ['-', '50.00 (n = 1)', '-']}
    text = (tmp_path / 'table.md').read_text()
    assert text.endswith('in percent\n\nmaskdistill: published with label maps of a Mask R-CNN that learnt from the '
                         'masks, so that no difference is told.\n')
    html = (tmp_path / 'report.html').read_text()
    assert '<th scope="row">supervised</th><td>Linear classifier</td><td>background</td><td>90.95</td>' \
        '<td>93.50 ± 0.71 (n = 2)</td><td>+2.55</td>' in html


def test_what_starts_from_moco_needs_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='start from MoCo v2; fetch .*--moco PATH'):
        reproduce.main(['--preset', 'all', '--output', str(tmp_path)])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chain calls the scripts here, where they are imported once, without plots; gives their names."""
    started: list[str] = []

    def start(step: runner.Step, root: Path, jobs: int) -> SimpleNamespace:
        started.append(Path(step.command[0]).stem)
        importlib.import_module(step.command[0].removesuffix('.py').replace('/', '.')).main(step.command[1:])
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.setattr(runner, 'start', start)
    monkeypatch.setattr(page, 'to_svg', lambda draw, theme: b'')  # drawing reports is most of the time
    return started


@pytest.mark.parametrize('trains', [True, False])
def test_the_estimate_computes_as_runs_do(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found, forward = [], LinearSegmentationModel.forward

    def watched(model: LinearSegmentationModel, images: torch.Tensor) -> torch.Tensor:
        found.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
        return forward(model, images)

    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    monkeypatch.setattr(LinearSegmentationModel, 'forward', watched)
    p = load_config('configs/demo/env.yml', 'configs/demo/linear_finetune.yml', SCHEMAS['segmentation/eval.py'],
                    ['device=cpu', 'train_size=32', 'val_size=32'])
    with tf32(not trains):
        measure(p, trains, 1)
    assert found == [(True, trains)] * 2  # by default TF32 is for training


def test_the_whole_chain_on_drawn_images(in_process: list[str], tmp_path: Path, capsys) -> None:
    """One of the longest tests: every script runs, as it will on VOC."""
    call = ['--check', '--preset', 'unsupervised', 'maskdistill', '--output', str(tmp_path), '--set', 'device=cpu',
            'crf_workers=0', 'kmeans.num_seeds=2']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('saliency.predict.main', lambda words: sys.exit(75))
        with pytest.raises(SystemExit):
            reproduce.main(call)
    said = capsys.readouterr().out
    names = ['main', 'linear_finetune', 'kmeans', 'retrieval', 'predict', 'pseudo_labels', *['linear_finetune'] * 2]
    assert in_process == names[:5]
    assert said.endswith('4 runs are left: rerun the same command to resume\n')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in said.splitlines() if line.startswith('|')]
    cost = {row[0]: row[1:] for row in rows[:rows.index([*reproduce.HEAD])]}
    assert cost['maskdistill/masks'] == ['1', '-', '-', '-']
    assert float(cost['unsupervised/pretrain'][2]) > 0.1
    assert cost['all that is measured'][0] == '8'
    drawn = {path.name: path.read_bytes() for path in (tmp_path / 'check').glob('*.pth*')}
    reproduce.main(call)
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / 'check').glob('*.pth*')}
    assert in_process == [*names[:5], *names[4:]]
    assert {cells[1] == '-' or cells[2] for cells in table(tmp_path / 'check' / 'table.md').values()} == {'-'}
    assert 'runs are left: rerun' not in capsys.readouterr().out


def tiny_voc(root: Path) -> None:
    path = generate(root / 'VOCSegmentation', 24, 22, 48) / 'dataset.yml'
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {'classes': list(VOC_CLASSES)}))


def save_released(folder: Path, names: Sequence[str]) -> None:
    """Files with the names and shapes of tensors of the released ones, but for the depth of the ResNet."""
    folder.mkdir()
    for name in names:
        if 'linear' in name:
            torch.save(LinearSegmentationModel('resnet18').state_dict(), folder / name)
        else:
            model = MaskContrast(ContrastiveSegmentationModel('resnet18'), K=256 if 'unsup' in name else 128)
            torch.save({'model': {f'module.{key}': value for key, value in model.state_dict().items()}, 'epoch': 40},
                       folder / name)


def test_released_checkpoints_are_scored(in_process: list[str], tmp_path: Path) -> None:
    save_released(tmp_path / 'files', ('supervised_model.pth.tar', 'linear_supervised.pth', 'Unsupervised.pth.tar'))
    tiny_voc(tmp_path / 'db')
    reproduce.main(['--released', str(tmp_path / 'files'), '--db-root', str(tmp_path / 'db'), '--output', str(tmp_path),
                    '--set', 'backbone=resnet18', 'val_size=32', 'overclustering=[21]', 'num_workers=0', 'device=cpu',
                    'crf_workers=0', 'num_visualizations=0', 'saliency=supervised_model', 'num_seeds=2'])
    assert sorted(in_process) == ['eval', 'kmeans', 'kmeans', 'retrieval']
    measured = {place: cells[1] for place, cells in table(tmp_path / 'released' / 'table.md').items()}
    assert {place for place, text in measured.items() if text == '-'} == {
        ('supervised', 'K-means, 500 clusters'), ('supervised', 'Retrieval'), ('supervised', 'Retrieval, 7 classes'),
        ('unsupervised', 'Linear classifier'), ('unsupervised', 'Linear classifier + CRF')}
    for folder, task, name in (('supervised', 'linear', 'linear_supervised.pth'),
                               ('unsupervised', 'kmeans', 'Unsupervised.pth.tar')):
        results = json.loads((tmp_path / f'released/{folder}/seed_1/{task}/results.json').read_text())
        assert results[task]['made_with']['weights'] == str(tmp_path / 'files' / name)


def test_the_name_of_a_file_counts_before_that_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / 'Unsupervised-Semantic-Segmentation'
    save_released(folder, ('supervised.pth.tar', 'model.pth.tar'))
    found = reproduce.released_files(tmp_path)
    assert {preset: path.name for preset, files in found.items() for path in files.values()} == {
        'supervised': 'supervised.pth.tar', 'unsupervised': 'model.pth.tar'}


@pytest.mark.parametrize('names', [('model.pth',), ('a_supervised.pth', 'b_supervised.pth')])
def test_a_file_that_tells_not_which_it_is(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_released(tmp_path / 'files', names)
    with pytest.raises(UserError, match=f'{names[-1]} is no released model, .* rename it or take it away'):
        reproduce.main(['--released', str(tmp_path / 'files'), '--output', str(tmp_path)])
    with pytest.raises(UserError, match='holds no checkpoint'):
        reproduce.main(['--released', str(tmp_path / 'absent'), '--output', str(tmp_path)])
    with pytest.raises(UserError, match='^argument --preset: not allowed with argument --released; see --help.$'):
        reproduce.main(['--released', str(tmp_path / 'files'), '--preset', 'all'])


def test_no_room_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reproduce, 'estimate', lambda steps: ('', 0))
    monkeypatch.setattr(reproduce.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=4e9))
    with pytest.raises(UserError, match='db needs 5 GB, more than is free there'):
        reproduce.main(['--db-root', str(tmp_path / 'db'), '--output', str(tmp_path)])
