"""The benchmark of predict.py runs with either kind of model."""
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import many_images, prediction


@pytest.mark.parametrize('model', ['linear', 'clusters'])
def test_table(model: str, capsys) -> None:
    torch.manual_seed(0)
    prediction.main(['--model', model, '--images', '2', '--backbone', 'resnet18', '--size', '64', '--rounds', '1',
                     '--device', 'cpu'])
    lines = capsys.readouterr().out.splitlines()[-4:]  # the log of the weights may go before them
    assert f'2 images of 500 x 375, {model}, resnet18 at 64 px' in lines[0]
    assert [line.split('  ')[0] for line in lines[1:3]] == ['network alone', 'predict.py']
    assert lines[3].startswith('predict.py / network alone: ')


def test_the_clusters_see_objects(tmp_path) -> None:
    torch.manual_seed(0)
    image = prediction.read_image(prediction.draw(tmp_path, 1)[0])
    labels = prediction.clusters(image, 'resnet18', 64, torch.device('cpu'))(image)
    assert 0.2 < np.mean(labels > 0) < 0.8


def test_many_images(monkeypatch, capsys) -> None:
    drawn: list[int] = []

    def measure(script: str, folder: Path, output: str, processes: int) -> tuple[float, float]:
        drawn.append(len(list((folder / 'images').rglob('*.png'))))
        assert not (folder / output).exists()  # the name of one run alone
        (folder / output).mkdir()
        return 10 + drawn[-1] / (2 * processes), 300.4

    monkeypatch.setattr(many_images, 'measure', measure)
    many_images.main(['--images', '30', '--scripts', 'segmentation/predict.py'])
    assert drawn == [3, 3, 30, 30]
    rows = [[cell.strip() for cell in line.split('|')[2:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert sorted(rows) == [['1', '3', '300', ''], ['1', '30', '300', '2'], ['2', '3', '300', ''],
                            ['2', '30', '300', '4']]


@pytest.mark.parametrize('script', many_images.SCRIPTS)
def test_scripts_predict_many_images(script: str, tmp_path: Path) -> None:
    many_images.save_networks(tmp_path)
    many_images.draw(tmp_path / 'images', 995, 1005)
    seconds, peak = many_images.measure(script, tmp_path, 'output', 1)
    assert seconds > 0
    assert 100 < peak < 4000
    assert {path.parent.name for path in (tmp_path / 'output').rglob('0*/*.png')} == {'00000', '00001'}
    assert (tmp_path / 'coco.json').exists() is ('--coco' in many_images.SCRIPTS[script])
