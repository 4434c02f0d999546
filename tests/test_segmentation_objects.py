"""The network's objects of a batch and of a split, against the plain way over pixels."""
from pathlib import Path

import numpy as np
import pytest
import torch

from data.transforms import split_mask
from models.segmentation import resize
from segmentation.objects import MaskFile, embed_split, gather_masks, pack, read_masks, save_masks, unpack
from tests.colours import SIDE, ColourModel, loader_of, random_blobs
from utils.run.errors import UserError

CPU = torch.device('cpu')


@pytest.mark.parametrize('from_network', [True, False])
def test_prototypes_equal_the_plain_way(from_network: bool) -> None:
    draw = np.random.default_rng(1)
    truths, masks = random_blobs(draw, 4, 5)
    loader = loader_of(truths, masks, draw)
    split = embed_split(ColourModel(), loader, CPU, 5, from_network=from_network, min_component=0.02)
    expected = []
    for batch in loader:
        maps = ColourModel().maps(batch['image'])
        embedding, scores = (resize(maps[name], (SIDE, SIDE)) for name in ('embedding', 'saliency'))
        for i, mask in enumerate(batch['sal']):
            seen = (scores[i, 0] > 0.5).numpy().astype(np.uint8) if from_network else mask
            objects, count = split_mask(seen, 0.02)
            rows, columns = (np.arange(SIDE) * side // SIDE for side in objects.shape)  # nearest
            small = objects[rows][:, columns]
            for k in range(1, count + 1):
                weights = torch.from_numpy(small == k) * (scores[i, 0] if from_network else 1)
                summed = (embedding[i] * weights).sum((1, 2))
                expected.append((summed / summed.norm()).numpy())
    assert len(split) == len(expected) > 4
    np.testing.assert_allclose(split.prototypes, expected, atol=1e-5)


def test_split_mask_by_hand() -> None:
    mask = np.array([[1, 1, 0, 0, 1],
                     [0, 0, 1, 0, 0],
                     [0, 0, 0, 0, 1],
                     [1, 0, 0, 1, 1]], np.uint8)
    objects, count = split_mask(mask, 0.1)  # of 20 pixels: 2 or more
    assert count == 2
    np.testing.assert_array_equal(objects, [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 2], [0, 0, 0, 2, 2]])
    objects, count = split_mask(mask, 0.05)
    assert count == 4
    assert len(np.unique(objects)) == 5
    assert split_mask(np.zeros((3, 3), np.uint8), 0.01)[1] == 0
    assert split_mask(mask)[1] == 1


@pytest.mark.parametrize('min_component', [None, 0.02])
def test_masks_are_kept_as_they_were_found_with_and_without_ground_truth(min_component: float | None) -> None:
    draw = np.random.default_rng(2)
    truths, masks = random_blobs(draw, 4, 5)
    loader = loader_of(truths, masks, draw)
    options = {'keep_masks': True, 'min_component': min_component}
    with_truth = embed_split(ColourModel(), loader, CPU, 5, **options)
    plain = embed_split(ColourModel(), [{k: v for k, v in batch.items() if k != 'semseg'} for batch in loader], CPU, 1,
                        **options)
    assert not plain.inside.any()
    assert list(plain.masks) == list(with_truth.masks)
    assert all(unpack(mask).shape == (SIDE, SIDE) for mask in plain.masks)
    np.testing.assert_array_equal(plain.prototypes, with_truth.prototypes)
    labels = np.arange(1, len(plain) + 1)
    for image in range(4):
        np.testing.assert_array_equal(plain.paint(image, labels, 0), with_truth.paint(image, labels, 0))


def test_masks_come_back_and_belong_to_their_prototypes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    masks, prototypes = [draw.random(shape) < 0.3 for shape in ((5, 7), (64, 3), (1, 1))], draw.random((3, 2))
    path = tmp_path / 'masks.npz'
    save_masks(path, prototypes, [pack(mask) for mask in masks])
    for mask, packed in zip(masks, read_masks(path, prototypes), strict=True):
        np.testing.assert_array_equal(unpack(packed), mask)
    with pytest.raises(UserError, match=r'masks.npz holds the masks of other objects than those saved beside it; run'):
        read_masks(path, prototypes[::-1])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r'masks.npz is damaged or of an earlier version; run its script again'):
        read_masks(path, prototypes)
    save_masks(path, prototypes, [])  # none are kept: those of an earlier run do not stay
    assert read_masks(path, prototypes) is None


def test_masks_of_several_processes_come_some_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes have taken five batches in turn, of two images each but for the last, whose masks are 0, 1, ..."""
    counts = [[[1, 2], [0, 3], [2]], [[1, 1], [4, 0]]]  # masks of each image of each batch of each process
    numbers = iter(range(100))
    of_batch: dict[tuple[int, int], list[bytes]] = {
        (rank, turn): [f'{next(numbers)}'.encode() for _ in range(sum(counts[rank][turn]))]
        for turn in range(3) for rank in range(2) if turn < len(counts[rank])}
    own = MaskFile()
    own.extend(of_batch[1, 0] + of_batch[1, 1])
    parts = [[[(np.zeros((count, 4)), 'shape') for count in batch] for batch in batches] for batches in counts]
    turns = iter([(0, 1), (2,)])

    def gather(mine: list[list[bytes]]) -> list[list[list[bytes]]]:
        turn = next(turns)
        assert mine == [of_batch[1, t] for t in turn if (1, t) in of_batch]
        return [[of_batch[0, t] for t in turn], mine]

    monkeypatch.setattr('segmentation.objects.BATCHES', 2)
    monkeypatch.setattr('utils.run.distributed.rank', lambda: 1)
    monkeypatch.setattr('utils.run.distributed.is_main', lambda: True)
    monkeypatch.setattr('utils.run.distributed.gather_objects', gather)
    masks = gather_masks(own, parts)
    assert list(masks) == [f'{number}'.encode() for number in range(len(masks))]
    assert len(masks) == sum(map(len, of_batch.values()))
    assert (masks[-1], masks[1:3]) == (masks[len(masks) - 1], [b'1', b'2'])


def test_an_image_that_travels_with_its_batch_is_kept_small_beside_its_ground_truth() -> None:
    draw = np.random.default_rng(2)
    truths, masks = random_blobs(draw, 2, 5)
    batch, image = loader_of(truths, masks, draw)[0], draw.integers(0, 255, (500, 400, 3), np.uint8)
    split = embed_split(ColourModel(), [{**batch, 'original': [None, image]}], CPU, 5)
    assert [[part.shape for part in picture] for picture in split.pictures] == [[], [(200, 160, 3), truths[1].shape]]
    del batch['semseg']
    assert len(embed_split(ColourModel(), [{**batch, 'original': [None, image]}], CPU, 5).pictures[1]) == 1
