"""BASNet and its loss against the numbers of the original implementation, slow loops, and at their ends."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saliency.basnet import BASNet, basnet_loss, hybrid_loss, soft_iou, ssim
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


def slow_ssim(p: torch.Tensor, t: torch.Tensor) -> float:
    """(H, W) maps, pixel by pixel; outside the map both are 0."""
    weights = [[math.exp(-(dy ** 2 + dx ** 2) / (2 * 1.5 ** 2)) for dx in range(-5, 6)] for dy in range(-5, 6)]
    total, values = sum(map(sum, weights)), []
    height, width = p.shape
    for y in range(height):
        for x in range(width):
            sums = [0.0] * 5
            for dy in range(-5, 6):
                for dx in range(-5, 6):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        a, b = p[y + dy, x + dx].item(), t[y + dy, x + dx].item()
                        w = weights[dy + 5][dx + 5] / total
                        sums = [s + w * v for s, v in zip(sums, (a, b, a * a, b * b, a * b), strict=True)]
            ma, mb, aa, bb, ab = sums
            c1, c2 = 0.01 ** 2, 0.03 ** 2
            values.append((2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2)
                          / ((ma * ma + mb * mb + c1) * (aa - ma * ma + bb - mb * mb + c2)))
    return sum(values) / len(values)


def test_ssim_equals_loops():
    p, t = torch.rand(2, 1, 1, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert ssim(p, t).item() == pytest.approx(slow_ssim(p[0, 0], t[0, 0]), rel=1e-10)


def plain_ssim(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """With PyTorch's own gradient of the convolution."""
    squares = torch.arange(-5, 6, dtype=p.dtype) ** 2
    kernel = torch.exp(-(squares[:, None] + squares) / (2 * 1.5 ** 2))
    means = [torch.nn.functional.conv2d(x, (kernel / kernel.sum())[None, None], padding=5)
             for x in (p, t, p * p, t * t, p * t)]
    (a, b, aa, bb, ab), (c1, c2) = means, (0.01 ** 2, 0.03 ** 2)
    return ((2 * a * b + c1) * (2 * (ab - a * b) + c2)
            / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))).mean()


def test_gradients_of_ssim_are_those_of_plain_convolutions():
    generator = torch.Generator().manual_seed(0)
    p, t = (x.requires_grad_() for x in torch.rand(2, 2, 1, 9, 7, dtype=torch.float64, generator=generator))
    found, plain = (torch.autograd.grad(f(p, t), (p, t)) for f in (ssim, plain_ssim))
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(ssim, (p, t), fast_mode=True)


def test_iou_is_a_mean_over_images():
    pred = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]).view(2, 1, 2, 2)
    target = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]).view(2, 1, 2, 2)
    assert soft_iou(pred, target).item() == pytest.approx((1 / 2 + 1) / 2)
    assert soft_iou(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 1


def test_right_and_sure_costs_nothing_and_huge_scores_stay_finite():
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 4:12] = 1
    assert sum(hybrid_loss(1000 * (2 * target - 1), target)).item() == pytest.approx(0, abs=1e-5)
    score = (1000 * (1 - 2 * target)).requires_grad_()
    loss = basnet_loss([score, score], target)
    loss.backward()
    assert loss.isfinite()
    assert score.grad.isfinite().all()
    assert loss.item() == pytest.approx(2 * sum(hybrid_loss(score, target)).item())
