import numpy as np
import torch

from saliency.postprocess import binarise, crf_logits


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
    parts = np.zeros((100, 100), np.float32)
    parts[::20, :50] = 1
    assert binarise(parts, min_segment=0.004, min_area=0.03) is None
    assert binarise(parts, min_segment=0.004, min_area=0.02).sum() == 250


def test_crf_logits_are_the_probabilities():
    saliency = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    logits = crf_logits(saliency)
    assert (logits.shape, logits.dtype) == ((2, 2, 2), np.float32)
    assert np.isfinite(logits).all()
    shown = torch.softmax(torch.from_numpy(logits), 0)[1]
    assert torch.allclose(shown, torch.tensor([[0.001, 0.25], [0.5, 0.999]]), atol=1e-6)
