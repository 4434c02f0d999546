"""Retrieval scored at 512x512 and K-means at the images' own sizes against the original implementation."""
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.voc import VOC_CLASSES
from segmentation.clustering import match_clusters, merge_clusters, score_clusters
from segmentation.feature_index import build_index
from segmentation.metrics import iou_of
from segmentation.objects import EmbeddedSplit, embed_split
from segmentation.retrieval import protocols_of
from tests.golden_scenes import GOLDENS, halves, label_map, object_mask, sha, vector

SIZE = 512


class GivenMaps(nn.Module):
    """Says of each image in turn what it was given: a mask, and one embedding in every pixel."""

    def __init__(self, masks: Sequence[np.ndarray], embeddings: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.given = iter(list(zip(masks, embeddings, strict=True)))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        mask, embedding = next(self.given)
        return {'saliency': 4 * torch.from_numpy(mask).float()[None, None] - 2,
                'embedding': torch.from_numpy(embedding).float()[None, :, None, None]}


def embed(truths: Sequence[np.ndarray], masks: Sequence[np.ndarray], embeddings: Sequence[np.ndarray],
          size: int | None) -> EmbeddedSplit:
    batches: Any = [{'image': torch.zeros(1, 3, SIZE, SIZE), 'semseg': [truth], 'shape': [truth.shape]}
                    for truth in truths]
    model: Any = GivenMaps(masks, embeddings)
    return embed_split(model, batches, torch.device('cpu'), len(VOC_CLASSES), keep_masks=True, size=size)


@pytest.fixture(scope='module')
def splits() -> tuple[EmbeddedSplit, EmbeddedSplit]:
    """The memory's and val's objects, scored at 512x512."""
    golden = GOLDENS['retrieval_512']
    truths, masks = [], []
    for name, height, width, classes, objects in golden['memory']:
        mask = object_mask(name, SIZE, SIZE, objects)
        if isinstance(classes, str):
            left, right = map(int, classes.split()[1:])
            truths.append(halves(height, width, left, right))
            mask |= mask[:, ::-1]
        else:
            truths.append(label_map(name, height, width, classes))
        masks.append(mask)
    memory = embed(truths, masks, [vector(item[0], golden['dim']) for item in golden['memory']], SIZE)
    val = embed([label_map(name, height, width, classes) for name, height, width, classes, *_ in golden['val']],
                [object_mask(item[0], SIZE, SIZE, item[4]) for item in golden['val']],
                [vector(f'memory/{k}', golden['dim']) + 0.25 * vector(name, golden['dim'])
                 for name, *_, k in golden['val']], SIZE)
    return memory, val


@pytest.mark.parametrize(('task', 'name'), [('retrieval', '21'), ('retrieval_7', '7')])
def test_retrieval(splits: tuple[EmbeddedSplit, EmbeddedSplit], task: str, name: str) -> None:
    memory, val = splits
    golden = GOLDENS['retrieval_512']['protocols'][name]
    ignored, scored = protocols_of(VOC_CLASSES, golden['ignore_classes'])[task]
    assert scored == golden['classes_of_mean']
    bank = build_index(memory, [item[0] for item in GOLDENS['retrieval_512']['memory']], VOC_CLASSES).without(ignored)
    assert bank.images.tolist() == golden['memory_images']
    assert bank.labels.tolist() == golden['memory_classes']
    predicted = np.where(val.prototypes.any(1), bank.vote(bank.search(val.prototypes)), 0)
    assert predicted.tolist() == golden['predicted']
    confusion = val.confusion(predicted, len(VOC_CLASSES), ignored)
    np.testing.assert_array_equal(confusion, golden['confusion'])
    np.testing.assert_array_equal(np.diag(confusion), golden['TP'])
    iou = iou_of(confusion)
    np.testing.assert_allclose(iou, golden['IoU'], rtol=0, atol=1e-12)
    assert iou[scored].mean() == pytest.approx(golden['mIoU'], rel=0, abs=1e-12)
    as_scored = replace(val, shapes=[(SIZE, SIZE)] * len(val.shapes))
    assert [sha(as_scored.paint(i, predicted, 0)) for i in range(len(predicted))] == golden['label_maps_sha256']


@pytest.mark.parametrize('count', [21, 30])
def test_kmeans_at_own_sizes(count: int) -> None:
    golden = GOLDENS['kmeans_own_size'][str(count)]
    items = golden['items']
    split = embed([label_map(*item[:4]) for item in items], [object_mask(item[0], SIZE, SIZE) for item in items],
                  [np.ones(2)] * len(items), None)
    confusion = split.confusion(np.array([item[4] for item in items]), count)
    np.testing.assert_array_equal(confusion, golden['confusion'])
    assert confusion.sum() == golden['pixels']
    matching = match_clusters(confusion)
    assert {str(cluster): int(label) for cluster, label in enumerate(matching)} == golden['matching']
    merged = merge_clusters(confusion, matching)
    np.testing.assert_allclose(iou_of(merged), golden['IoU'], rtol=0, atol=1e-12)
    scores = score_clusters(merged)
    for name, bar in (('mIoU', 1e-12), ('accuracy', 1e-12), ('NMI', 1e-9), ('ARI', 1e-9)):
        assert scores[name] == pytest.approx(golden[name], rel=0, abs=bar)
