"""Training of BASNet: what goes in, that it learns, goes on where it stopped, and what it refuses."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet34

import saliency.predict as predict
import saliency.train as script
from data.folder import FolderDataset
from data.loaders import collate
from saliency.basnet import BASNet, TrainingView, compute_losses
from saliency.sources import map_scores, read_scores, validate
from tests.test_utils_report_run import Page
from utils.report.run import read_history
from utils.run import distributed
from utils.run.devices import Precision
from utils.run.script import run_script
from utils.run.trainer import Trainer

NAMES = json.loads((Path(__file__).parent / 'goldens' / 'basnet_names.json').read_text())


class ThinNetwork(nn.Module):
    """A stand-in for BASNet, for what does not depend on the network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                                    nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        score = self.layers(images)
        return [score, score]


@pytest.fixture
def thin(monkeypatch):
    monkeypatch.setattr('saliency.train.BASNet', ThinNetwork)


def arguments(root: Path, *overrides: str, flags: tuple[str, ...] = ()) -> list[str]:
    """Command line of the script on the data set Shapes below ``root``, with results in root/results."""
    return ['--config_env', 'configs/demo/env.yml', '--config_exp', 'configs/saliency/basnet.yml', *flags, '--set',
            f'db_root={root}', f'root_dir={root / "results"}', 'device=cpu', 'num_workers=0', 'images=Shapes/images',
            'masks=Shapes/saliency_unsupervised_model', 'resize=32', 'crop=28', 'epochs=3', 'train_batch_size=4',
            'log_every=1', *overrides]


def fails(capsys, arguments: list[str]) -> str:
    """Run what must end in one sentence and exit code 2; returns the sentence."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: script.main(arguments))
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith('error: ')
    assert len(message.splitlines()) == 1
    return message


def test_basnet_learns_a_tiny_set(db_root):
    torch.manual_seed(0)
    stored = FolderDataset(db_root / 'Shapes' / 'images', db_root / 'Shapes' / 'saliency_supervised_model')
    dataset = stored.transformed(TrainingView(32, 32, 0))
    views = [dataset[index] for index in range(4)]
    batch = {name: torch.stack([view[name] for view in views]) for name in ('image', 'sal')}
    network, precision = BASNet(), Precision(torch.device('cpu'))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    first = compute_losses(network, batch, precision)['loss']
    precision.step(first, optimizer)
    precision.step(compute_losses(network, batch, precision)['loss'], optimizer)
    assert compute_losses(network, batch, precision)['loss'] < 0.85 * first


def test_a_run_leaves_weights_that_predict_takes(shapes, capsys):
    root = shapes.parent
    torch.manual_seed(1)
    trained = resnet34(weights=None).state_dict()
    torch.save(trained, root / 'resnet34.pth')
    script.main(arguments(root, 'epochs=0', f'pretraining={root / "resnet34.pth"}', 'output_dir=whole'))
    state = torch.load(root / 'results' / 'whole' / 'basnet.pth', weights_only=True)
    assert {name: list(value.shape) for name, value in state.items()} == NAMES
    assert torch.equal(state['encoder4.2.conv2.weight'], trained['layer4.2.conv2.weight'])
    assert torch.equal(state['encoder1.0.bn1.running_var'], trained['layer1.0.bn1.running_var'])
    predict.main(['--images', str(shapes / 'images'), '--output', str(root / 'masks'), '--method', 'basnet',
                  '--weights', str(root / 'results' / 'whole' / 'basnet.pth'), '--input-size', '32', '--device', 'cpu'])
    assert '18 images' in capsys.readouterr().out


def test_training_goes_on_in_the_same_bits(db_root, tmp_path, monkeypatch, thin, capsys):
    (tmp_path / 'Shapes').symlink_to(db_root / 'Shapes')
    val = 'val_images=Shapes/images', 'val_masks=Shapes/saliency_supervised_model'
    script.main(arguments(tmp_path, *val, 'output_dir=whole'))
    save = Trainer.save
    for epoch, step in ((0, 2), (1, 4), (2, 0)):  # within an epoch, before validation, after it

        def cut_off(self, epoch=epoch, step=step):
            save(self)
            if (self.epoch, self.step) == (epoch, step):
                raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, 'save', cut_off)
        with pytest.raises(KeyboardInterrupt):
            script.main(arguments(tmp_path, *val, 'output_dir=parts', 'checkpoint_every=2'))
    monkeypatch.setattr(Trainer, 'save', save)
    assert not (tmp_path / 'results' / 'parts' / 'basnet.pth').exists()
    script.main(arguments(tmp_path, *val, 'output_dir=parts'))
    assert 'Resuming after epoch 2 and 0 steps' in capsys.readouterr().out
    folders = [tmp_path / 'results' / name for name in ('whole', 'parts')]
    first, second = (torch.load(folder / 'basnet.pth', weights_only=True) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    first, second = ((folder / 'results.json').read_text() for folder in folders)
    assert first == second
    record, resumed = (read_history(folder)[0] for folder in folders)
    assert {'train/loss', 'train/lr', 'val/MAE'} <= record.keys()
    assert record == resumed
    assert all('mean absolute error' in Page(folder / 'report.html').text for folder in folders)
    assert set(json.loads(first)['saliency']) == {'mIoU', 'maxF', 'MAE'}
    script.main(arguments(tmp_path, *val, 'output_dir=parts'))  # there is nothing left to do
    assert (folders[1] / 'results.json').read_text() == first


def test_folders_of_the_command_line(shapes, tmp_path, monkeypatch, thin, capsys):
    monkeypatch.chdir(shapes)
    (shapes / 'saliency_unsupervised_model').rename(shapes / "it's # made: by me")
    some = sorted((shapes / "it's # made: by me").iterdir())[0]
    some.unlink()
    (shapes / "it's # made: by me" / 'contact_sheet.jpg').write_bytes((shapes / 'images' / f'{some.stem}.jpg')
                                                                    .read_bytes())
    script.main(arguments(tmp_path, 'epochs=1', flags=('--images', 'images', '--pseudo-labels', "it's # made: by me")))
    said = f"17 images of {shapes / 'images'} with masks of {shapes}/it's # made: by me, 1 left out\n"
    assert said in capsys.readouterr().out


def test_the_line_of_the_docs_needs_no_db_root(shapes, tmp_path, thin, capsys):
    section = (Path(__file__).parents[1] / 'docs/own_images.md').read_text().split('## Better masks')[1]
    line = next(line for line in section.splitlines() if line.startswith('    python '))
    words = line.replace('DIR', str(shapes / 'images'), 1).replace('DIR', str(shapes / 'saliency_unsupervised_model'))
    small = re.search(r'append `(--set [^`]*)`', section).group(1)
    more = [f'root_dir={tmp_path}', 'device=cpu', 'num_workers=0', 'epochs=1', 'train_batch_size=4']
    script.main([*words.split()[2:], *small.split(), *more])
    assert f"18 images of {shapes / 'images'} with masks" in capsys.readouterr().out
    assert (tmp_path / 'basnet' / 'basnet.pth').is_file()
    assert 'db_root is still the placeholder' in fails(capsys, words.split()[2:-2])


def test_items_keep_image_and_mask_together(tmp_path):
    draw = np.random.default_rng(0)
    for folder in ('images/sub', 'masks/sub'):
        (tmp_path / folder).mkdir(parents=True)
    mask = np.zeros((50, 70), np.uint8)
    mask[10:30, 35:60] = 255
    Image.fromarray(np.stack([mask // 2 + draw.integers(0, 9, mask.shape, np.uint8)] * 3, 2)).save(
        tmp_path / 'images' / 'sub' / 'a.png')
    Image.fromarray(mask).save(tmp_path / 'masks' / 'sub' / 'a.png')
    dataset = FolderDataset(tmp_path / 'images', tmp_path / 'masks').transformed(TrainingView(40, 30))
    seen = set()
    for seed in range(12):
        item, again = dataset[0, seed], dataset[0, seed]
        assert torch.equal(item['image'], again['image'])
        assert (item['image'].shape, item['sal'].shape) == ((3, 30, 30), (1, 30, 30))
        sure = (item['sal'][0] == 0) | (item['sal'][0] == 1)
        assert sure.float().mean() > 0.8
        assert torch.equal((item['image'][0] > 0)[sure], (item['sal'][0] == 1)[sure])
        seen.add(tuple(item['sal'][0].sum(0).tolist()))
    assert len(seen) > 6  # crops and flips
    assert item['id'] == 'sub/a'


def test_scores_equal_loops():
    draw = np.random.default_rng(0)
    found, iou, mae, curves = [], [], [], []
    for height, width in ((9, 7), (5, 12), (4, 4)):
        truth = (draw.random((height, width)) < 0.4).astype(np.uint8)
        saliency = (0.6 * draw.random((height, width)) + 0.4 * truth).astype(np.float32)
        found.append(map_scores(saliency, truth))
        both = sum(s > 0.5 and t for s, t in zip(saliency.flat, truth.flat, strict=True))
        either = sum(s > 0.5 or t for s, t in zip(saliency.flat, truth.flat, strict=True))
        iou.append(both / either)
        mae.append(sum(abs(s - t) for s, t in zip(saliency.flat, truth.flat, strict=True)) / truth.size)
        curve = []
        for k in range(255):
            chosen = [t for s, t in zip(saliency.flat, truth.flat, strict=True) if s * 255 >= k]
            curve.append((sum(chosen) / max(len(chosen), 1), sum(chosen) / truth.sum()))
        curves.append(curve)
    best = 0.0
    for k in range(255):
        precision, recall = (np.mean([curve[k][i] for curve in curves]) for i in (0, 1))
        best = max(best, 1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    expected = {'mIoU': 100 * np.mean(iou), 'maxF': 100 * best, 'MAE': 100 * np.mean(mae)}
    assert read_scores(np.mean(found, axis=0)) == pytest.approx(expected, rel=1e-6)


def test_a_perfect_source_has_perfect_scores(db_root, monkeypatch):
    dataset = FolderDataset(db_root / 'Shapes' / 'images', db_root / 'Shapes' / 'saliency_supervised_model')
    samples = [sample for sample in dataset if sample['sal'].mean() > 0.05][:6]
    batches = [collate(samples[:4]), collate(samples[4:])]

    def perfect(images):
        return [sample['sal'].astype(np.float32) for image in images for sample in samples if sample['image'] is image]

    patience = []  # with a process whose share may take hours
    monkeypatch.setattr(distributed, 'gather_objects', lambda value, patient=False: patience.append(patient) or [value])
    figures = validate(perfect, batches)
    assert patience == [True]
    assert figures['mIoU'] > 97  # small segments are dropped
    assert figures['maxF'] == pytest.approx(100)
    assert figures['MAE'] == 0


def test_mistakes_are_one_sentence(shapes, tmp_path, capsys, thin):
    root = shapes.parent

    def error(*overrides: str) -> str:
        return fails(capsys, arguments(root, *overrides))

    (tmp_path / 'empty').mkdir()
    assert f'folder {tmp_path / "empty"} holds no image' in error(f'images={tmp_path / "empty"}')
    assert 'folder /nowhere does not exist' in error('images=/nowhere')
    assert 'folder /nowhere does not exist; make the masks' in error('masks=/nowhere')
    assert 'and 13 more; a mask needs the relative path of its image' in error('masks=Shapes/images')
    assert 'train_batch_size 19 is larger than the data set: Shapes all has 18' in error('train_batch_size=19')
    assert 'crop 40 is larger than resize 32' in error('crop=40')
    assert 'val_images and val_masks go together' in error('val_masks=Shapes/saliency_supervised_model')
    assert 'folder /nowhere does not exist' in error('val_images=/nowhere', 'val_masks=/nowhere')
    assert 'imagenet_moco is a ResNet-50' in error('pretraining=imagenet_moco')
    (tmp_path / 'file').write_text('')
    assert 'a file is in its place' in error(f'output_dir={tmp_path / "file"}')
    assert 'a file is in its place' in error(f'output_dir={tmp_path / "file" / "below"}')
    for path in (shapes / 'images').iterdir():
        path.write_bytes(path.read_bytes()[:300])
    assert '18 of 18 images in' in error()


@pytest.mark.parametrize('content', [
    {'conv1.weight': torch.zeros(64, 3, 7, 7), 'layer1.0.conv1.weight': torch.zeros(64, 64, 1, 1)},  # ResNet-50's
    {'inconv.weight': torch.zeros(64, 3, 3, 3)}])
def test_weights_of_another_network_are_refused(db_root, tmp_path, monkeypatch, capsys, content):
    def without_values() -> BASNet:
        with torch.device('meta'):
            return BASNet()

    (tmp_path / 'Shapes').symlink_to(db_root / 'Shapes')
    monkeypatch.setattr('saliency.train.BASNet', without_values)
    torch.save(content, tmp_path / 'other.pth')
    message = fails(capsys, arguments(tmp_path, f'pretraining={tmp_path / "other.pth"}'))
    assert 'does not fit this model (missing: ' in message
    assert 'set pretraining to the checkpoint of a ResNet-34 or a BASNet' in message
