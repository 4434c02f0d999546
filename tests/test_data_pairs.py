"""Views with masks: ranges, alignment, seeds, and the bound on redraws."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.image_set import ImageSet
from data.loaders import SeededSampler
from data.transforms import EvaluationTransform, LinearTrainTransform, denormalize, normalize, seeded
from data.views import ContrastivePair, ContrastiveView
from data.voc import VOCSegmentation
from models.backbones import IMAGENET
from utils.run.errors import UserError


def pairs(root: Path, **view) -> ImageSet:
    base = VOCSegmentation(root, 'trainaug', saliency='supervised_model', skip_without_saliency=True)
    return base.transformed(ContrastivePair(base, ContrastiveView(**{'size': 32, **view})))


def test_views(shapes: Path) -> None:
    sample = pairs(shapes)[3, 7]
    for view in ('query', 'key'):
        assert sample[view].shape == (3, 32, 32)
        assert sample[view].dtype == torch.uint8
        assert type(sample[view]) is torch.Tensor
        assert sample[view + '_mask'].shape == (32, 32)
        assert set(sample[view + '_mask'].unique().tolist()) == {0, 1}
        assert 0.01 < sample[view + '_mask'].float().mean() < 0.99
    assert not torch.equal(sample['query'], sample['key'])


def test_a_sample_depends_on_its_seed_alone(shapes: Path) -> None:
    data = pairs(shapes)
    first = data[3, 7]
    data[4, 8]
    torch.rand(5)
    before = torch.random.get_rng_state()
    again, other = data[3, 7], data[3, 8]
    assert torch.equal(first['query'], again['query'])
    assert torch.equal(first['key_mask'], again['key_mask'])
    assert not torch.equal(first['query'], other['query'])
    assert torch.equal(before, torch.random.get_rng_state())


def test_mask_moves_with_the_image() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    view = ContrastiveView(32, jitter_probability=0, grey_probability=0)
    for seed in range(8):
        with seeded(seed):
            draw = view.draw(mask)
        out, moved = view.make_image(image, draw), torch.from_numpy(view.make_mask(mask, draw))
        bright = out[0] > 127
        assert (bright != moved.bool()).float().mean() < 0.08


def test_views_without_foreground_are_redrawn(shapes: Path) -> None:
    folder = shapes / 'saliency_supervised_model'
    ids = VOCSegmentation(shapes, 'trainaug').ids

    def fill(name: str, value: int) -> None:
        with Image.open(folder / f'{name}.png') as mask:
            Image.new('L', mask.size, value).save(folder / f'{name}.png')

    fill(ids[0], 255)
    fill(ids[1], 0)
    data = pairs(shapes)
    assert data[0, 1]['id'] not in ids[:2]
    assert data[1, 1]['id'] not in ids[:2]
    for name in ids:
        fill(name, 0)
    with pytest.raises(UserError, match=r'50 images in a row, the last \S+, gave .*supervised_model look empty'):
        data[0, 1]


def test_sampler() -> None:
    sampler = SeededSampler(20, seed=3)
    first = list(sampler)
    assert sorted(i for i, _ in first) == list(range(20))
    assert list(sampler) == first
    sampler.start = 8
    assert list(sampler) == first[8:]
    assert len(sampler) == 12
    sampler.epoch, sampler.start = 1, 0
    assert list(sampler) != first
    assert len({seed for _, seed in first}) == 20


def test_linear_transform_fills_the_border_as_published() -> None:
    sample = {'image': np.full((40, 60, 3), 200, np.uint8), 'semseg': np.full((40, 60), 3, np.uint8)}
    borders = {}
    for label in (0, 255):
        transform = LinearTrainTransform(48, *IMAGENET, label, scale=(0.75, 0.75), angle=0)
        out = transform(sample)
        assert out['image'].shape == (3, 48, 48)
        assert out['semseg'].shape == (48, 48)
        assert out['semseg'].dtype == torch.int64
        assert set(out['semseg'].unique().tolist()) == {3, label}
        borders[label] = out['semseg'] == label
    assert borders[0].float().mean() == pytest.approx(1 - 0.75 ** 2, abs=0.06)
    assert torch.equal(borders[0], borders[255])
    black = torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225])
    torch.testing.assert_close(out['image'][:, 0, 0], -black)


def test_evaluation_transform_is_the_cubic_resize() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    out = EvaluationTransform(24, *IMAGENET)({'image': image, 'semseg': np.zeros((30, 50), np.uint8)})
    cubic = cv2.resize(image.astype(np.float32), (24, 24), interpolation=cv2.INTER_CUBIC)
    assert cubic.min() < -20
    assert cubic.max() > 275
    levels = denormalize(out['image'], *IMAGENET).astype(float)
    assert torch.equal(out['image'], normalize(levels, *IMAGENET))  # whole grey levels in 0..255
    assert np.abs(levels - cubic.clip(0, 255)).max() < 1.5
    assert out['semseg'].shape == out['shape'] == (30, 50)
