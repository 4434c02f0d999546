"""Whitening, K-means, the match of clusters to classes and the figures, against slow loops."""
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from segmentation.cluster_model import ClusterModel
from segmentation.clustering import (
    Whitening,
    adjusted_rand_index,
    kmeans,
    match_clusters,
    merge_clusters,
    normalized_mutual_information,
    score_clusters,
)
from segmentation.metrics import iou_of
from segmentation.objects import embed_split
from tests.colours import ColourModel, loader_of, random_blobs, slow_confusion

CPU = torch.device('cpu')


def test_kmeans_of_other_points_than_it_was_fitted_on() -> None:
    fit = np.array([[0.0], [0.1], [10.0], [10.1]])
    a, b, c = kmeans(np.array([[4.0], [6.0], [0.0]]), 2, 0, fit).ids
    assert a == c != b
    draw = np.random.default_rng(0)
    train, val = draw.standard_normal((50, 6)), draw.standard_normal((9, 6))
    centred = train - train.mean(0)
    whitening = Whitening.fit(train, 0)
    np.testing.assert_allclose(np.cov(whitening(train).T), np.eye(6), atol=1e-10)
    projected = whitening(val)  # Mahalanobis distances to the mean of train
    expected = np.einsum('ni,ij,nj->n', val - train.mean(0), np.linalg.inv(np.cov(centred.T)), val - train.mean(0))
    np.testing.assert_allclose((projected ** 2).sum(1), expected, rtol=1e-8)


@pytest.mark.parametrize('min_component', [None, 0.03])
@pytest.mark.parametrize('num_clusters', [4, 9])
def test_confusion_match_and_miou_equal_the_slow_way(min_component: float | None, num_clusters: int) -> None:
    draw = np.random.default_rng(num_clusters)
    truths, masks = random_blobs(draw, 7, 5)
    masks[3][:] = 0
    split = embed_split(ColourModel(), loader_of(truths, masks, draw), CPU, 5, from_network=False, keep_masks=True,
                        min_component=min_component)
    clusters = draw.integers(0, num_clusters, len(split))
    painted = [split.paint(i, clusters + 1, 0) for i in range(7)]
    if min_component is None:
        assert split.image.tolist() == list(range(7))
        for i in range(7):
            np.testing.assert_array_equal(painted[i], masks[i] * (clusters[i] + 1))
    expected = slow_confusion(truths, painted, 5, num_clusters + 1)
    confusion = split.confusion(clusters + 1, num_clusters + 1)
    np.testing.assert_array_equal(confusion, expected)

    iou = np.zeros(expected.shape)
    for c in range(5):
        for k in range(num_clusters + 1):
            union = expected[c].sum() + expected[:, k].sum() - expected[c, k]
            iou[c, k] = expected[c, k] / union if union else 0
    if num_clusters == 4:
        best = max(permutations(range(5)), key=lambda classes: sum(iou[c, k] for k, c in enumerate(classes)))
    else:
        best = tuple(max(range(5), key=lambda c: (iou[c, k], -c)) for k in range(num_clusters + 1))
    mapping = match_clusters(confusion)
    assert sum(iou[c, k] for k, c in enumerate(mapping)) == pytest.approx(sum(iou[c, k] for k, c in enumerate(best)))
    if num_clusters == 9:
        assert tuple(mapping) == best
    mapped = slow_confusion(truths, [mapping[p] for p in painted], 5, 5)
    merged = merge_clusters(confusion, mapping)
    np.testing.assert_array_equal(merged, mapped)
    scores = score_clusters(merged)
    slow = [mapped[c, c] / (mapped[c].sum() + mapped[:, c].sum() - mapped[c, c]) for c in range(5)]
    np.testing.assert_allclose(iou_of(merged), slow, rtol=1e-12)
    assert scores['mIoU'] == pytest.approx(np.mean(slow))
    assert scores['accuracy'] == pytest.approx(np.trace(mapped) / mapped.sum())


def test_hungarian_gives_each_class_its_share() -> None:
    # 4 clusters of class 0, which majority gives all to it; class 1 is in none of them the most
    confusion = np.array([[50, 40, 30, 30], [1, 2, 10, 15]])
    assert match_clusters(confusion).tolist() == [0, 0, 0, 1]
    mapping = match_clusters(confusion, 'hungarian')
    assert np.bincount(mapping).tolist() == [2, 2]
    assert mapping.tolist() == [0, 0, 1, 1]
    square = np.array([[5, 9], [8, 1]])
    assert match_clusters(square, 'hungarian').tolist() == match_clusters(square).tolist() == [1, 0]


def test_nmi_and_ari_from_a_contingency_table() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 5, 4000)
    clusters = np.where(draw.random(4000) < 0.5, truth, draw.integers(0, 9, 4000))
    table = np.zeros((5, 9), np.int64)
    np.add.at(table, (truth, clusters), 1)
    assert normalized_mutual_information(table) == pytest.approx(normalized_mutual_info_score(truth, clusters))
    assert adjusted_rand_index(table) == pytest.approx(adjusted_rand_score(truth, clusters))
    huge = table * 10 ** 9  # pairs of 4e12 pixels are beyond 64 bits
    assert normalized_mutual_information(huge) == pytest.approx(normalized_mutual_information(table))
    assert adjusted_rand_index(huge) == pytest.approx(adjusted_rand_index(table), abs=1e-3)
    same, one_cluster = np.diag([3, 4]), np.array([[5, 0], [5, 0]])
    assert (normalized_mutual_information(same), adjusted_rand_index(same)) == (1, 1)
    assert (normalized_mutual_information(one_cluster), adjusted_rand_index(one_cluster)) == (0, 0)


def test_an_object_gets_the_same_cluster_alone_and_in_its_split() -> None:
    draw = np.random.default_rng(3)
    prototypes = draw.standard_normal((700, 300)).astype(np.float32)  # so many that PCA is randomised
    whitening = Whitening.fit(prototypes, 0)
    found = kmeans(whitening(prototypes), 20, 0)
    kept = ClusterModel(whitening, found.centres, np.arange(-1, 20), None, {})
    assert [int(kept.label(prototype[None])[0]) for prototype in prototypes] == found.ids.tolist()
    distances = [[((point - centre) ** 2).sum() for centre in found.centres] for point in whitening(prototypes)]
    assert found.ids.tolist() == np.argmin(distances, 1).tolist()


@pytest.mark.filterwarnings('error')
def test_one_image_is_a_cluster_of_its_own() -> None:
    point = np.full((1, 4), 0.5, np.float32)
    whitened = Whitening.fit(point, 0)(point)
    assert whitened.tolist() == [[0]]
    assert kmeans(whitened, 1, 0).ids.tolist() == [0]


def test_kept_whitening_has_no_directions_of_rounding() -> None:
    draw = np.random.default_rng(4)
    few = draw.standard_normal((5, 8)).astype(np.float32)  # five points differ in four directions
    points = Whitening.fit(few, 0)(few)
    assert points.shape == (5, 4)
    np.testing.assert_allclose(np.cov(points.T), np.eye(4), atol=1e-6)
    assert np.isfinite(Whitening.fit(np.ones((3, 2)), 0)(np.ones((1, 2)))).all()


def test_without_whitening_distances_are_those_of_the_prototypes() -> None:
    points = np.random.default_rng(0).standard_normal((50, 6)) * [9, 1, 1, 1, 0.1, 0.01]
    np.testing.assert_allclose(pdist(Whitening.fit(points, 0, False)(points)), pdist(points), rtol=1e-9)
    assert Whitening.fit(points, 0)(points).std(0) == pytest.approx(np.full(6, 1), rel=0.02)
