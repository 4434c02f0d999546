"""The terms of the hybrid loss against slow loops, and at their ends."""
import math

import pytest
import torch

from saliency.losses import basnet_loss, hybrid_loss, soft_iou, ssim


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
