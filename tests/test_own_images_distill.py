"""From photographs to a network without a label: the commands of docs/maskdistill.md, and the chain on drawn images."""
import importlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from experiments import distill
from experiments.runner import Chain, Step
from saliency.sources import mask_iou
from segmentation import linear_finetune
from tests.golden_transformers import fill
from utils.config.load import load_config
from utils.config.schema import LinearFinetune, PseudoLabels
from utils.run.errors import UserError

PAGE = Path(__file__).parents[1] / 'docs/maskdistill.md'
COLOURS = (140, 230, 140), (230, 230, 60)  # the mask of a random transformer finds such objects on dark grey
SECTION = PAGE.read_text().split('## Your own images')[1].split('\n## ')[0]


def test_from_photographs_to_a_network(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    inside = (y - 30) ** 2 / 20 ** 2 + (x - 40) ** 2 / 27 ** 2 < 1
    for i in range(16):
        image = np.where(inside[..., None], COLOURS[i % 2], 30) + draw.normal(0, 12, (60, 80, 3))
        path = tmp_path / 'photos' / 'images' / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    vit = fill(timm.create_model('deit_tiny_patch16_224', num_classes=0))
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    paths = {'photos': str(tmp_path / 'photos'), 'segmented': str(tmp_path / 'segmented'),
             'NEW': str(tmp_path / 'photos/images'), 'timm/vit_small_patch16_224.dino': 'timm/deit_tiny_patch16_224'}
    small = {'saliency/predict.py': ['--weights', str(tmp_path / 'vit.pth'), '--heads', '1', '--resize', '96',
                                     '--workers', '1', '--coco', str(tmp_path / 'masks.json')],
             'segmentation/pseudo_labels.py': ['features=box_cls', 'backbone=timm/deit_tiny_patch16_224',
                                               'num_clusters=2', f'pretraining={tmp_path / "vit.pth"}',
                                               'num_workers=0'],
             'segmentation/linear_finetune.py': ['backbone=resnet18', 'pretraining=none', 'freeze_layers=false',
                                                 'network_lr_factor=0', 'features=backbone', 'freeze_batchnorm=all',
                                                 'train_size=64', 'val_size=64', 'train_batch_size=7', 'epochs=1',
                                                 'scheduler=constant', 'num_workers=0', 'optimizer_kwargs.lr=0.001'],
             'segmentation/predict.py': ['--workers', '1']}
    commands = [shlex.split(line)[1:] for line in SECTION.splitlines() if line.startswith('    python ')]
    assert [script for script, *_ in commands] == list(small)
    for script, *words in commands:
        for name, path in paths.items():
            words = [word if word.startswith('configs/') else word.replace(name, path) for word in words]
        given = words + small[script]
        importlib.import_module(script.removesuffix('.py').replace('/', '.')).main(given)
        if script == 'segmentation/linear_finetune.py':
            network = given
    results = tmp_path / 'photos' / 'results'
    assert len(json.loads((tmp_path / 'masks.json').read_text())['annotations']) == 16
    masks = [np.asarray(Image.open(path)) > 0 for path in (tmp_path / 'photos' / 'saliency_masks').rglob('*.png')]
    assert min(mask_iou(mask, inside) for mask in masks) > 0.6
    taught = {name: np.asarray(Image.open(results / 'pseudo_labels' / 'label_maps' / f'{name}.png'))[30, 40]
              for name in (f'{"ab"[i % 2]}/{i}' for i in range(16))}
    assert {label for name, label in taught.items() if name[0] == 'a'} == {taught['a/0']} != {taught['b/1']}
    entry = json.loads((results / 'distill' / 'results.json').read_text())['agreement']
    assert set(entry['IoU']) == {'background', 'cluster_1', 'cluster_2'}
    assert entry['made_with']['images'] == 2
    predictions = [np.asarray(Image.open(tmp_path / 'segmented' / 'predictions' / f'{name}.png')) for name in taught]
    assert {labels.shape for labels in predictions} == {(60, 80)}
    assert max(labels.max() for labels in predictions) <= 2
    linear_finetune.main([*network, f'label_maps={tmp_path}/segmented/predictions', 'output_dir=again'])  # a round
    assert len((results / 'again' / 'labelled.txt').read_text().splitlines()) == 14


def test_the_chain_of_a_network(tmp_path: Path) -> None:
    chain = Chain(tmp_path, tmp_path / 'data', ['train_db_name=clothes'], 'configs/demo/env.yml')
    teacher = Step('clusters-0', ('segmentation/kmeans.py',))
    setting = distill.SETTINGS['confidence, CRF round']
    maps, first, refined, last = distill.distil(chain, distill.PHOTOGRAPHS, teacher, setting, ['seed=3'])
    configs = [load_config(step.command[2], step.command[4], schema, step.command[step.command.index('--set') + 1:])
               for step, schema in ((maps, PseudoLabels), (first, LinearFinetune), (refined, LinearFinetune),
                                    (last, LinearFinetune))]
    assert [config.seed for config in configs] == [3, 3, 3, 3]
    assert {config.train_db_name for config in configs[1:]} == {'clothes'}
    assert (configs[0].clusters, configs[0].confidence) == ('clusters-0/clusters.pth.tar', 0.8)
    assert configs[1].label_maps == 'maps-0.8-clusters-0/label_maps'
    assert (configs[2].val_split, configs[0].val_split, configs[1].train_split) == ('trainaug',) * 3
    assert refined.command[0] == 'segmentation/eval.py'
    assert '--crf-postprocess' in refined.command
    assert configs[3].label_maps == 'ce-0.8-round-1-clusters-0-train/predictions_crf'
    assert [step.needs for step in (first, refined, last)] == [(maps,), (first,), (refined,)]


def test_paired_differences(tmp_path: Path, capsys) -> None:
    distill.write(tmp_path, {('plain', 0): (40, 42), ('plain', 1): (50, 54), ('OHEM', 0): (40, 39)})
    printed = capsys.readouterr().out
    assert '| plain   | 45.00 ± 7.07 (n = 2) | 48.00 ± 8.49 (n = 2) | 3.00 ± 1.41 (n = 2)        |' in printed
    assert '| OHEM    | 40.00                | 39.00                | -1.00                      |' in printed
    with pytest.raises(UserError, match='--data and --db-root go together'):
        distill.main(['--output', str(tmp_path), '--data', 'clothes'])
