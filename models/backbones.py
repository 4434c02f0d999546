"""Backbones: ResNets under torchvision's names, and networks of timm (github.com/huggingface/pytorch-image-models)."""
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from models.weights import Weights, downloading, leaders
from utils.run.errors import UserError, name_some

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of RGB in 0..1 that the weights want
STAGES = ('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3',), ('layer4',)  # of a ResNet, from the stem on
FROZEN = 2  # stages, as published
TIMM = 'timm/'
STRIDE = 8
BLOCK = 2 ** 19  # numbers at a time in a sum over taps: what a core's cache holds of the input and the output
UNFIT = (TypeError, ValueError, AssertionError, NotImplementedError)  # what networks say to options that they lack


def taps(length: int, dilation: int, size: int) -> list[tuple[int, slice, slice]]:
    """The taps of a dilated kernel of odd length that meet a row of ``size`` pixels: tap, outputs, inputs."""
    shifts = [(tap, (tap - length // 2) * dilation) for tap in range(length)]
    return [(tap, slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by)))
            for tap, by in shifts if abs(by) < size]


class DilatedConv2d(nn.Conv2d):
    """A 3x3 convolution padded by its dilation, without the taps that would read padding alone.

    Where the dilation is no smaller than the map, only the middle row or column of the kernel can meet the map. On the
    CPU the gradient of the others' weights leaves out padding too, as PyTorch's other kernels do.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (slice(None) if rate < size else slice(1, 2)
                         for rate, size in zip(self.dilation, x.shape[-2:], strict=True))
        weight = self.weight[:, :, rows, columns]
        padding = [rate * (length // 2) for rate, length in zip(self.dilation, weight.shape[-2:], strict=True)]
        if x.device.type == 'cpu' and not torch.is_autocast_enabled('cpu') and any(padding):
            return _DilatedConv.apply(x, weight, padding, self.dilation)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation)


class _DilatedConv(torch.autograd.Function):
    """A convolution of stride 1 without bias, whose weight gradient is one product a tap, of the pixels that meet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, None, 1, padding, dilation)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_input, *_ = torch.ops.aten.convolution_backward(slope, x, weight, None, [1, 1], ctx.padding, ctx.dilation,
                                                           False, [0, 0], 1, [ctx.needs_input_grad[0], False, False])
        inputs, outputs = (t.permute(0, 2, 3, 1) for t in (x, slope))  # B x h x w x C
        gradient = torch.zeros_like(weight)
        rows, columns = (taps(length, rate, size)
                         for length, rate, size in zip(weight.shape[2:], ctx.dilation, x.shape[2:], strict=True))
        for row, to_y, from_y in rows:
            for column, to_x, from_x in columns:
                gradient[:, :, row, column] = (outputs[:, to_y, to_x].flatten(0, 2).T
                                               @ inputs[:, from_y, from_x].flatten(0, 2))
        return of_input, gradient, None, None


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
                        if rate == 4:
                            conv.__class__ = DilatedConv2d

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


class _SumOverTaps(torch.autograd.Function):
    """Dilated depthwise convolution, at which PyTorch's kernels are slow on the CPU: a sum over the kernel's taps.

    x B x h x w x C, weight k x k x C -> B x h x w x C; taps that meet padding alone are left out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows, columns = (taps(len(weight), dilation, size) for size in x.shape[1:3])
        ctx.taps = [((row, column), (slice(None), to_y, to_x), (slice(None), from_y, from_x))
                    for row, to_y, from_y in rows for column, to_x, from_x in columns]
        ctx.images, y = max(1, BLOCK // x.shape[1:].numel()), torch.zeros_like(x)
        for some, out in zip(x.split(ctx.images), y.split(ctx.images), strict=True):
            for tap, outputs, inputs in ctx.taps:
                out[outputs].addcmul_(some[inputs], weight[tap])
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for some, part, grad in zip(*(t.split(ctx.images) for t in (x, slope.contiguous(), grad_x)), strict=True):
            for tap, outputs, inputs in ctx.taps:
                grad[inputs].addcmul_(part[outputs], weight[tap])
                grad_weight[tap] += (some[inputs] * part[outputs]).sum((0, 1, 2))
        return grad_x, grad_weight, None


class DilatedDepthwiseConv(nn.Conv2d):
    """Of stride 1, keeping the image's size: on the CPU a sum over taps, in float32 at least; elsewhere PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled('cpu')
        if x.device.type != 'cpu' or (x.dtype != self.weight.dtype and not autocast):
            return super().forward(x)
        full = torch.promote_types(x.dtype, torch.float32)
        wide, weight = x.permute(0, 2, 3, 1).to(full).contiguous(), self.weight[:, 0].permute(1, 2, 0).to(full)
        y = _SumOverTaps.apply(wide, weight.contiguous(), self.dilation[0]).permute(0, 3, 1, 2)
        y = y if self.bias is None else y + self.bias[:, None, None]
        return y.to(torch.get_autocast_dtype('cpu') if autocast and full == torch.float32 else x.dtype)


def speed_up_depthwise(network: nn.Module) -> None:
    """Let the dilated depthwise convolutions of a network run as ``DilatedDepthwiseConv``; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels:
            size, rate = module.kernel_size[0], module.dilation[0]
            usual = [(n, n) for n in (size, 1, rate, rate * (size // 2))]
            shape = [module.kernel_size, module.stride, module.dilation, module.padding]
            if size % 2 and rate > 1 and shape == usual and module.padding_mode == 'zeros':
                module.__class__ = DilatedDepthwiseConv


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
            speed_up_depthwise(self.network.train())
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
