"""Loaders: the same samples in every worker, no more workers than cores, pinned memory for a GPU alone."""
import logging
import os
from pathlib import Path

import pytest
import torch

from data import loaders
from data.loaders import collate_pairs, open_images, train_loader
from data.transforms import LinearTrainTransform
from data.views import ContrastivePair, ContrastiveView
from data.voc import VOCSegmentation
from models.backbones import IMAGENET
from utils.config.load import load_config
from utils.config.schema import Pretrain


def loader(folder: Path, *overrides: str):
    p = load_config('configs/demo/env.yml', 'configs/demo/pretrain.yml', Pretrain, [
        f'db_root={folder}', 'train_batch_size=4', 'moco_kwargs.K=8', 'device=cpu', *overrides])
    images = open_images(p, p.train_db_name, p.train_split, saliency=p.saliency, skip=True)
    pair = ContrastivePair(images, ContrastiveView(**p.augmentation_kwargs))
    return train_loader(p, images.transformed(pair))


def test_workers_give_the_same_pairs_and_the_key_cache_has_no_effect(shapes: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    expected = list(loader(shapes.parent, 'num_workers=0'))
    assert 'cache: ram' not in caplog.text
    found = list(loader(shapes.parent, 'num_workers=2', 'cache=ram'))
    assert caplog.text.count('cache: ram has no effect') == 1
    assert len(found) == len(expected) == 3
    for batch, other in zip(found, expected, strict=True):
        assert batch['id'] == other['id']
        for name in ('query', 'key', 'query_mask', 'key_mask'):
            assert torch.equal(batch[name], other[name])


@pytest.mark.parametrize('step', [1, 8])
def test_pairs_bring_the_indices_of_their_foreground(shapes: Path, step: int) -> None:
    images = loader(shapes.parent, 'num_workers=0').dataset
    batch = collate_pairs([images[i, i] for i in range(3)], step)
    for view in ('query', 'key'):
        mask = batch[f'{view}_mask'][:, ::step, ::step]
        assert mask.shape[0] == 3
        assert 0 < mask.float().mean() < 1
        found = torch.zeros(mask.numel(), dtype=torch.uint8)
        found[batch[f'{view}_pixels']] = 1
        assert torch.equal(found.view(mask.shape), mask)
        assert batch[f'{view}_pixels'].dtype == torch.int32


def test_batches_are_pinned_for_a_gpu_alone(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert not loader(shapes.parent, 'device=cpu').pin_memory
    assert loader(shapes.parent, 'device=auto').pin_memory
    assert loader(shapes.parent, 'num_workers=2').persistent_workers


def test_random_transforms_depend_on_the_seed_alone(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'trainaug', semseg=True).transformed(LinearTrainTransform(32, *IMAGENET))
    first, other = data[2, 5], data[2, 6]
    assert not torch.equal(first['image'], other['image'])
    assert torch.equal(first['image'], data[2, 5]['image'])


@pytest.mark.parametrize(('cores', 'given', 'workers'), [
    (8, 'null', 7), (8, 0, 0), (8, 1, 1), (8, 8, 8), (8, 9, 7), (8, 999, 7), (1, 'null', 1), (1, 999, 1)])
def test_workers_are_all_cores_but_one_by_default(shapes: Path, cores: int, given: object, workers: int,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, 'available_cores', lambda: cores)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)))  # PyTorch warns of more
    assert loader(shapes.parent, f'num_workers={given}').num_workers == workers
