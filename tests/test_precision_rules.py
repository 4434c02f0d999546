"""Where precision and TF32 apply: in training steps, and in no validation and no prediction unless val_tf32 says so."""
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import timm
import torch

import models.segmentation
import segmentation.objects
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from models.transformer import FrozenTransformer
from saliency.basnet import BASNetSaliency, ssim
from saliency.transformer import TransformerSaliency
from segmentation.segmenter import Segmenter
from tests.test_pretrain_monitor import run  # noqa: F401  a fixture
from tests.test_scripts import Runner
from tests.test_utils_run_trainer import SmallBackbone, small_decoder
from utils.run.devices import Precision, allow_tf32, tf32

Seen = dict[str, set[tuple[bool, bool, bool]]]


def switches() -> tuple[bool, bool, bool]:
    return (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled('cpu'))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """What was on while networks computed in training steps and in evaluations."""
    found: Seen = {'step': set(), 'evaluation': set()}

    def watch(kind: type, name: str, evaluates: Callable[[torch.nn.Module], bool]) -> None:
        real = getattr(kind, name)

        def watched(self: torch.nn.Module, images: torch.Tensor) -> object:
            found['evaluation' if evaluates(self) else 'step'].add(switches())
            return real(self, images)

        monkeypatch.setattr(kind, name, watched)

    monkeypatch.setattr(models.segmentation, 'build_backbone', SmallBackbone)
    monkeypatch.setattr(models.segmentation, 'build_decoder', small_decoder)
    monkeypatch.setattr(segmentation.objects, 'THRESHOLD', -100.0)
    watch(ContrastiveSegmentationModel, 'maps', lambda model: not model.training)
    watch(ContrastiveSegmentationModel, 'embed', lambda model: not model.training)
    watch(LinearSegmentationModel, 'forward', lambda model: torch.is_inference_mode_enabled())
    before = switches()
    yield found
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]


KEYS = {'pretrain.main': ('epochs=1', 'probe_every=1', 'panel_every=1'),  # online K-means and pictures
        'segmentation.linear_finetune': ('epochs=1', 'pretraining=none', 'network_lr_factor=0.1'),
        'segmentation.kmeans': ('pretraining=none', 'features=backbone'),
        'segmentation.retrieval': ('pretraining=none', 'features=backbone')}
TRAINING = ('pretrain.main', 'segmentation.linear_finetune')


@pytest.mark.parametrize('script', KEYS)
@pytest.mark.parametrize('given', [False, True])
def test_tf32_and_precision_are_for_steps_and_val_tf32_for_all_else(
        script: str, given: bool, run: Runner, seen: Seen) -> None:  # noqa: F811
    trains = script in TRAINING
    keys = [f'tf32={not given}', 'precision=bf16'] if trains else []
    run(script, *KEYS[script], *keys, *['val_tf32=true'] * given, f'output_dir={script}{given}', 'device=cpu')
    assert seen['evaluation'] == {(given, given, False)}
    assert seen['step'] == ({(not given, not given, True)} if trains else set())


def test_prediction_goes_without_tf32_wherever_it_is_called(seen: Seen) -> None:
    allow_tf32(True)  # what else runs in the user's process
    model = LinearSegmentationModel('small', 3).eval()
    model.backbone.name = 'resnet18'
    segmenter = Segmenter(model, ('a', 'b', 'c'), 16, torch.device('cpu'))
    segmenter(np.zeros((20, 30, 3), np.uint8))
    assert seen['evaluation'] == {(False, False, False)}
    assert switches()[:2] == (True, True)


@pytest.mark.parametrize('given', [False, True])
def test_masks_of_basnet_take_tf32_as_validation_does(given: bool, seen: Seen) -> None:
    found = []

    class Small(torch.nn.Conv2d):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            found.append(switches()[0])
            return [super().forward(images)]

    with tf32(not given):
        BASNetSaliency(Small(3, 1, 1), torch.device('cpu'), 16, given)([np.zeros((20, 30, 3), np.uint8)])
    assert found == [given]


def test_the_similarity_of_maps_and_its_gradient_are_taken_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    found, real = [], torch.conv2d
    monkeypatch.setattr(torch.nn.functional, 'conv2d', lambda *args, **kwargs: found.append(switches()) or real(
        *args, **kwargs))
    with tf32(True):
        ssim(torch.rand(2, 1, 16, 16, requires_grad=True), torch.rand(2, 1, 16, 16)).backward()
        assert switches()[:2] == (True, True)
    assert found == [(False, False, False)] * 2  # the second of the gradient


def test_masks_of_transformers_go_without_tf32() -> None:
    found = []
    network = timm.create_model('test_vit', num_classes=0)
    source = TransformerSaliency(FrozenTransformer(network, 'timm/test_vit'), Precision(torch.device('cpu')), 32, 1)
    network.forward_features = lambda images, inner=network.forward_features: found.append(switches()) or inner(images)
    with tf32(True):
        source([np.zeros((20, 30, 3), np.uint8)])
    assert found == [(False, False, False)]
