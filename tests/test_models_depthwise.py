"""Dilated depthwise convolutions as a sum over taps against PyTorch's own, in float64."""
import copy

import pytest
import torch
from torch import nn

from models import depthwise
from models.depthwise import DilatedDepthwiseConv, speed_up_depthwise
from models.timm_backbone import TimmBackbone


@pytest.mark.parametrize('block', [1, depthwise.BLOCK])
@pytest.mark.parametrize(('height', 'width', 'kernel', 'dilation', 'bias'), [
    (8, 8, 5, 4, False), (7, 9, 3, 2, True), (28, 30, 5, 4, False), (5, 13, 7, 3, True), (1, 1, 3, 2, False)])
def test_outputs_and_gradients_equal_the_plain_convolution(height: int, width: int, kernel: int, dilation: int,
                                                           bias: bool, block: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, 'BLOCK', block)  # 1: each image by itself
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6, bias=bias).double()
    network = nn.Sequential(copy.deepcopy(plain))
    speed_up_depthwise(network)
    assert type(network[0]) is DilatedDepthwiseConv
    images = torch.randn(2, 6, height, width, dtype=torch.float64)
    inputs = [images.clone().requires_grad_(), images.clone().requires_grad_()]
    outputs = [plain(inputs[0]), network(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-12)
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=0, atol=1e-12)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize('precision', ['autocast', 'weights'])
def test_bf16_sums_in_float32(precision: str) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 5, padding=8, dilation=4, groups=6)
    network, images = nn.Sequential(copy.deepcopy(plain)), torch.randn(2, 6, 12, 12).bfloat16()
    speed_up_depthwise(network)
    if precision == 'weights':
        plain, network = plain.bfloat16().float(), network.bfloat16()
    inputs = [images.float().requires_grad_(), images.clone().requires_grad_()]
    expected = plain(inputs[0])
    with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'autocast'):
        output = network(inputs[1])
    torch.testing.assert_close(output.float(), expected, rtol=2 ** -8, atol=1e-5)  # one rounding, at the end
    upstream = torch.randn_like(expected).bfloat16()
    expected.backward(upstream.float())
    output.backward(upstream)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad.bfloat16())
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.to(ours.dtype))


@pytest.mark.parametrize('other', [
    nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 3, padding=2, dilation=2),
    nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=6), nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6),
    nn.Conv2d(6, 6, 3, padding=1, dilation=2, groups=6), nn.Conv2d(6, 6, 4, padding=4, dilation=2, groups=6),
    nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, padding_mode='reflect')])
def test_other_convolutions_stay(other: nn.Conv2d) -> None:
    network = nn.Sequential(other)
    speed_up_depthwise(network)
    assert type(network[0]) is nn.Conv2d


def test_backbones_of_timm_have_them() -> None:
    backbone = TimmBackbone('timm/tf_efficientnet_lite0')
    found = [module for module in backbone.modules() if isinstance(module, DilatedDepthwiseConv)]
    assert {module.dilation[0] for module in found} == {2, 4}
