"""Mask sources around networks: how images go in, how maps come out, and what is refused."""
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import saliency.predict as script
from saliency.basnet import BASNet
from saliency.methods import build_source
from tests.golden_inputs import photo
from utils.run.errors import UserError


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('basnet') / 'basnet.pth'
    torch.save({f'module.{name}': value for name, value in BASNet().state_dict().items()}, path)
    return path


def test_basnet_masks_images_of_all_sizes(weights):
    images = [photo('a', 40, 60), photo('b', 30, 20)]
    maps = build_source('basnet', 'cpu', weights=weights, input_size=64)(images)
    for saliency, image in zip(maps, images, strict=True):
        assert saliency.shape == image.shape[:2]
        assert saliency.dtype == np.float32
        assert 0 <= saliency.min() < saliency.max() <= 1


def test_basnet_refuses_other_weights(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'conv1.weight': torch.zeros(1), 'inconv.weight': torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r'missing: bn1d_1.bias, .* more; unexpected: conv1.weight; '
                                        r'other shape: inconv.weight .*; give the checkpoint of a BASNet'):
        build_source('basnet', 'cpu', weights=path)
    path.write_bytes(b'')
    with pytest.raises(UserError, match='truncated or no checkpoint'):
        build_source('basnet', 'cpu', weights=path)


def test_sources_name_what_is_missing(tmp_path):
    for method, options, sentence in (
            ('basnet', {}, '--weights'), ('onnx', {}, '--weights'), ('transformer', {}, '--backbone'),
            ('onnx', {'weights': tmp_path / 'a.onnx'}, '--onnx-config'), ('basnet', {'resize': 64}, '--resize'),
            ('unsupervised', {'weights': tmp_path / 'a.pth'}, 'takes no --weights'),
            ('unsupervised', {'weights': None, 'input_size': 64}, 'takes no --input-size')):
        with pytest.raises(UserError, match=sentence):
            build_source(method, **options)


CONFIG = 'input_size: [16, 24]\nmean: [0.5, 0.5, 0.5]\nscale: [1.0, 1.0, 1.0]\n'


def write_network(folder, batch, operation, shape, inputs=('image',), **attributes):
    """net.onnx, a network of one operation on its input (batch, 3, 16, 24), and net.yml beside it."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operation, inputs, ['map'], **attributes)], operation,
        [helper.make_tensor_value_info('image', kind, [batch, 3, 16, 24])],
        [helper.make_tensor_value_info('map', kind, [batch, *shape])],
        [helper.make_tensor('channel', onnx.TensorProto.INT64, [1], [0])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8), folder / 'net.onnx')
    (folder / 'net.yml').write_text(CONFIG)
    return folder / 'net.onnx'


@pytest.fixture(params=['fixed', 'free'])
def onnx_network(request, tmp_path):
    """A network whose map is the first channel of its input."""
    return write_network(tmp_path, 1 if request.param == 'fixed' else 'N', 'Gather', [1, 16, 24], ['image', 'channel'],
                         axis=1)


def test_onnx_network(onnx_network):
    images = [np.zeros((16, 24, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)]
    images[0][4:8, 4:8, 0] = images[1][8:16, 8:16, 0] = 200
    source = build_source('onnx', 'cpu', weights=onnx_network, onnx_config=onnx_network.with_suffix('.yml'))
    small, large = source(images)
    np.testing.assert_array_equal(small, images[0][..., 0] / np.float32(200))
    assert large.shape == (32, 48)
    assert large[12, 12] == 1


def test_onnx_refuses_what_does_not_fit(onnx_network):
    config = onnx_network.with_suffix('.yml')
    config.write_text(CONFIG.replace('16, 24', '8, 8'))
    with pytest.raises(UserError, match='set input_size'):
        build_source('onnx', 'cpu', weights=onnx_network, onnx_config=config)([np.zeros((9, 9, 3), np.uint8)])
    onnx_network.write_bytes(b'nothing')
    with pytest.raises(UserError, match='not an ONNX network'):
        build_source('onnx', 'cpu', weights=onnx_network, onnx_config=config)
    onnx_network.unlink()
    with pytest.raises(UserError, match='does not exist'):
        build_source('onnx', 'cpu', weights=onnx_network, onnx_config=config)


def onnxruntime_of(monkeypatch, folder, available, started):
    """Play an onnxruntime with these providers; the sessions, whose networks are files in the folder, as they start."""
    sessions = []

    def session(path, providers):
        sessions.append(dict(provider if isinstance(provider, tuple) else (provider, {}) for provider in providers))
        return SimpleNamespace(get_providers=lambda: started)

    for name, text in (('net.onnx', ''), ('net.yml', CONFIG)):
        (folder / name).write_text(text)
    monkeypatch.setitem(sys.modules, 'onnxruntime', SimpleNamespace(
        InferenceSession=session, get_available_providers=lambda: available))
    return sessions


CUDA, ONLY_CPU = ['CUDAExecutionProvider', 'CPUExecutionProvider'], ['CPUExecutionProvider']


def predict(folder, *more):
    (folder / 'images').mkdir()
    script.main(['--images', str(folder / 'images'), '--output', str(folder / 'out'), '--method', 'onnx',
                 '--weights', str(folder / 'net.onnx'), '--onnx-config', str(folder / 'net.yml'), *more])


@pytest.mark.parametrize(('available', 'words', 'gpu'), [
    (ONLY_CPU, (), None), (ONLY_CPU, ('--device', 'auto'), None), (CUDA, (), '1'), (CUDA, ('--device', 'cuda'), '1'),
    (CUDA, ('--device', 'cpu'), None)])
def test_onnxruntime_takes_what_it_has_of_several_gpus(available, words, gpu, tmp_path, monkeypatch):
    """In the second of two processes, each with a GPU of PyTorch's."""
    sessions = onnxruntime_of(monkeypatch, tmp_path, available, available)
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(script, 'start_job', lambda *_: torch.device('cuda', 1))
    monkeypatch.setattr(script, 'open_frames', lambda path: (0, [], {}, iter(())))
    with pytest.raises(UserError, match='none of the 0 images'):
        predict(tmp_path, *words)
    assert [providers.get('CUDAExecutionProvider', {}).get('device_id') for providers in sessions] == [gpu]


@pytest.mark.parametrize('device', ['auto', 'cpu', 'cuda'])
def test_onnxruntime_that_cannot_start_cuda_is_told_if_it_was_asked_for(device, tmp_path, monkeypatch):
    onnxruntime_of(monkeypatch, tmp_path, CUDA, ONLY_CPU)
    with pytest.raises(UserError, match='could not start it') if device == 'cuda' else nullcontext():
        build_source('onnx', device, weights=tmp_path / 'net.onnx', onnx_config=tmp_path / 'net.yml')


@pytest.mark.parametrize(('operation', 'shape', 'attributes'), [
    ('Transpose', [16, 24, 3], {'perm': [0, 2, 3, 1]}), ('Identity', [3, 16, 24], {}),
    ('Flatten', [3 * 16 * 24], {'axis': 1})])
def test_onnx_refuses_outputs_that_are_no_map(tmp_path, operation, shape, attributes):
    path = write_network(tmp_path, 'N', operation, shape, **attributes)
    source = build_source('onnx', 'cpu', weights=path, onnx_config=path.with_suffix('.yml'))
    given = re.escape(str((1, *shape)))
    with pytest.raises(UserError, match=rf'the first output {given} is not one map an image; give a salient-object'):
        source([np.zeros((16, 24, 3), np.uint8)])


@pytest.mark.parametrize(('text', 'sentence'), [
    ('input_size: [16, 24]\nmean: [0.5, 0.5, 0.5]\n', 'scale is missing'),
    (CONFIG.replace('[16, 24]', '320'), 'input_size'),
    (CONFIG.replace('[16, 24]', '[16, -1]'), 'item 2 of input_size must be greater than or equal to 1, got -1'),
    (CONFIG.replace('[1.0, 1.0, 1.0]', '[1.0, 0.0]'), 'line 3: scale must have at least 3 items'),
    (CONFIG + 'means: 1\n', 'unknown key .*means'),
])
def test_onnx_config_mistakes(tmp_path, text, sentence):
    from saliency.onnx_network import read_onnx_config
    (tmp_path / 'net.yml').write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_onnx_config(tmp_path / 'net.yml')
    with pytest.raises(UserError, match='does not exist'):
        read_onnx_config(tmp_path / 'none.yml')
