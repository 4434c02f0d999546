"""Backbones: ResNets under torchvision's names, and networks of timm (github.com/huggingface/pytorch-image-models)."""
from collections import OrderedDict, defaultdict
from dataclasses import replace
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models.convolutions import speed_up
from models.weights import Weights, downloading, leaders
from utils.run.errors import UserError, name_some

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of RGB in 0..1 that the weights want
STAGES = ('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3',), ('layer4',)  # of a ResNet, from the stem on
FROZEN = 2  # stages, as published
TIMM = 'timm/'
STRIDE = 8
UNFIT = (TypeError, ValueError, AssertionError, NotImplementedError)  # what networks say to options that they lack


class DilatedResNet(nn.Sequential):
    """torchvision's ResNet without pooling and fc, at output stride 8 (paper, section 4.1).

    The stride-2 convolutions of layer3 and layer4 take stride 1. Every 3x3 convolution of layer3 has dilation 2 and of
    layer4 dilation 4, except the one that lost its stride, which has half of it.
    (B, 3, H, W) normalised images -> (B, out_channels, ceil(H/8), ceil(W/8)).
    """

    stride = STRIDE
    mean, std = IMAGENET

    def __init__(self, name: str) -> None:
        resnet = torchvision.models.get_model(name, weights=None)
        super().__init__(OrderedDict(
            (child, module) for child, module in resnet.named_children() if child not in ('avgpool', 'fc')))
        self.name = name
        self.out_channels: int = resnet.fc.in_features
        for stage, dilation in (('layer3', 2), ('layer4', 4)):
            for conv in self.get_submodule(stage).modules():
                if isinstance(conv, nn.Conv2d):
                    rate = dilation
                    if conv.stride == (2, 2):
                        conv.stride, rate = (1, 1), dilation // 2
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (rate, rate)
        speed_up(self)

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of each of the four stages."""
        return [[p for name in names for p in self.get_submodule(name).parameters()] for names in STAGES]


def find_timm(backbone: str) -> tuple[ModuleType, str]:
    """The library timm, and NAME of 'timm/NAME'. UserError: it is not installed, or lacks this network or tag."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f'backbone: {TIMM}... needs the library timm ({error}); pip install timm') from error
    name = backbone.removeprefix(TIMM)
    try:
        timm.models.get_pretrained_cfg(name)
        known = timm.is_model(name)
    except RuntimeError:  # of a wrong tag
        known = False
    if not known:
        close = get_close_matches(name, [*timm.list_models(), *timm.list_pretrained()], 1)
        raise UserError(f'timm {timm.__version__} has no network {name}; '
                        + (f'did you mean {TIMM}{close[0]}?' if close else 'timm.list_models() lists its names.'))
    return timm, name


def _flat(name: str) -> str:
    """A name that features and whole network share: one may have stages_0 for stages.0, or ``model.`` before all."""
    return name.removeprefix('network.').removeprefix('model.').replace('.', '_')


class TimmBackbone(nn.Module):
    """Any network of timm that has an output stride of 8 or patches: its last features, without head; random weights.

    Convolutional networks (timm's ``features_only``) take an output stride of 8, and Swin and its like keep their own;
    vision transformers give the features of their patches after the last norm, for images of any multiple of a patch.
    (B, 3, H, W) normalised images -> (B, out_channels, H/stride, W/stride), rounded as the network does.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        timm, name = find_timm(backbone)
        self.name, self.patches = backbone, False
        self.network: Any
        try:
            self.network = timm.create_model(name, features_only=True, out_indices=(-1,), output_stride=STRIDE)
            info = self.network.feature_info.get_dicts()[-1]
            with torch.no_grad():
                self.network.eval()(torch.zeros(1, 3, 64, 96))  # some build, and then take only squares
            speed_up(self.network.train())
        except UNFIT:
            try:
                self.network = timm.create_model(name, dynamic_img_size=True)
            except UNFIT:
                raise UserError(f'{backbone} has neither an output stride of {STRIDE} nor patches on a grid of any '
                                'size; choose another network of timm.') from None
            self.patches, info = True, self.network.feature_info[-1]
            self.network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.out_channels, self.stride = int(info['num_chs']), int(info['reduction'])
        config = timm.models.get_pretrained_cfg(name)
        self.mean, self.std = IMAGENET if config is None else (tuple(config.mean), tuple(config.std))

    def forward(self, images: Tensor) -> Tensor:
        if not self.patches:
            return self.network(images)[-1]
        if any(side % self.stride for side in images.shape[-2:]):
            near = [max(1, round(side / self.stride)) * self.stride for side in images.shape[-2:]]
            raise UserError(f'{self.name} reads patches of {self.stride} px, and images of {images.shape[-2]} x '
                            f'{images.shape[-1]} px are no multiple of that; take e.g. {max(near)} px '
                            '(augmentation_kwargs.size, train_size, val_size, --input-size).')
        return self.network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]

    def whole(self) -> Any:
        """The classification network that this one is a part of, without memory for its weights."""
        timm, name = find_timm(self.name)
        with torch.device('meta'):
            return timm.create_model(name)

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of each stage as timm groups them (of transformers each block)."""
        whole, (timm, _) = self.whole(), find_timm(self.name)
        numbers = timm.models.group_parameters(whole, whole.group_matcher(coarse=True), reverse=True)
        number_of = {_flat(name): number for name, number in numbers.items()}
        stages = defaultdict(list)
        for name, parameter in self.network.named_parameters():
            stages[number_of[_flat(name)]].append(parameter)
        return [stages[number] for number in sorted(stages)]

    def fit(self, weights: Weights) -> Weights:
        """Weights of the classification network, behind a prefix or not, under this one's names and without a head."""
        own = {_flat(name): name for name in self.state_dict()}
        head = {_flat(name) for name in self.whole().state_dict()}
        longest, readings = max(own, key=len), {}
        for before, names in weights.readings.items():
            ends = [name for name in names if f'.{name}'.replace('.', '_').endswith(f'_{longest}')]
            for prefix in leaders([name[:-len(longest)] for name in ends]) or ['']:
                below = {name[len(prefix):]: value for name, value in names.items() if name.startswith(prefix)}
                # names that neither has are left for load_strict to refuse
                readings[before + prefix] = {
                    own.get(_flat(name), name): value for name, value in below.items()
                    if _flat(name) in own or not (_flat(name) in head or name.startswith('head.'))}
        return replace(weights, readings=readings)


def build_backbone(name: str) -> DilatedResNet | TimmBackbone:
    """A backbone with random weights: resnet18, resnet50 or timm/<name>.

    It has ``name``, ``out_channels``, ``stride`` (input pixels a side of a feature), ``stages()`` (parameters of the
    stem and of each stage), ``mean`` and ``std`` ((x - mean) / std of RGB in 0..1 is the input that its weights want).
    """
    return TimmBackbone(name) if name.startswith(TIMM) else DilatedResNet(name)


def timm_weights(backbone: str) -> Weights:
    """The weights that timm offers for timm/<name> or timm/<name>.<tag>, head included, downloaded once."""
    timm, name = find_timm(backbone)
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        tags = timm.list_pretrained(f'{name.partition(".")[0]}.*')
        raise UserError(f'timm has no weights for {backbone}; set backbone to one that it has '
                        f'({name_some([TIMM + tag for tag in tags]) or "there is none"}), or pretraining to a path.')
    with downloading(backbone, config.hf_hub_id or config.url):
        state = timm.create_model(name, pretrained=True).state_dict()
    return Weights('backbone', {'': state}, backbone)


def names_no_weights(backbone: str, weights: Weights) -> bool:
    """Whether weights are of a file, and timm/<name> has no tag that tells which they are: timm's may differ."""
    return weights.source != backbone and '.' not in backbone


def freeze_layers(backbone: DilatedResNet | TimmBackbone, stages: bool | int = True) -> None:
    """Freeze the stem and the first stages; 0: the stem alone, True: FROZEN, False: nothing. UserError for too many."""
    if stages is False:
        return
    stages, groups = FROZEN if stages is True else stages, backbone.stages()
    if stages >= len(groups):
        raise UserError(f'lower freeze_layers: {stages} is more than the {len(groups) - 1} stages of {backbone.name}.')
    frozen = {parameter for group in groups[:stages + 1] for parameter in group}
    for parameter in frozen:
        parameter.requires_grad_(False)
    for module in backbone.modules():
        own = set(module.parameters())
        if own and own <= frozen:  # eval mode, which a later train() of the parent does not lift
            module.eval().train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
