"""The sources of masks by name, each with its options."""
from typing import Any

from saliency.sources import MaskSource
from utils.run import distributed
from utils.run.devices import Precision, pick_device, to_device
from utils.run.errors import UserError

METHODS: dict[str, dict[str, bool]] = {  # the options that each takes, and whether it needs them
    'basnet': {'weights': True, 'input_size': False, 'precision': False},
    'maskcontrast': {'weights': True, 'input_size': False, 'precision': False},
    'onnx': {'weights': True, 'onnx_config': True},
    'transformer': {'backbone': True, **dict.fromkeys(('weights', 'pos_embed', 'resize', 'heads', 'topk', 'mass',
                                                       'masks_per_image', 'precision'), False)},
    'unsupervised': {}}


def build_source(method: str, device: str = 'auto', **options: Any) -> MaskSource:
    """The mask source of a name, whose libraries are imported only here; ``options`` of ``METHODS``, None: not given.

    Raises UserError for one that the method needs or does not take, and for files that do not fit.
    """
    given, takes = {name: value for name, value in options.items() if value is not None}, METHODS[method]
    for name in dict.fromkeys((*options, *takes)):
        option = f'--{name.replace("_", "-")}'
        if name in given and name not in takes:
            raise UserError(f'--method {method} takes no {option}; leave it out.')
        if name not in given and takes.get(name):
            raise UserError(f'--method {method} needs {option}; or take --method unsupervised, which needs none.')
    if method == 'unsupervised':
        from saliency.unsupervised import unsupervised_saliency
        return unsupervised_saliency
    if method == 'basnet':
        from saliency.basnet import SIZE, BASNetSaliency, load_basnet
        where = pick_device(device)
        return BASNetSaliency(to_device(load_basnet(given['weights']), where), where, given.get('input_size', SIZE),
                              precision=given.get('precision', 'fp32'))
    if method == 'maskcontrast':
        from models.build import pretrained_encoder
        from saliency.maskcontrast import EncoderSaliency
        encoder, size = pretrained_encoder(given['weights'])
        return EncoderSaliency(encoder, Precision(pick_device(device), given.get('precision', 'fp32')),
                               given.get('input_size', size))
    if method == 'transformer':
        from models.backbones import timm_weights
        from models.transformer import load_transformer
        from models.weights import read_weights
        from saliency.transformer import TransformerSaliency
        backbone, path = given.pop('backbone'), given.pop('weights', None)
        with distributed.main_first():  # a download
            weights = timm_weights(backbone) if path is None else read_weights(path, timm=True)
        network = load_transformer(backbone, weights, given.pop('pos_embed', 'dino'))
        return TransformerSaliency(network, Precision(pick_device(device), given.pop('precision', 'fp32')), **given)
    from saliency.onnx_network import OnnxSaliency, read_onnx_config
    return OnnxSaliency(given['weights'], read_onnx_config(given['onnx_config']), device)
