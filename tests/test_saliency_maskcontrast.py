"""Masks of a pretrained encoder's saliency head: at which size, from which scores, of which files."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.transforms import normalize
from models.build import pretrained_encoder
from models.segmentation import ContrastiveSegmentationModel
from saliency import predict
from saliency.methods import build_source
from tests.golden_inputs import photo
from utils.run.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path):
    """checkpoint(config): the path of a pretraining's, of a ResNet-18 with random weights, and its encoder."""
    def checkpoint(config: dict | None, **kwargs) -> tuple[Path, ContrastiveSegmentationModel]:
        torch.manual_seed(0)
        encoder, path = ContrastiveSegmentationModel('resnet18', ndim=4, **kwargs), tmp_path / 'checkpoint.pth.tar'
        state = {f'module.model_q.{name}': value for name, value in encoder.state_dict().items()}
        torch.save({'model': state} | ({} if config is None else {'config': config}), path)
        return path, encoder.eval()
    return checkpoint


CONFIG = {'backbone': 'resnet18', 'model_kwargs': {'ndim': 4}}


@pytest.mark.parametrize(('views', 'size'), [
    ({'size': 96, 'scale': [0.2, 1.0]}, 136), ({'size': 48, 'scale': [0.5, 1.0]}, 56),
    ({'size': 64, 'scale': [1, 1]}, 64), ({'size': 4, 'scale': [1, 1]}, 8), ({}, 312)])
def test_objects_look_as_large_as_in_the_crops(checkpoint, views, size) -> None:
    path, _ = checkpoint({**CONFIG, 'augmentation_kwargs': views})
    assert pretrained_encoder(path)[1] == size
    low, high = views.get('scale', (0.2, 1.0))
    crops = np.random.default_rng(0).uniform(low, high, 100_000)
    assert np.mean(crops ** -0.5) * views.get('size', 224) == pytest.approx(size, abs=4)  # to the stride of 8


def test_the_map_is_the_score_where_the_image_is(checkpoint) -> None:
    path, encoder = checkpoint(CONFIG)
    images = [photo('wide', 40, 70), photo('high', 50, 30)]
    maps = build_source('maskcontrast', 'cpu', weights=path, input_size=64)(images)
    for image, found in zip(images, maps, strict=True):
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC)
        with torch.no_grad():
            scores = encoder.maps(normalize(small, encoder.backbone.mean, encoder.backbone.std)[None])['saliency']
        scores = F.interpolate(scores, image.shape[:2], mode='bilinear')[0, 0]
        np.testing.assert_allclose(found, torch.sigmoid(scores), atol=1e-5)
        assert ((found > 0.5) == (scores > 0).numpy()).mean() > 0.999


def test_the_command_writes_them(checkpoint, tmp_path: Path) -> None:
    path, _ = checkpoint(CONFIG)
    state = torch.load(path)
    state['model']['module.model_q.classification_head.weight'].abs_()  # behind a ReLU: all of it is an object
    torch.save(state, path)
    (tmp_path / 'images').mkdir()
    cv2.imwrite(str(tmp_path / 'images' / 'a.png'), photo('command', 40, 60))
    predict.main(['--images', str(tmp_path / 'images'), '--output', str(tmp_path / 'masks'), '--method',
                  'maskcontrast', '--weights', str(path), '--input-size', '48'])
    assert (cv2.imread(str(tmp_path / 'masks' / 'a.png'), cv2.IMREAD_UNCHANGED) == 255).all()


@pytest.mark.parametrize(('state', 'sentence'), [
    ({'backbone.a': 1, 'decoder.4.weight': 1}, 'is a linear model'), ({'inconv.weight': 1}, 'is a BASNet .--method'),
    ({'conv1.weight': 1, 'layer1.0.conv1.weight': 1}, 'is a backbone alone')])
def test_files_of_other_networks_are_called_by_their_names(tmp_path: Path, state, sentence) -> None:
    torch.save({name: torch.ones(size) for name, size in state.items()}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=sentence):
        build_source('maskcontrast', weights=tmp_path / 'other.pth')


@pytest.mark.parametrize(('config', 'sentence'), [
    (None, 'does not fit this model .* is taken for one of a ResNet-50'),  # it is of a ResNet-18
    ({**CONFIG, 'model_kwargs': {'ndim': 4, 'use_classification_head': False}}, 'has no saliency head'),
    ('resnet18', 'damaged config'), ({**CONFIG, 'model_kwargs': {'ndim': 4, 'dim': 4}}, 'damaged config'),
    ({**CONFIG, 'augmentation_kwargs': {'size': '96'}}, 'damaged config')])
def test_what_predicts_no_masks_is_refused(checkpoint, config, sentence) -> None:
    path, _ = checkpoint(config)
    with pytest.raises(UserError, match=sentence):
        build_source('maskcontrast', weights=path)
