"""Backbone and decoder: strides, dilations, shapes, and the shortcuts against plain convolutions."""
import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from models.backbones import DilatedResNet
from models.segmentation import (
    ContrastiveSegmentationModel,
    LinearSegmentationModel,
    PooledBatchNorm,
    build_decoder,
)


@pytest.mark.parametrize(('name', 'channels'), [('resnet18', 512), ('resnet50', 2048)])
def test_output_stride_and_dilations(name: str, channels: int) -> None:
    backbone = DilatedResNet(name).eval()
    assert backbone.out_channels == channels
    assert backbone(torch.zeros(1, 3, 64, 40)).shape == (1, channels, 8, 5)
    for stage, dilation in (('layer1', 1), ('layer2', 1), ('layer3', 2), ('layer4', 4)):
        rates = [conv.dilation[0] for conv in backbone.get_submodule(stage).modules()
                 if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]
        assert rates == [max(dilation // 2, 1)] + [dilation] * (len(rates) - 1)


@pytest.mark.parametrize('order', [torch.channels_last, torch.contiguous_format])
def test_decoder_is_torchvisions(order: torch.memory_format) -> None:
    assert build_decoder('deeplab', 16, dropout=0.3)[0].project[3].p == 0.3
    decoder = build_decoder('deeplab', 8, dropout=0).double().to(memory_format=order)
    plain = nn.Sequential(*list(DeepLabHead(8, 1, (12, 24, 36)))[:-1]).double()
    plain[0].project[3].p = 0
    plain.load_state_dict(decoder.state_dict())
    x = torch.randn(2, 8, 14, 13, dtype=torch.float64)
    first, second = x.clone().requires_grad_(), x.to(memory_format=order).requires_grad_()
    expected, found = plain(first), decoder(second)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=order)
    for y in (expected, found):
        y.square().sum().backward()
    torch.testing.assert_close(second.grad, first.grad)
    for (name, one), other in zip(plain.named_parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_a_seed_keeps_the_decoder_it_gave_before() -> None:
    torch.manual_seed(0)
    plain = DeepLabHead(8, 1, (12, 24, 36))
    branches = [nn.Conv2d(8, 256, 3, bias=False).weight for _ in range(3)]
    torch.manual_seed(0)
    decoder = build_decoder('deeplab', 8)
    assert torch.equal(decoder[0].convs[0][0].weight, plain[0].convs[0][0].weight)
    assert all(torch.equal(branch[0].weight, weight) for branch, weight in zip(decoder[0].convs[1:4], branches,
                                                                               strict=True))


def test_pooled_batch_norm_differs_for_a_single_value_alone() -> None:
    torch.manual_seed(0)
    ours, plain = PooledBatchNorm(5).train(), nn.BatchNorm2d(5).train()
    x = torch.randn(3, 5, 1, 1)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_mean, plain.running_mean)
    before = ours.running_var.clone()
    one = ours(x[:1])
    assert torch.equal(ours.running_var, before)
    assert one.isfinite().all()


def test_shapes_of_the_encoder() -> None:
    model = ContrastiveSegmentationModel('resnet18', 16).eval()
    x = torch.randn(2, 3, 40, 56)
    embedding, scores = model(x)
    assert embedding.shape == (2, 16, 40, 56)
    assert scores.shape == (2, 40, 56)
    maps = model.maps(x)
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        'backbone': (2, 512, 5, 7), 'embedding': (2, 16, 5, 7), 'saliency': (2, 1, 5, 7)}
    small = ContrastiveSegmentationModel('resnet18', 16, upsample=False, use_classification_head=False).eval()
    embedding, scores = small(x)
    assert embedding.shape == (2, 16, 5, 7)
    assert scores is None


def test_what_the_linear_model_trains() -> None:
    model = LinearSegmentationModel('resnet18', 5)
    model.freeze_all_but_classifier()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ['decoder.4.weight', 'decoder.4.bias']
    for mode, backbone, decoder in (('all', False, False), ('backbone', False, True), ('none', True, True)):
        model.set_train_mode(mode)
        assert model.backbone.bn1.training is backbone
        assert model.decoder[2].training is decoder
    assert model(torch.zeros(1, 3, 24, 32)).shape == (1, 5, 24, 32)
