"""BASNet against the figures of the original implementation."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saliency.basnet_network import BASNet
from saliency.losses import hybrid_loss
from tests.golden_inputs import GOLDENS, fill, images, masks, tensor

GOLDEN = GOLDENS['basnet']
NAMES = json.loads((Path(__file__).parent / 'goldens' / 'basnet_names.json').read_text())


def test_state_dict_has_the_released_names_and_shapes():
    with torch.device('meta'):
        state = BASNet().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == NAMES


def test_scores_in_float64():
    network = fill(BASNet()).double().eval()
    with torch.no_grad():
        scores = network(tensor(0.1 * images('basnet', 2, 64).astype(np.float64)))
    assert [tuple(score.shape) for score in scores] == [(2, 1, 64, 64)] * 8
    assert [score.mean().item() for score in scores] == pytest.approx(GOLDEN['means'], rel=1e-8)
    assert [score.std().item() for score in scores] == pytest.approx(GOLDEN['stds'], rel=1e-8)
    for name, score in (('refined_at', scores[0]), ('side4_at', scores[4])):
        assert score[:, 0, ::16, 20].flatten().tolist() == pytest.approx(GOLDEN[name]['values'], rel=1e-8)


def test_sizes_that_do_not_halve_evenly():
    network = BASNet().eval()
    with torch.no_grad():
        scores = network(torch.zeros(1, 3, 50, 67))
    assert {tuple(score.shape) for score in scores} == {(1, 1, 50, 67)}


def test_loss():
    score = tensor(images('basnet/loss', 2, 64)[:, :1], torch.float32)
    target = tensor(masks('basnet/loss', 2, 64))[:, None].float()
    bce, ssim, iou = (term.item() for term in hybrid_loss(score, target))
    assert bce == pytest.approx(GOLDEN['loss']['bce'], rel=1e-5)
    assert ssim == pytest.approx(GOLDEN['loss']['one_minus_ssim'], rel=1e-5)
    assert iou == pytest.approx(GOLDEN['loss']['iou'], rel=1e-5)
