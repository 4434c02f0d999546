"""From an image to the input of a network, and from its map to a mask."""
import numpy as np
import torch

from saliency.sources import binarise, crf_logits, image_map, network_input, stretch


def test_threshold_is_strict():
    saliency = np.full((10, 10), 0.5, np.float32)
    assert binarise(saliency) is None
    saliency[:5] = 0.51
    assert binarise(saliency).sum() == 50


def test_small_segments_go_and_large_ones_stay():
    saliency = np.zeros((100, 100), np.float32)
    saliency[10:20, 10:20] = 1          # 100 pixels: exactly 1%
    saliency[50:59, 50:61] = 1          # 99 pixels: under 1%
    mask = binarise(saliency)
    assert mask.dtype == bool
    assert mask.sum() == 100
    assert mask[10:20, 10:20].all()


def test_segments_are_joined_by_corners():
    saliency = np.zeros((100, 100), np.float32)
    saliency[10:17, 10:20] = saliency[17:20, 20:30] = 1  # 70 + 30 pixels that touch in a corner
    assert binarise(saliency).sum() == 100


def test_images_with_too_little_left_are_left_out():
    saliency = np.zeros((100, 100), np.float32)
    assert binarise(saliency) is None
    saliency[:9, :11] = 1
    assert binarise(saliency) is None
    assert binarise(np.ones((4, 4), np.float32)).all()


def test_crf_logits_are_the_probabilities():
    saliency = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    logits = crf_logits(saliency)
    assert (logits.shape, logits.dtype) == ((2, 2, 2), np.float32)
    assert np.isfinite(logits).all()
    shown = torch.softmax(torch.from_numpy(logits), 0)[1]
    assert torch.allclose(shown, torch.tensor([[0.001, 0.25], [0.5, 0.999]]), atol=1e-6)


def test_network_input():
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0], image[..., 1] = 100, 50
    values = network_input(image, (2, 2), mean=(0.5, 0.5, 0.5), scale=(0.5, 0.25, 1))
    assert values.shape == (3, 2, 2)
    np.testing.assert_allclose(values[:, 0, 0], [1, 0, -0.5])
    values = network_input(image, (8, 8), (0, 0, 0), (1, 1, 1), divide_by_maximum=False)
    np.testing.assert_allclose(values[:, 3, 3], [100 / 255, 50 / 255, 0], rtol=1e-6)
    assert not network_input(np.zeros((4, 4, 3), np.uint8), (2, 2), (0, 0, 0), (1, 1, 1)).any()  # black


def test_image_map_is_stretched_and_resized():
    image = np.zeros((5, 9, 3), np.uint8)
    out = image_map(np.array([[0.2, 0.4], [0.2, 0.3]], np.float32), image)
    assert out.shape == (5, 9)
    assert out.min() == 0
    assert out.max() == 1
    assert not image_map(np.full((2, 2), 0.7, np.float32), image).any()


def test_stretch():
    np.testing.assert_allclose(stretch(np.array([2.0, 4.0, 3.0])), [0, 1, 0.5])
    assert not stretch(np.full(3, 7.0)).any()
