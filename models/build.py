"""From the config to a network with its weights: the only part of models/ that sees the config."""
import logging
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.backbones import TIMM, TimmBackbone, names_no_weights, timm_weights
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, LinearSegmentationModel
from models.weights import (
    CLASSIFIER,
    HEADS,
    Weights,
    fingerprint,
    identify,
    imagenet_weights,
    load_strict,
    read_weights,
)
from utils.config.load import as_dict
from utils.config.paths import find_file
from utils.config.schema import (
    AugmentationKwargs,
    Common,
    LinearFinetune,
    ModelKwargs,
    Pretrain,
    Prototypes,
    TrainSaliency,
)
from utils.run import distributed
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError

log = logging.getLogger(__name__)
OTHER_KINDS = {'basnet': 'a BASNet (--method basnet takes it)', 'linear': 'a linear model',
               'backbone': 'a backbone alone'}


def initial_weights(p: Common | TrainSaliency, backbone: str) -> Weights | None:
    """The weights that ``pretraining`` names, or None for a random start; ``backbone`` is ImageNet's network."""
    timm = backbone.startswith(TIMM)
    if p.pretraining != 'imagenet_moco' and (unread := getattr(p, 'moco_state_dict', None)):
        log.info('moco_state_dict %s is not read: pretraining is %s', unread, p.pretraining)
    if p.pretraining == 'none':
        log.info('Weights: random')
        return None
    if p.pretraining == 'imagenet_classification':
        with distributed.main_first():  # a download
            weights = timm_weights(backbone) if timm else imagenet_weights(backbone)
    else:
        moco = p.pretraining == 'imagenet_moco'  # BASNet refuses it before
        weights = read_weights(find_file(getattr(p, 'moco_state_dict' if moco else 'pretraining'), p.root_dir), timm)
        if moco and weights.kind != 'backbone':
            raise UserError(f'moco_state_dict {weights.source} is no MoCo checkpoint; set pretraining to its path.')
    log.info('Weights: %s', weights.source)
    return weights


def load_into(model: ContrastiveSegmentationModel | BackboneModel | LinearSegmentationModel,
              weights: Weights | None) -> None:
    """Load a model, or its backbone when the weights are those of one; None: it stays random. Raises UserError."""
    if weights is None:
        return
    if weights.kind == 'linear' and not isinstance(model, LinearSegmentationModel):
        raise UserError(f'{weights.source} is a linear model without an embedding head; eval.py takes it as '
                        '--state-dict, here set pretraining to a pretraining checkpoint.')
    network = model.backbone if weights.kind == 'backbone' else model
    if isinstance(network, TimmBackbone) and names_no_weights(network.name, weights):
        log.info('Images are normalised by mean %s and std %s, as timm has it for %s; if %s wants others, add a tag of '
                 'timm to backbone', network.mean, network.std, network.name, weights.source)
    load_strict(network, network.fit(weights) if isinstance(network, TimmBackbone) else weights)


def build_contrastive_model(p: Common) -> ContrastiveSegmentationModel:
    """The encoder, from ``pretraining``: a backbone, or a whole encoder of an earlier pretraining."""
    model = ContrastiveSegmentationModel(p.backbone, **p.model_kwargs)
    load_into(model, initial_weights(p, p.backbone))
    return model


def build_prototype_model(p: Prototypes) -> ContrastiveSegmentationModel | BackboneModel:
    """The network of kmeans.py and retrieval.py, in eval mode; it has ``maps(images)``.

    Raises UserError for weights that do not cover it, or a plain backbone that is asked for embeddings or masks.
    """
    weights = initial_weights(p, p.backbone)
    model: ContrastiveSegmentationModel | BackboneModel
    if weights is None or weights.kind != 'backbone':
        model = ContrastiveSegmentationModel(p.backbone, **p.model_kwargs)
    elif p.features == 'backbone' and p.saliency != 'network':
        model = BackboneModel(p.backbone)
    else:
        raise UserError(f'{weights.source} is a plain backbone, which has no embedding and predicts no masks; '
                        'set features: backbone and saliency to a folder of masks (supervised_model, ...).')
    load_into(model, weights)
    return model.eval()


def pretrained_encoder(path: Path) -> tuple[ContrastiveSegmentationModel, int]:
    """The encoder of a pretraining checkpoint, and the side, pixels, at which whole images look as in its training.

    Random crops of an area of s, resized to the crop's side, show objects 1 / sqrt(s) times as large, and s is uniform.
    A checkpoint without a config is taken for a published one. Raises UserError for another file, for a damaged config,
    and for an encoder without a saliency head.
    """
    checkpoint = load_checkpoint(path)
    weights = identify(checkpoint, str(path))
    if weights.kind in OTHER_KINDS:
        raise UserError(f'{path} is {OTHER_KINDS[weights.kind]}, and no checkpoint of a pretraining, whose saliency '
                        'head predicts masks; give one of pretrain/main.py.')
    try:
        config = dict(checkpoint.get('config') or {})
        kwargs = ModelKwargs.model_validate(config.get('model_kwargs', {})).model_dump()
        views = AugmentationKwargs.model_validate(config.get('augmentation_kwargs', {})).model_dump()
    except (TypeError, ValueError) as error:
        raise UserError(f'{path} has a damaged config ({error}); give the file as pretrain/main.py wrote it.') from None
    if not kwargs['use_classification_head']:
        raise UserError(f'{path} has no saliency head, which predicts masks; give the checkpoint of a pretraining with '
                        'model_kwargs.use_classification_head: true.')
    model = ContrastiveSegmentationModel(config.get('backbone', Pretrain.model_fields['backbone'].default), **kwargs)
    load_strict(model, weights, 'a checkpoint without a config is taken for one of a ResNet-50; give another file')
    size, stride = 2 * views['size'] / sum(map(math.sqrt, views['scale'])), model.backbone.stride
    return model, max(1, round(size / stride)) * stride


def prototype_network(p: Prototypes, model: nn.Module) -> dict[str, Any]:
    """What decides the prototypes of a run, kept by clusters.pth.tar and memory.npz; 'size' is in pixels."""
    here = Path(str(p.moco_state_dict if p.pretraining == 'imagenet_moco' else p.pretraining))
    return {'backbone': p.backbone, 'model_kwargs': as_dict(p.model_kwargs), 'features': p.features,
            'masks': p.saliency, 'min_component': p.min_component if p.components else None, 'size': p.val_size,
            'pretraining': str(here.resolve() if here.is_file() else here), 'root_dir': p.root_dir,
            'fingerprint': fingerprint(model)}


def build_linear_model(p: LinearFinetune, num_classes: int) -> LinearSegmentationModel:
    """Backbone and decoder of ``pretraining`` under a new classifier; ``num_classes`` counts background.

    Raises UserError for weights that do not cover the model, and for a decoder that would stay random.
    """
    model = LinearSegmentationModel(p.backbone, num_classes, p.model_kwargs.dropout, p.features, p.model_kwargs.decoder)
    weights = initial_weights(p, p.backbone)
    plain = p.features == 'backbone'
    if weights is None or weights.kind == 'backbone':
        if not plain and p.network_lr_factor == 0:
            raise UserError(f'pretraining: {p.pretraining} holds no trained decoder, and a linear classifier trains '
                            'none; set features: backbone, or network_lr_factor above 0 to train the whole network.')
        load_into(model, weights)
        return model
    below = nn.ModuleDict({'backbone': model.backbone, 'decoder': model.decoder[:-1]})
    load_strict(below, weights.without(*HEADS, 'decoder.' if plain else CLASSIFIER))
    return model


def trained_linear_model(weights: Weights, backbone: str | None = None, **given: Any) -> LinearSegmentationModel:
    """The linear model of its weights, in eval mode: as ``given`` for LinearSegmentationModel, or else as they tell.

    Raises UserError for weights of another kind, or that do not cover the model.
    """
    if weights.kind != 'linear':
        raise UserError(f'{weights.source} is a pretraining checkpoint or a plain backbone without a classifier; train '
                        'one on it with linear_finetune.py (key pretraining), or use kmeans.py or retrieval.py.')
    if not given:
        names = weights.state
        if backbone is None and 'backbone.conv1.weight' not in names:
            raise UserError(f'{weights.source} is no linear model of a ResNet, and only those tell their backbone; '
                            'keep the config.yml of its run beside it.')
        backbone = backbone or ('resnet50' if 'backbone.layer1.0.conv3.weight' in names else 'resnet18')
        plain = all(name.startswith(('backbone.', CLASSIFIER)) for name in names)
        deeplab = any(name.startswith('decoder.0.convs.') for name in names)
        given = {'num_classes': len(names[f'{CLASSIFIER}weight']), 'features': 'backbone' if plain else 'decoder',
                 'decoder': 'deeplab' if deeplab else 'conv1x1'}
    model = LinearSegmentationModel(**({'backbone': backbone} | given))
    load_strict(model, weights)
    return model.eval()


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> Any:
    """Turn BatchNorm into SyncBatchNorm, of all processes. Raises UserError on CPUs, where PyTorch has none."""
    if distributed.world_size() == 1:
        return module
    if device.type != 'cuda':
        raise UserError('sync_batchnorm needs GPUs; set sync_batchnorm: false to train on CPUs.')
    if 'timm' in sys.modules:  # its BatchNorm may hold the activation, which PyTorch's conversion would drop
        return sys.modules['timm'].layers.convert_sync_batchnorm(module)
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)
