import numpy as np
import pytest

from saliency.sources import binarise
from saliency.unsupervised import (
    adjacency,
    background_weight,
    cluster_means,
    slic,
    unsupervised_saliency,
)
from tests.golden_inputs import photo


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize('size', [(120, 160), (300, 200), (600, 700)])
def test_finds_an_object_on_a_background(size):
    height, width = size
    image = photo('unsupervised', height, width)
    y, x = np.mgrid[:height, :width]
    ellipse = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (width / 3)) ** 2 < 1
    saliency, = unsupervised_saliency([image])
    assert saliency.shape == size
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() <= 1
    assert iou(binarise(saliency), ellipse) > 0.95


def test_is_deterministic():
    image = photo('again', 90, 70)
    first, second = unsupervised_saliency([image, image])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (1, 40), (500, 2), (7, 7)])
def test_tiny_and_narrow_images(size):
    for image in (np.full((*size, 3), 128, np.uint8), photo('tiny', *size)):
        assert unsupervised_saliency([image])[0].shape == size


def test_one_colour_has_no_object():
    assert binarise(unsupervised_saliency([np.full((60, 80, 3), 90, np.uint8)])[0]) is None


def test_slic_follows_colour():
    lab = np.zeros((64, 80, 3), np.float32)
    lab[20:50, 30:61, 0] = 80
    labels = slic(lab, count=40)
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    assert 20 <= labels.max() + 1 <= 60
    for label in range(labels.max() + 1):
        assert np.ptp(lab[labels == label], axis=0).max() == 0  # no patch spans the edge


def test_graph_of_patches():
    labels = np.array([[0, 0, 1, 1], [0, 4, 4, 1], [2, 4, 4, 3], [2, 2, 3, 3]])
    expected = np.ones((5, 5), bool) & ~np.eye(5, dtype=bool)
    expected[[0, 3, 1, 2], [3, 0, 2, 1]] = False
    touch, border = adjacency(labels)
    np.testing.assert_array_equal(touch, expected)
    assert border.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(cluster_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 2]), 3).ravel(),
                               [2, 0, 5])


def test_what_touches_the_border_a_lot_is_background():
    side = 6
    touch, border = adjacency(np.arange(side * side).reshape(side, side))
    inside = np.zeros((side, side), bool)
    inside[2:4, 2:6] = True  # an object that reaches the right border
    colour = np.where(inside.ravel(), 100.0, 0.0)
    weight = background_weight(np.abs(colour[:, None] - colour), touch, border)
    assert weight[~inside.ravel()].min() > 2 * weight[inside.ravel()].max()
