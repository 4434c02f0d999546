"""Backbones of timm: features, weights, frozen stages, normalisation, and each script with one."""
import builtins
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from data.loaders import evaluation_loader, open_images, train_loader
from data.transforms import LinearTrainTransform
from models.backbones import IMAGENET, DilatedResNet, TimmBackbone, freeze_layers
from models.build import (
    build_contrastive_model,
    build_linear_model,
    build_prototype_model,
    synchronise_batchnorm,
    trained_linear_model,
)
from models.segmentation import ContrastiveSegmentationModel
from models.weights import read_weights
from segmentation.segmenter import Segmenter
from tests.test_models_weights import config
from tests.test_scripts import Runner
from utils.run.errors import UserError

CONVOLUTIONAL, PATCHES = 'timm/mobilenetv3_small_050', 'timm/test_vit'  # patches of 16 px; both without a download


@pytest.fixture
def runner(db_root: Path, tmp_path: Path) -> Runner:
    return Runner(db_root, tmp_path)


def whole(backbone: str) -> nn.Module:
    """The classification network with weights, and statistics of batch norm, that no other layer has."""
    torch.manual_seed(3)
    network = timm.create_model(backbone.removeprefix('timm/')).eval()
    for value in (*network.parameters(), *network.buffers()):
        if value.ndim == 1:
            value.data += 0.1 * torch.rand_like(value)
    return network


def features_of_timm(backbone: str, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What timm's own interfaces give, with the weights of a classification network."""
    name = backbone.removeprefix('timm/')
    if backbone == CONVOLUTIONAL:  # takes the stride as a network of features alone, under the same names
        features = timm.create_model(name, features_only=True, out_indices=(-1,), output_stride=8).eval()
        assert not features.load_state_dict(network.state_dict(), strict=False).missing_keys
        return features(images)[-1]
    timms = network if backbone == PATCHES else timm.create_model(name, output_stride=8).eval()
    timms.load_state_dict(network.state_dict())
    return timms.forward_intermediates(images, indices=1, norm=backbone == PATCHES, intermediates_only=True)[-1]


@pytest.mark.parametrize(('name', 'channels', 'stride'), [
    (CONVOLUTIONAL, 288, 8), ('timm/resnet18', 512, 8), ('timm/convnext_atto', 320, 8), (PATCHES, 64, 16),
    ('timm/vit_tiny_patch16_224', 192, 16)])
def test_features_lie_on_a_grid(name: str, channels: int, stride: int) -> None:
    backbone = TimmBackbone(name).eval()
    assert (backbone.name, backbone.out_channels, backbone.stride) == (name, channels, stride)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)


def test_the_decoder_and_the_masks_follow_the_stride() -> None:
    model = ContrastiveSegmentationModel(PATCHES, 8, upsample=False, decoder='conv1x1').eval()
    assert [name for name, _ in model.decoder.named_parameters()] == ['0.weight', '1.weight', '1.bias']
    embedding, scores = model(torch.zeros(2, 3, 64, 96))
    assert embedding.shape == (2, 8, 4, 6)
    assert scores.shape == (2, 4, 6)
    assert ContrastiveSegmentationModel(PATCHES, 8).decoder[0].convs[0][0].in_channels == 64  # deeplab by default


def test_images_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(UserError, match='patches of 16 px, and images of 64 x 70 px .* e.g. 64 px'):
        TimmBackbone(PATCHES)(torch.zeros(1, 3, 64, 70))


@pytest.mark.parametrize('name', [CONVOLUTIONAL, 'timm/resnet18', 'timm/convnext_atto', PATCHES])
def test_weights_of_the_classification_network_load_whole_or_not_at_all(name: str, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    network = whole(name)
    path = tmp_path / 'weights.pth'
    torch.save(network.state_dict(), path)
    p = config(backbone=name, pretraining=str(path), features='backbone', saliency='supervised_model')
    model = build_prototype_model(p)
    assert ('Images are normalised by mean' in caplog.text) == ('.' not in name)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.maps(images)['backbone'], features_of_timm(name, network, images))

    state = network.state_dict()
    first = next(iter(state))
    torch.save({key: value for key, value in state.items() if key != first}, path)
    with pytest.raises(UserError, match='missing: '):
        build_prototype_model(p)
    torch.save(state | {'adapter.weight': torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r'unexpected: adapter\.weight'):
        build_contrastive_model(p)


def test_our_checkpoints_of_a_timm_backbone_load_everywhere(tmp_path: Path) -> None:
    path, linear = tmp_path / 'checkpoint.pth.tar', tmp_path / 'best_model.pth.tar'
    encoder = ContrastiveSegmentationModel(PATCHES, decoder='conv1x1')
    torch.save({'model': {f'module.model_q.{name}': value for name, value in encoder.state_dict().items()}}, path)
    p = config(backbone=PATCHES, pretraining=str(path), features='decoder', network_lr_factor=0)
    p.model_kwargs.decoder = 'conv1x1'
    state = encoder.state_dict()
    for build in (build_contrastive_model, build_prototype_model, lambda p: build_linear_model(p, 4)):
        loaded = build(p).state_dict()
        assert all(torch.equal(state[name], value) for name, value in loaded.items() if name in state)
    torch.save(build_linear_model(p, 4).state_dict(), linear)
    assert trained_linear_model(read_weights(linear), PATCHES).classifier.out_channels == 4
    with pytest.raises(UserError, match=r'only those tell their backbone; keep the config\.yml'):
        Segmenter.load(linear, 'cpu')


def test_timms_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    network, create = whole(CONVOLUTIONAL), timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        return network if pretrained else create(name, **options)

    monkeypatch.setattr(timm, 'create_model', offline)
    p = config(backbone=CONVOLUTIONAL, pretraining='imagenet_classification')
    found = build_contrastive_model(p).backbone.state_dict()['network.conv_stem.weight']
    assert torch.equal(found, network.conv_stem.weight)

    def unreachable(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise ConnectionError('no route to host')
        return create(name, **options)

    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(UserError, match=r'could not download .* \(no route to host\); fetch timm/.* --weights'):
        build_contrastive_model(p)
    with pytest.raises(UserError, match='timm has no weights for timm/convnext_atto_rms'):
        build_contrastive_model(config(backbone='timm/convnext_atto_rms', pretraining='imagenet_classification'))


def test_names_that_timm_lacks() -> None:
    with pytest.raises(UserError, match='did you mean timm/vit_small_patch16_224.dino?'):
        TimmBackbone('timm/vit_small_patch16_224.dinov1')
    with pytest.raises(UserError, match='did you mean timm/mobilenetv3_small_050'):
        TimmBackbone('timm/mobilenetv3_smal_050')
    with pytest.raises(UserError, match='neither an output stride of 8 nor patches'):
        TimmBackbone('timm/vgg11')
    with pytest.raises(UserError, match='neither an output stride of 8 nor patches'):
        TimmBackbone('timm/botnet26t_256')


def test_without_timm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *args: object, **kwargs: object) -> object:
        if name == 'timm':
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(UserError, match='pip install timm'):
        ContrastiveSegmentationModel(CONVOLUTIONAL)
    assert ContrastiveSegmentationModel('resnet18').backbone.name == 'resnet18'


@pytest.mark.parametrize('name', [CONVOLUTIONAL, 'timm/convnext_atto', PATCHES])
@pytest.mark.parametrize('stages', [0, 2])
def test_frozen_stages_stay_and_the_others_learn(name: str, stages: int) -> None:
    backbone = TimmBackbone(name)
    names = {parameter: key for key, parameter in backbone.named_parameters()}
    groups = [[names[parameter] for parameter in group] for group in backbone.stages()]
    assert sorted(sum(groups, [])) == sorted(names.values())
    assert not any('stage' in key or 'block' in key for key in groups[0])
    freeze_layers(backbone, stages)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    frozen = {key for group in groups[:stages + 1] for key in group}
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (key not in frozen), key
    norms = {key.rpartition('.')[0] for key in frozen}
    for key, value in backbone.state_dict().items():
        if 'running_mean' in key:
            assert torch.equal(value, before[key]) == (key.rpartition('.')[0] in norms), key


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    freeze_layers(DilatedResNet('resnet18'), 4)
    with pytest.raises(UserError, match='freeze_layers: 5 is more than the 4 stages of resnet18'):
        freeze_layers(DilatedResNet('resnet18'), 5)


def test_every_loader_normalises_as_the_weights_want(db_root: Path) -> None:
    half = (0.5, 0.5, 0.5)
    for backbone, normalisation in ((TimmBackbone('timm/tf_efficientnet_lite0'), (half, half)),
                                    (TimmBackbone(PATCHES), (half, half)), (DilatedResNet('resnet18'), IMAGENET)):
        assert (backbone.mean, backbone.std) == normalisation
    p = config(db_root=str(db_root), num_workers=0, device='cpu', cache='none', seed=0, val_size=32, train_size=32,
               val_batch_size=2, train_batch_size=2, train_db_name='Shapes', train_split='train', label_share=1,
               label_seed=0, border_label=0, eval_classes=(), saliency='supervised_model',
               output_dir='out')
    data = open_images(p, 'Shapes', 'train', truth=True, saliency='supervised_model')
    for loader in (lambda *colours: train_loader(p, data.transformed(LinearTrainTransform(32, *colours))),
                   partial(evaluation_loader, p, data)):
        levels = []
        for mean, std in (IMAGENET, (half, half)):
            images = next(iter(loader(mean, std)))['image']
            levels.append(images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1))
        torch.testing.assert_close(*levels)


def test_synchronised_batchnorm_keeps_the_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('utils.run.distributed.world_size', lambda: 2)
    backbone = synchronise_batchnorm(TimmBackbone(CONVOLUTIONAL), torch.device('cuda')).network.eval()
    norm = backbone.blocks[1][0].bn1
    assert isinstance(norm, nn.SyncBatchNorm)
    assert isinstance(norm.act, nn.ReLU)


@pytest.mark.parametrize(('backbone', 'decoder'), [(CONVOLUTIONAL, 'deeplab'), (PATCHES, 'conv1x1')])
def test_the_method_runs_with_a_timm_backbone(runner: Runner, backbone: str, decoder: str) -> None:
    network = [f'backbone={backbone}', f'model_kwargs.decoder={decoder}', 'model_kwargs.upsample=false']
    runner('pretrain.main', *network, 'freeze_layers=1', 'augmentation_kwargs.size=32')
    runner('segmentation.linear_finetune', *network)
    runner('segmentation.kmeans', *network, 'saliency=supervised_model', 'num_clusters=3')
    segmenter = Segmenter.load(next(runner.root_dir.rglob('best_model.pth.tar')), 'cpu')
    built = TimmBackbone(backbone)
    assert (segmenter.transform.mean, segmenter.transform.std) == (built.mean, built.std)
    image = np.zeros((40, 56, 3), np.uint8)
    assert segmenter(image).shape == (40, 56)
