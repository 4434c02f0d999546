"""Where a network stands in the files of other libraries, and that only finite weights are taken."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18, resnet34

from models.backbones import TimmBackbone
from models.build import load_into
from models.segmentation import BackboneModel, ContrastiveSegmentationModel
from models.weights import FOLLOWERS, RESNET_HEADS, Weights, identify, load_strict
from saliency.onnx_network import OnnxConfig, OnnxSaliency
from segmentation.cluster_model import NETWORK, ClusterModel
from segmentation.clustering import Whitening
from segmentation.feature_index import DECIDES, FeatureIndex, load_index
from segmentation.segmenter import Segmenter
from segmentation.visualize import read_objects
from utils.run.errors import UserError

State = dict[str, Tensor]
Z = torch.zeros(4, 4)


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture(scope='module')
def plain() -> State:
    """A ResNet-18 whose weights are told from those of others."""
    return {name: value for name, value in resnet18().state_dict().items() if not name.startswith('fc.')}


@pytest.fixture(scope='module')
def other() -> State:
    return {name: value for name, value in resnet18().state_dict().items() if not name.startswith('fc.')}


def files(s: State, o: State) -> dict[str, dict]:
    """Name -> a checkpoint whose network is ``s``; ``o`` is another one of the same shape."""
    return {
        'torchvision': {**s, 'fc.weight': Z, 'fc.bias': Z},
        'torch.compile': {'state_dict': below('_orig_mod.', s)},
        'DataParallel twice': {'state_dict': below('module.module.', s)},
        'MoCo v2': {'state_dict': {**below('module.encoder_q.', {**s, 'fc.0.weight': Z}),
                                   **below('module.encoder_k.', o), 'module.queue': Z}},
        'MoCo v3': {'state_dict': {**below('module.momentum_encoder.', o), **below('module.base_encoder.', s),
                                   'module.predictor.0.weight': Z}},
        'DINO': {'student': below('module.backbone.', o), 'teacher': {**below('backbone.', s),
                                                                      'head.mlp.0.weight': Z}},
        'SwAV': {**below('module.', s), 'module.projection_head.0.weight': Z, 'module.prototypes.weight': Z},
        'Lightning': {'state_dict': below('model.', s), 'hyper_parameters': {'lr': 1.0}, 'callbacks': {}},
        'solo-learn': {'state_dict': {**below('backbone.', s), **below('momentum_backbone.', o),
                                      'projector.0.weight': Z}},
        'VISSL': {'classy_state_dict': {'base_model': {'model': {'trunk': below('_feature_blocks.', s)}}}},
        'a ResNet-34 beside it': {'student': s, 'large': resnet34().state_dict()}}


def test_a_backbone_is_found_in_the_files_of_other_libraries(plain: State, other: State) -> None:
    for name, checkpoint in files(plain, other).items():
        model = BackboneModel('resnet18')
        load_into(model, identify(checkpoint, name))
        state = model.backbone.state_dict()
        assert all(torch.equal(state[key], plain[key]) for key in plain), name


def test_our_own_networks_are_found_too(plain: State) -> None:
    model = ContrastiveSegmentationModel('resnet18')
    own = model.state_dict()
    for checkpoint in ({'ema': {'state_dict': below('_orig_mod.module.', own)}},
                       {'model': {**below('module.model_k.', own), **below('module.model_q.', own)}}):
        weights = identify(checkpoint, 'x')
        assert weights.kind == 'contrastive'
        load_into(model, weights)
    lacking = {name: value for name, value in own.items() if not name.startswith(('decoder.', 'head.'))}
    with pytest.raises(UserError, match=r'missing: decoder\.0'):  # no plain backbone, which would leave heads random
        load_into(model, identify({'model': below('module.model_q.', lacking)}, 'x'))


def test_what_fits_not_at_all_or_twice_is_named(plain: State, other: State) -> None:
    def refused(checkpoint: dict) -> str:
        with pytest.raises(UserError) as caught:
            load_into(BackboneModel('resnet18'), identify(checkpoint, 'x'))
        return str(caught.value)

    assert refused({'ema': below('module.', other), 'state_dict': plain}) == (
        'x holds 2 networks that fit (ema.module.*, state_dict.*), and nothing says which one is meant; save one of '
        'them alone, as a state dict, and give that.')
    assert 'its tensors are a.conv1.weight, where a ResNet has conv1.weight, layer1.0.conv1.weight, ..., ' in refused(
        {'a': {'conv1.weight': Z}})
    short = {name: value for name, value in plain.items() if name != 'layer4.1.bn2.bias'}
    assert refused({'state_dict': short}).startswith(
        'x, its entries state_dict.*, does not fit this model (missing: layer4.1.bn2.bias); check backbone')
    assert 'unexpected: layer1.0.se.weight' in refused({**plain, 'layer1.0.se.weight': Z})
    assert 'other shape: conv1.weight' in refused({**plain, 'conv1.weight': Z})
    nested: dict = {}
    nested['itself'] = nested
    assert 'its tensors are none' in refused(nested)


def test_what_is_left_out_is_no_part_of_a_network() -> None:
    assert not set(FOLLOWERS) & set(FOLLOWERS.values())
    assert not {name.split('.')[0] for name in BackboneModel('resnet18').backbone.state_dict()} & set(RESNET_HEADS)


@pytest.mark.parametrize('name', ['timm/vit_tiny_patch16_224', 'timm/tf_efficientnet_lite0'])
def test_networks_of_timm_are_found_behind_prefixes(name: str) -> None:
    backbone = TimmBackbone(name)
    whole = {key: torch.full(value.shape, 0.5) for key, value in backbone.whole().state_dict().items()}
    follower = {key: torch.zeros(value.shape) for key, value in whole.items()}
    for checkpoint in (whole, {'model': whole}, {'state_dict': below('module.', whole)},
                       {'teacher': below('backbone.', whole), 'student': below('module.backbone.', follower)}):
        load_strict(backbone, backbone.fit(identify(checkpoint, 'x', timm=True)))
        assert all(value.eq(0.5).all() for value in backbone.state_dict().values() if value.is_floating_point())
    with pytest.raises(UserError, match='holds 2 networks that fit'):
        load_strict(backbone, backbone.fit(identify({'a': whole, 'b': follower}, 'x', timm=True)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(plain: State, tmp_path: Path, value: float) -> None:
    broken = {**plain, 'bn1.running_var': torch.full((64,), value)}
    with pytest.raises(UserError, match=r'x holds weights that are not finite \(encoder\.bn1\.running_var\)'):
        load_into(BackboneModel('resnet18'), identify({'encoder': broken}, 'x'))
    with pytest.raises(UserError, match=r'x holds weights that are not finite \(weight\)'):
        load_strict(torch.nn.Linear(1, 1, bias=False), Weights('linear', {'': {'weight': torch.full((1, 1), value)}},
                                                               'x'))


def test_clusters_and_prototypes_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    good, bad = np.ones((3, 2), np.float32), np.array([[1, 0], [np.nan, 1], [0, 1]], np.float32)
    clusters = tmp_path / 'clusters.pth.tar'
    ClusterModel(Whitening(np.zeros(2), np.eye(2)), bad, np.arange(4), None, dict.fromkeys(NETWORK)).save(clusters)
    with pytest.raises(UserError, match=rf'{clusters} holds clusters that are not finite \(centres\)'):
        Segmenter.load(clusters, 'cpu')
    bank = FeatureIndex(bad, np.eye(3, dtype=np.int64), np.array(['a', 'b', 'c']), ('x', 'y', 'z'))
    bank.save(tmp_path / 'memory.npz')

    def load() -> FeatureIndex:
        return load_index(tmp_path / 'memory.npz', bank.classes, dict.fromkeys(DECIDES))

    for read in (load, lambda: read_objects(tmp_path)):
        with pytest.raises(UserError, match=rf'{tmp_path}/memory.npz holds values that are not finite \(prototypes\)'):
            read()
    replace(bank, prototypes=good).save(tmp_path / 'memory.npz')
    assert len(read_objects(tmp_path).labels) == len(load()) == 3


def test_maps_of_onnx_that_are_not_finite_are_refused() -> None:
    source = OnnxSaliency.__new__(OnnxSaliency)
    source.weights, source.config = Path('net.onnx'), OnnxConfig(input_size=[8, 8], mean=[0.5] * 3, scale=[1.0] * 3)
    source.session = SimpleNamespace(run=lambda *_: [np.full((1, 1, 8, 8), np.nan, np.float32)],
                                     get_inputs=lambda: [SimpleNamespace(shape=['N'], name='image')])
    with pytest.raises(UserError, match=r'net\.onnx: the network gives values that are not finite'):
        source([np.zeros((9, 9, 3), np.uint8)])
