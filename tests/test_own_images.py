"""From a folder of images to a segmentation by the lines of docs/own_images.md."""
import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.colours import RGB
from utils.config.load import load_config
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, PseudoLabels
from utils.run.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {'pretrain/main.py': ['pretraining=none', 'backbone=resnet18', 'augmentation_kwargs.size=32',
                              'augmentation_kwargs.scale=[0.8, 1.0]', 'train_batch_size=6', 'epochs=8', 'num_workers=0',
                              'optimizer=adam', 'optimizer_kwargs.lr=0.003', 'model_kwargs.dropout=0.0'],
         'segmentation/kmeans.py': ['backbone=resnet18', 'val_size=32', 'num_workers=0', 'device=cpu',
                                    'model_kwargs.dropout=0.0']}
BEFORE, AFTER = 'kmeans_backbone', 'kmeans'  # the training


def page_commands(**paths: str) -> list[list[str]]:
    """The commands of the page up to the training's, with its folders replaced."""
    section = (ROOT / 'docs/own_images.md').read_text().split('\n## 4')[0]
    commands = [shlex.split(line)[1:] for line in section.splitlines() if line.startswith('    python ')]
    pattern = re.compile('|'.join(rf'(?<![\w/]){re.escape(name)}(?![\w])' for name in paths))
    return [[pattern.sub(lambda found: paths[found.group()], word) for word in words] for words in commands]


def test_from_photographs_to_segmentation(tmp_path: Path, capsys) -> None:
    draw = np.random.default_rng(0)
    for i in range(12):
        image = draw.normal(40, 6, (48, 60, 3))
        image[12:36, 15 + i:40 + i] = RGB[1 + i % 2] + draw.normal(0, 6, (24, 25, 3))
        path = tmp_path / 'photos' / 'images' / f'{"ab"[i % 2]}' / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    (tmp_path / 'photos' / 'images' / 'a' / 'broken.jpg').write_bytes(b'nothing')
    results = tmp_path / 'photos' / 'results'
    commands = page_commands(photos=str(tmp_path / 'photos'), NEW=str(tmp_path / 'photos' / 'images' / 'a' / '0.jpg'),
                               segmented=str(tmp_path / 'segmented'),
                             segmented_trained=str(tmp_path / 'segmented_trained'))
    assert [words[0] for words in commands] == [
        'saliency/predict.py', 'segmentation/kmeans.py', 'segmentation/predict.py',
        'pretrain/main.py', 'segmentation/kmeans.py', 'segmentation/predict.py', 'saliency/predict.py']
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'weights.pth')  # in the place of ImageNet's
    for script, *words in commands:
        words = [word.replace('5-20', '2-3') for word in words]
        more = SMALL.get(script, ['--workers', '1'])
        if any(BEFORE in word for word in words) and script == 'segmentation/kmeans.py':
            more = [*more, f'pretraining={tmp_path}/weights.pth']
        importlib.import_module(script.removesuffix('.py').replace('/', '.')).main(words + more)
    assert '13 images: 12 masks written' in capsys.readouterr().out
    trained = json.loads((tmp_path / 'photos' / 'saliency_trained' / 'report.json').read_text())
    assert trained['settings']['method'] == 'maskcontrast'
    for name, segmented in ((BEFORE, 'segmented'), (AFTER, 'segmented_trained')):
        found = json.loads((results / name / 'results.json').read_text())['clusters']
        assert found['num_clusters'] in (2, 3)
        assert found['made_with']['masks'] == 'masks'
        written = {path.relative_to(results / name / 'predictions').as_posix()
                   for path in (results / name / 'predictions').rglob('*.png')}
        assert written == {f'{"ab"[i % 2]}/{i}.png' for i in range(12)}
        again = np.array(Image.open(tmp_path / segmented / 'predictions' / '0.png'))
        np.testing.assert_array_equal(again, np.array(Image.open(results / name / 'predictions' / 'a' / '0.png')))

    # an earlier checkpoint is a start too
    script, *words = commands[3]
    importlib.import_module('pretrain.main').main([
        *words, *SMALL[script], 'output_dir=further', 'epochs=1',
        f'pretraining={results}/pretrain/checkpoint.pth.tar'])
    assert (results / 'further' / 'checkpoint.pth.tar').is_file()
    assert f'Weights: {results}/pretrain/checkpoint.pth.tar' in capsys.readouterr().out

    # other photographs are not taken for those that the results are of
    (tmp_path / 'photos').rename(tmp_path / 'moved')
    (tmp_path / 'photos').symlink_to('moved')
    script, *words = commands[3]
    start = importlib.import_module('pretrain.main').main
    other = [f'root_dir={tmp_path}/moved/results', *SMALL[script]]
    with pytest.raises(UserError, match=r'of another config \(db_root: .*/moved"\); choose another root_dir'):
        start([*words, *other])


@pytest.mark.parametrize(('name', 'schema'), [
    ('pretrain', Pretrain), ('kmeans', Kmeans), ('kmeans_backbone', Kmeans), ('pseudo_labels', PseudoLabels),
    ('distill', LinearFinetune)])
def test_configs_open_with_their_command_and_ask_for_the_folder(name: str, schema: type) -> None:
    path = f'configs/own_images/{name}.yml'
    config = load_config('configs/own_images/env.yml', path, schema, ['db_root=photos'])
    assert config.db_root == str(ROOT / 'photos')
    assert config.output_dir == str(ROOT / 'results' / 'own_images' / name)
    script = {Pretrain: 'pretrain/main.py', Kmeans: 'segmentation/kmeans.py'}.get(
        schema, f'segmentation/{"linear_finetune" if name == "distill" else name}.py')
    assert (ROOT / path).read_text().startswith(
        f'# python {script} --config_env configs/own_images/env.yml --config_exp {path} '
        '--set db_root=FOLDER root_dir=FOLDER/results')
    with pytest.raises(UserError, match='db_root is still the placeholder /path/to/my_images; .*db_root=FOLDER'):
        load_config('configs/own_images/env.yml', path, schema)
