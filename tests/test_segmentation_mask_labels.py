"""From clusters of masks to label maps, against figures of the published code of MaskDistill."""
import hashlib

import numpy as np
import pytest

from data.coco import box_iou, read_mask
from segmentation.clustering import kmeans
from segmentation.mask_labels import (
    classes_of_clusters,
    cluster_confidence,
    confident,
    label_map,
    standardise,
)
from tests import golden_transformers as inputs
from tests.golden_inputs import generator
from tests.golden_transformers import GOLDENS


@pytest.mark.parametrize('name', ['easy5', 'easy20'])
def test_clusters(name):
    golden = GOLDENS['clustering'][name]
    features, classes = inputs.features(name, **golden['what'])
    points, count = standardise(features), golden['what']['classes']
    assert points.astype(np.float64).sum() == pytest.approx(golden['whitened_normalised']['sum'], abs=1e-5)
    np.testing.assert_allclose(points[0, :8], golden['whitened_normalised']['first'], atol=1e-6)
    found = kmeans(points, count, 1234)
    labels = classes_of_clusters(found.ids, classes, count, count)
    assert labels[found.ids].tolist() == golden['n_init_3']['assignment']
    certain = cluster_confidence(points, found.centres)
    assert ((certain > 0) & (certain <= 1)).all()


def test_features_that_are_constant_or_nothing():
    points = standardise(np.array([[1.0, 3, 0], [1, 5, 0], [1, 5, 0]]))
    assert np.isfinite(points).all()
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    assert not standardise(np.zeros((2, 3))).any()
    assert cluster_confidence(np.eye(2), np.eye(2)[:1]).tolist() == [1, 1]
    assert cluster_confidence(np.zeros((1, 2)), np.zeros((2, 2))).tolist() == [1]


def test_classes_of_clusters():
    draw = generator('matching')
    clusters = draw.integers(0, 6, 300)
    classes = (clusters * 5 + draw.integers(0, 3, 300) + 1) % 6
    golden = GOLDENS['clustering']['hungarian']
    assert [*enumerate(classes_of_clusters(clusters, classes, 6, 6).tolist())] == [*map(tuple, golden['match'])]
    majority = classes_of_clusters(clusters, classes % 4, 6, 4)
    assert [*enumerate(majority.tolist())] == [*map(tuple, golden['majority'])]
    assert classes_of_clusters(np.array([0, 0, 1]), np.array([2, -1, -1]), 2, 3)[0] == 2  # unknown ones have no vote


def test_box_iou():
    golden = GOLDENS['iou_box']
    box, *others = [(x, y, right - x, below - y) for x, y, right, below in (golden['box'], *golden['others'])]
    np.testing.assert_allclose(box_iou(box, others), golden['iou'], atol=1e-8)  # of float32


def test_the_most_confident_of_an_image():
    images, scores = np.array([0, 0, 1, 0, 1]), np.array([0.5, 0.9, 0.2, 0.9, 0.3])
    best = confident(images, scores, 1.1)
    assert np.flatnonzero(best).tolist() == [entry['id'] for entry in GOLDENS['most_confident']['kept']]
    assert np.flatnonzero(confident(images, scores, 0.9)).tolist() == [1, 3, 4]
    assert np.flatnonzero(confident(images, scores, 0.9, keep_best=False)).tolist() == [1, 3]


@pytest.mark.parametrize('least', ['0.9', '0.95', '1.0', '0.0'])
def test_label_maps_of_detections(least):
    golden, found = GOLDENS['gen_segmentation'][least], inputs.detections('a', 6, 6, 60, 80, classes=6)
    images, scores = np.array([e['image_id'] for e in found]), np.array([e['score'] for e in found])
    kept = confident(images, scores, float(least))
    assert [[e['image_id'], e['category_id'], e['score']] for e, good in zip(found, kept, strict=True)
            if good] == golden['kept']
    same = []
    for image in range(6):
        members = np.flatnonzero(images == image)
        masks = [read_mask(found[i] | {'height': 60, 'width': 80})[1] for i in members]
        labels = [found[i]['category_id'] + 1 for i in members]
        drawn = label_map(masks, labels, kept[members], (60, 80), 'published')
        name = f'2010_{image:06d}'
        counts = zip(*np.unique(drawn, return_counts=True), strict=True)
        assert {str(k): int(n) for k, n in counts} == golden['counts'][name]
        assert hashlib.md5(drawn.tobytes()).hexdigest() == golden['md5_of_bytes'][name]
        over = np.zeros((60, 80), np.uint8)
        for mask, label, good in zip(masks, labels, kept[members], strict=True):
            over[mask & good] = label
        same.append(bool((over == drawn).all()))
    assert same == golden['same_as_painting_all_in_order']


def test_overlaps():
    one, two = np.zeros((2, 4, 4), bool)
    one[1:3, 1:3], two[2:4, 2:4] = True, True
    both = [True, True]
    assert (label_map([one, two], [1, 2], both, (4, 4)) == one * 1).all()  # the later one meets the earlier one
    best = label_map([one, two], [1, 2], both, (4, 4), 'best')
    assert (best == one + 2 * (two & ~one)).all()
    assert label_map([one, two], [1, 2], [True, False], (4, 4), ignore=True)[3, 3] == 255
    assert (label_map([one], [1], [False], (4, 4)) == 255).all()
    assert (label_map([], [], [], (2, 3)) == 255).all()
