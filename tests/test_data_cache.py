"""Decoded samples in memory: the same samples, for every worker, or a clear refusal."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data import cache
from data.cache import SampleCache
from data.folder import FolderDataset
from data.loaders import pretrain_loader
from data.pairs import SeededDataset
from data.transforms import LinearTrainTransform
from data.voc import VOCSegmentation
from models.resnet import IMAGENET
from utils.config.load import load_config
from utils.config.schema import Pretrain
from utils.run import parallel
from utils.run.errors import UserError


def loader(folder: Path, *overrides: str):
    return pretrain_loader(load_config('configs/demo/env.yml', 'configs/demo/pretrain.yml', Pretrain, [
        f'db_root={folder}', 'train_batch_size=4', 'moco_kwargs.K=8', 'device=cpu', *overrides]), *IMAGENET)[0]


def test_cached_samples_are_those_of_the_files(shapes: Path) -> None:
    plain = VOCSegmentation(shapes, 'trainaug', semseg=True, saliency='supervised_model')
    cached = VOCSegmentation(shapes, 'trainaug', semseg=True, saliency='supervised_model')
    cached.cache = SampleCache(cached.load, len(cached))
    samples = [plain.load(index) for index in range(len(plain))]
    assert len({sample['image'].shape for sample in samples}) > 1
    shutil.rmtree(shapes)
    for index, sample in enumerate(samples):
        found = cached.load(index)
        assert found.keys() == sample.keys()
        assert found['id'] == sample['id']
        for name in ('image', 'semseg', 'sal'):
            assert found[name].dtype == np.uint8
            assert np.array_equal(found[name], sample[name])


def test_a_plain_folder_is_cached_too(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / 'images', tmp_path / 'plain' / 'images')
    shutil.copytree(shapes / 'saliency_supervised_model', tmp_path / 'plain' / 'saliency_masks')
    base = FolderDataset(tmp_path / 'plain' / 'images', tmp_path / 'plain' / 'saliency_masks')
    samples = [base.load(index) for index in range(len(base))]
    base.cache = SampleCache(base.load, len(base))
    shutil.rmtree(tmp_path / 'plain')
    for index, sample in enumerate(samples):
        found = base[index]
        assert found['id'] == sample['id']
        assert np.array_equal(found['image'], sample['image'])
        assert np.array_equal(found['sal'], sample['sal'])


def test_samples_lie_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, 'BLOCK', 1000)
    draw = np.random.default_rng(0)
    samples = [{'id': str(i), 'image': draw.integers(0, 256, (side, 7, 3), np.uint8), 'sal': draw.integers(
        0, 2, (side, 7), np.uint8)} for i, side in enumerate((20, 5, 60, 1, 30, 30))]
    found = SampleCache(samples.__getitem__, len(samples))
    assert [len(block) for block in found.blocks] == [1000, 1260, 1000, 1000, 1000]
    for index, sample in enumerate(samples):
        assert found[index].keys() == sample.keys()
        assert all(np.array_equal(found[index][name], sample[name]) for name in sample)


def test_pretraining_takes_the_same_pairs_from_memory_in_every_worker(shapes: Path) -> None:
    expected = list(loader(shapes.parent, 'num_workers=0'))
    cached = loader(shapes.parent, 'num_workers=2', 'cache=ram')
    shutil.rmtree(shapes)
    found = list(cached)
    assert len(found) == len(expected) == 3
    for batch, other in zip(found, expected, strict=True):
        assert batch['id'] == other['id']
        for name in ('query', 'key', 'query_mask', 'key_mask'):
            assert torch.equal(batch[name], other[name])


def test_batches_are_pinned_for_a_gpu_alone(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert not loader(shapes.parent, 'device=cpu').pin_memory
    assert loader(shapes.parent, 'device=auto').pin_memory
    assert loader(shapes.parent, 'num_workers=2').persistent_workers


def test_random_transforms_leave_the_memory_as_it_is(shapes: Path) -> None:
    base = VOCSegmentation(shapes, 'trainaug', semseg=True, transform=LinearTrainTransform(32, *IMAGENET))
    base.cache = SampleCache(base.load, len(base))
    data = SeededDataset(base)
    first, other = data[2, 5], data[2, 6]
    assert not torch.equal(first['image'], other['image'])
    assert torch.equal(first['image'], data[2, 5]['image'])


def test_too_little_memory_is_an_error(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = VOCSegmentation(shapes, 'trainaug', saliency='supervised_model')
    need = sum(base.load(index)['sal'].size * 4 for index in range(len(base)))
    monkeypatch.setattr(cache, 'available_memory', lambda: int(1.2 * need))
    with pytest.raises(UserError, match=r'cache: ram needs .* GB for 12 decoded images.*set cache: none'):
        SampleCache(base.load, len(base))
    for enough in (int(1.3 * need), None):
        monkeypatch.setattr(cache, 'available_memory', lambda enough=enough: enough)
        assert SampleCache(base.load, len(base)).end == need


def test_a_corrupt_file_is_named(shapes: Path) -> None:
    base = VOCSegmentation(shapes, 'trainaug', saliency='supervised_model')
    path = base.image_path(7)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=path.name):
        base.cache = SampleCache(base.load, len(base))


def test_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.setattr(parallel, 'CONTAINER', tmp_path)
    free = parallel.available_memory()
    assert (free is not None) == Path('/proc/meminfo').exists()
    if free is not None:
        assert 2 ** 24 < free < 2 ** 50
        (tmp_path / 'memory.stat').write_text('anon 300000\nfile 900000\nshmem 100000\n')
        (tmp_path / 'memory.max').write_text('1000000\n')
        assert parallel.available_memory() == 600000
        monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
        assert parallel.available_memory() == 150000
        monkeypatch.delenv('LOCAL_WORLD_SIZE')
        monkeypatch.setattr(parallel, '_affinities', [frozenset({core}) for core in range(3)])  # tasks of SLURM
        assert parallel.available_memory() == 200000
        (tmp_path / 'memory.max').write_text('max\n')
        assert 2 ** 22 < parallel.available_memory() < 2 ** 48


def test_no_more_workers_than_cores(shapes, recwarn) -> None:
    assert loader(shapes.parent, 'num_workers=999').num_workers == parallel.available_cores()
    assert not [warning for warning in recwarn if 'worker' in str(warning.message)]
