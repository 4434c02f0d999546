"""Published checkpoints load here, and ours have their names; nothing loads in part."""
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict

from models.build import build_contrastive_model, build_linear_model, build_prototype_model, trained_linear_model
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from models.weights import identify, read_weights
from pretrain.maskcontrast import MaskContrast
from utils.run.checkpoint import load_checkpoint, save_checkpoint
from utils.run.errors import UserError

GOLDENS = Path(__file__).parent / 'goldens'


def published(name: str) -> dict[str, torch.Tensor]:
    """A state dict of published names and shapes, with recognisable values."""
    shapes = json.loads((GOLDENS / f'{name}.json').read_text())
    return {key: torch.full(shape, 1 + i / 1000) if 'num_batches' not in key and 'queue_ptr' not in key
            else torch.ones(shape, dtype=torch.long) for i, (key, shape) in enumerate(shapes.items())}


def config(**more) -> EasyDict:
    return EasyDict({'backbone': 'resnet50', 'pretraining': 'none', 'moco_state_dict': None, 'root_dir': '.',
                     'features': 'embedding', 'saliency': 'network',
                     'model_kwargs': {'ndim': 32, 'upsample': True, 'use_classification_head': True, 'dropout': 0.5,
                                      'decoder': 'deeplab'},
                     **more})


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('checkpoints')
    pretrained = published('pretrain_resnet50_K128')
    backbone = {name.removeprefix('module.model_q.backbone.'): value for name, value in pretrained.items()
                if name.startswith('module.model_q.backbone.')}
    head = {'fc.0.weight': torch.zeros(2048, 2048), 'fc.0.bias': torch.zeros(2048),
            'fc.2.weight': torch.zeros(128, 2048), 'fc.2.bias': torch.zeros(128)}
    moco = {f'module.encoder_q.{name}': value for name, value in (backbone | head).items()} \
        | {f'module.encoder_k.{name}': value for name, value in backbone.items()} | {'module.queue': torch.zeros(2, 2)}
    contents = {
        'pretraining': {'model': pretrained, 'optimizer': {}, 'epoch': 40},
        'pretraining_bare': {name.removeprefix('module.'): value for name, value in pretrained.items()},
        'linear': published('linear_resnet50_21'),
        'moco': {'state_dict': moco, 'epoch': 800, 'arch': 'resnet50'},
        'moco_short': {'state_dict': {name: value for name, value in moco.items() if 'layer4.2.conv3' not in name}},
        'torchvision': backbone | {'fc.weight': torch.zeros(1000, 2048), 'fc.bias': torch.zeros(1000)},
        'other': {'encoder.weight': torch.zeros(3)},
    }
    for name, content in contents.items():
        torch.save(content, folder / name)
    return {name: folder / name for name in contents}


def test_our_pretraining_names_are_the_published_ones() -> None:
    model = MaskContrast(ContrastiveSegmentationModel('resnet50'), 32, 128)
    ours = {'module.' + name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == json.loads((GOLDENS / 'pretrain_resnet50_K128.json').read_text())


def test_our_linear_names_are_the_published_ones() -> None:
    ours = {name: list(value.shape) for name, value in LinearSegmentationModel('resnet50', 21).state_dict().items()}
    assert ours == json.loads((GOLDENS / 'linear_resnet50_21.json').read_text())


@pytest.mark.parametrize('name', ['pretraining', 'pretraining_bare'])
def test_published_pretraining_loads(files, name: str) -> None:
    p = config(pretraining=str(files[name]))
    expected = {key.removeprefix('module.model_q.'): value for key, value in published('pretrain_resnet50_K128').items()
                if key.startswith('module.model_q.')}
    for build in (build_contrastive_model, build_prototype_model):
        state = build(p).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    state = build_linear_model(p, 21).state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected if not key.startswith(('head', 'class')))
    assert state['decoder.4.bias'].eq(0).all()
    assert state['decoder.4.weight'].std().item() == pytest.approx(0.01, rel=0.1)


def test_published_linear_model_loads(files) -> None:
    state = trained_linear_model(read_weights(files['linear']), 'resnet50', num_classes=21).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in published('linear_resnet50_21').items())


@pytest.mark.parametrize(('name', 'kind'), [('moco', 'imagenet_moco'), ('torchvision', 'path')])
def test_backbones_load_without_fc(files, name: str, kind: str) -> None:
    path = str(files[name])
    p = config(pretraining='imagenet_moco', moco_state_dict=path) if kind == 'imagenet_moco' else \
        config(pretraining=path)
    expected = published('pretrain_resnet50_K128')['module.model_q.backbone.layer4.2.conv3.weight']
    assert torch.equal(build_contrastive_model(p).backbone.get_parameter('layer4.2.conv3.weight'), expected)
    plain = build_prototype_model(EasyDict(p, features='backbone', saliency='supervised_model'))
    assert plain.maps(torch.zeros(1, 3, 32, 32))['backbone'].shape == (1, 2048, 4, 4)
    with pytest.raises(UserError, match='plain backbone'):
        build_prototype_model(p)


def test_wrong_checkpoints_are_refused_by_name(files) -> None:
    with pytest.raises(UserError, match=r'missing: layer4\.2\.conv3\.weight'):
        build_contrastive_model(config(pretraining='imagenet_moco', moco_state_dict=str(files['moco_short'])))
    with pytest.raises(UserError, match='does not fit this model'):
        build_contrastive_model(config(backbone='resnet18', pretraining=str(files['pretraining'])))
    with pytest.raises(UserError, match='other shape'):
        trained_linear_model(read_weights(files['linear']), 'resnet50', num_classes=7)
    with pytest.raises(UserError, match=r'linear_finetune\.py'):
        trained_linear_model(read_weights(files['pretraining']), 'resnet50')
    with pytest.raises(UserError, match='linear model'):
        build_prototype_model(config(pretraining=str(files['linear'])))
    with pytest.raises(UserError, match=r'encoder\.weight'):
        build_contrastive_model(config(pretraining=str(files['other'])))
    with pytest.raises(UserError, match='MoCo'):
        build_contrastive_model(config(pretraining='imagenet_moco', moco_state_dict=str(files['pretraining'])))
    with pytest.raises(UserError, match='its tensors are none'):
        identify({}, 'x')


class Code:
    def __reduce__(self):
        return print, ('ran',)


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    whole, short, text = (tmp_path / name for name in ('whole', 'short', 'text'))
    save_checkpoint({'a': torch.arange(1000.)}, whole)
    assert load_checkpoint(whole)['a'].sum() == 499500
    short.write_bytes(whole.read_bytes()[:600])
    text.write_text('no checkpoint')
    with pytest.raises(UserError, match='does not exist'):
        load_checkpoint(tmp_path / 'none')
    with pytest.raises(UserError, match='truncated'):
        load_checkpoint(short)
    with pytest.raises(UserError, match='truncated or no checkpoint'):
        load_checkpoint(text)


@pytest.mark.filterwarnings('error')
def test_code_is_named_and_never_run(tmp_path: Path, capsys) -> None:
    archive, old, plain, script = (tmp_path / name for name in ('archive', 'old', 'plain', 'script'))
    torch.save({'model': Code()}, archive)
    torch.save({'model': Code()}, old, _use_new_zipfile_serialization=False)
    plain.write_bytes(pickle.dumps({'model': Code()}))
    with zipfile.ZipFile(script, 'w') as file:  # as TorchScript archives are laid out
        for name in ('version', 'constants.pkl', 'data.pkl'):
            file.writestr(f'script/{name}', '3')
    for path in (archive, old, plain, script):
        with pytest.raises(UserError, match=f'checkpoint {path} is a pickle that holds code or other objects'):
            load_checkpoint(path)
    assert capsys.readouterr() == ('', '')


def test_numpy_numbers_are_data(tmp_path: Path) -> None:
    numbers = {'best': np.float64(0.5), 'mIoU': np.float32(0.25), 'epoch': np.int64(7), 'done': np.bool_(True)}
    path = tmp_path / 'checkpoint'
    torch.save({**numbers, 'a': torch.ones(2)}, path)
    state = load_checkpoint(path)
    assert {name: state[name] for name in numbers} == numbers
    torch.save({'best': np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'numpy._core.', b'numpy.core.'))  # as NumPy 1 writes it
    assert load_checkpoint(path) == {'best': 0.5}


def test_entries_whose_names_are_no_text_are_none_of_ours() -> None:
    with pytest.raises(UserError, match='x is no checkpoint of this method, .* its tensors are none, where a ResNet'):
        identify({0: torch.ones(2), 'epoch': 3, 'optimizer': {'state': {0: {'momentum': torch.ones(2)}}}}, 'x')


@pytest.mark.parametrize('length', [600, 5000, 65000])
@pytest.mark.parametrize('archive', [True, False])
def test_a_checkpoint_cut_at_any_length_is_truncated(tmp_path: Path, archive: bool, length: int) -> None:
    path = tmp_path / 'short'
    torch.save({'a': torch.zeros(60000)}, path, _use_new_zipfile_serialization=archive)
    path.write_bytes(path.read_bytes()[:length if archive else length // 3])
    with pytest.raises(UserError, match=f'checkpoint {path} is truncated or no checkpoint; copy or download it again'):
        load_checkpoint(path)


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / 'checkpoint'
    save_checkpoint({'a': 1}, path)
    with pytest.raises(Exception, match='pickle|local'):
        save_checkpoint({'a': lambda: 0}, path)
    assert load_checkpoint(path) == {'a': 1}
    assert [child.name for child in tmp_path.iterdir()] == ['checkpoint']
