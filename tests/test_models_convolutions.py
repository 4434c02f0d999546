"""Convolutions done in another way on the CPU against PyTorch's own, in float64 and in 16 bits."""
import copy

import pytest
import torch
from torch import nn

from models import convolutions
from models.backbones import TimmBackbone
from models.convolutions import DilatedDepthwiseConv, SameConv2d, speed_up


@pytest.mark.parametrize('block', [1, convolutions.BLOCK])
@pytest.mark.parametrize(('height', 'width', 'kernel', 'dilation', 'bias'), [
    (8, 8, 5, 4, False), (7, 9, 3, 2, True), (28, 30, 5, 4, False), (5, 13, 7, 3, True), (1, 1, 3, 2, False)])
def test_outputs_and_gradients_equal_the_plain_convolution(height: int, width: int, kernel: int, dilation: int,
                                                           bias: bool, block: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, 'BLOCK', block)  # 1: each image by itself
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6, bias=bias).double()
    network = nn.Sequential(copy.deepcopy(plain))
    speed_up(network)
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


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('avx2', [True, False])
@pytest.mark.parametrize('order', [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize('trained', [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize(('kernel', 'dilation', 'size'), [
    (3, 12, (8, 8)), (3, 12, (12, 30)), (3, 12, (13, 5)), (3, 12, (40, 12)), (3, 12, (1, 1)), (3, 2, (9, 7)),
    (3, 1, (6, 5)), (3, 1, (1, 4)), (1, 1, (5, 6)), (1, 1, (1, 1))])
def test_convolutions_of_stride_1_equal_the_plain_one(
        kernel: int, dilation: int, size: tuple[int, int], trained: tuple[bool, bool], order: torch.memory_format,
        avx2: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, 'AVX2', avx2)
    monkeypatch.setattr(convolutions, 'DILATED', 2 if avx2 else 4)
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False).to(dtype)
    network = nn.Sequential(copy.deepcopy(plain))
    speed_up(network)
    assert type(network[0]) is (SameConv2d if dilation > 1 or (kernel == 1 and avx2) else nn.Conv2d)
    images, outputs, inputs = torch.randn(2, 3, *size, dtype=dtype), [], []
    of_input, of_weight = trained
    for conv in (plain, network):
        conv.requires_grad_(of_weight).to(memory_format=order)
        inputs.append(images.clone(memory_format=order).requires_grad_(of_input))
        outputs.append(conv(inputs[-1]))
        outputs[-1].square().sum().backward()
    trimmed = kernel == 1 or dilation >= max(size)  # to a single tap
    products = of_weight and (avx2 if trimmed else dilation >= (2 if avx2 else 4))
    assert ('_WeightsByProducts' in type(outputs[1].grad_fn).__name__) is products
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(network[0].weight.grad, plain.weight.grad)


@pytest.mark.parametrize('images', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('autocast', [True, False])
def test_sixteen_bits_sum_in_float32(images: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 5, padding=8, dilation=4, groups=6)
    network, x = nn.Sequential(copy.deepcopy(plain)), torch.randn(2, 6, 12, 12).to(images)
    speed_up(network)
    assert type(network[0]) is DilatedDepthwiseConv
    if not autocast:  # weights of the same format
        plain, network = plain.to(images).float(), network.to(images)
    inputs = [x.float().clone().requires_grad_(), x.clone().requires_grad_()]
    expected = plain(inputs[0])
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        output = network(inputs[1])
    assert output.dtype == (torch.bfloat16 if autocast else images)  # as PyTorch's own has it
    one_rounding = {'rtol': 2 ** -8, 'atol': 1e-5}
    torch.testing.assert_close(output.float(), expected, **one_rounding)
    upstream = torch.randn_like(expected).to(output.dtype)
    expected.backward(upstream.float())
    output.backward(upstream)
    torch.testing.assert_close(inputs[1].grad.float(), inputs[0].grad, **one_rounding)
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=2 ** -8, atol=1e-4)


def test_images_of_another_format_are_refused_as_by_the_plain_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6))
    speed_up(network)
    with pytest.raises(RuntimeError, match='should be the same'):
        network(torch.randn(1, 6, 8, 8).bfloat16())


@pytest.mark.parametrize('other', [
    nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 3, padding=2, dilation=2),
    nn.Conv2d(6, 6, 3, padding=1, stride=2, bias=False), nn.Conv2d(6, 6, 3, bias=False),
    nn.Conv2d(6, 6, (1, 3), padding=(0, 1), bias=False), nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False),
    nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=6), nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6),
    nn.Conv2d(6, 6, 3, padding=1, dilation=2, groups=6), nn.Conv2d(6, 6, 4, padding=4, dilation=2, groups=6),
    nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, padding_mode='reflect')])
def test_other_convolutions_stay(other: nn.Conv2d) -> None:
    network = nn.Sequential(other)
    speed_up(network)
    assert type(network[0]) is nn.Conv2d


def test_backbones_of_timm_have_them() -> None:
    backbone = TimmBackbone('timm/tf_efficientnet_lite0')
    found = [module for module in backbone.modules() if isinstance(module, DilatedDepthwiseConv)]
    assert {module.dilation[0] for module in found} == {2, 4}
