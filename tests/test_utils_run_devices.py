"""Devices other than the CPU, simulated as far as that goes: what is taken, refused, saved and waited for."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from pretrain import losses
from saliency.basnet import BASNet
from saliency.basnet import compute_losses as saliency_losses
from saliency.methods import build_source
from segmentation.engine import compute_losses as linear_losses
from segmentation.objects import find_objects
from tests.test_pretrain_maskcontrast import batch_of, method
from utils.run import devices
from utils.run.checkpoint import save_training
from utils.run.devices import Precision
from utils.run.errors import UserError
from utils.run.setup import start, start_processes
from utils.run.trainer import build_optimizer

CPU = torch.device('cpu')


def there_are(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    for kind, module in (('cuda', torch.cuda), ('xpu', torch.xpu), ('mps', torch.backends.mps)):
        monkeypatch.setattr(module, 'is_available', lambda kind=kind: kind in kinds)


@pytest.mark.parametrize(('kinds', 'taken'), [(('mps', 'xpu', 'cuda'), 'cuda'), (('mps', 'xpu'), 'xpu'),
                                              (('mps',), 'mps'), ((), 'cpu')])
def test_auto_takes_the_first_there_is(kinds: tuple[str, ...], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there_are(monkeypatch, *kinds)
    assert devices.pick_device('auto').type == taken
    assert devices.pick_device('cpu').type == 'cpu'
    for kind in {'cuda', 'xpu', 'mps'} - set(kinds):
        with pytest.raises(UserError, match=f'device: {kind} is asked for, but PyTorch sees no {kind.upper()} device'):
            devices.pick_device(kind)


@pytest.mark.parametrize('kind', ['mps', 'xpu'])
def test_what_a_device_cannot_do_is_one_sentence(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there_are(monkeypatch, kind)
    with pytest.raises(UserError, match=f'fp16 needs a CUDA GPU; on {kind} take bf16 or fp32'):
        Precision(torch.device(kind), 'fp16')
    monkeypatch.setattr(torch.backends.mps, 'is_macos_or_newer', lambda *version: version < (14, 0))
    monkeypatch.setattr(torch.xpu, 'is_bf16_supported', lambda: False)
    with pytest.raises(UserError, match=f'bf16 is not what this {kind} device computes in; take fp32.'):
        Precision(torch.device(kind), 'bf16')
    assert not Precision(torch.device(kind)).scaler.is_enabled()
    start_processes(None, torch.device(kind), 'script.py', [])
    with pytest.raises(UserError, match=f'several processes need CUDA GPUs or CPUs, and this device is {kind}'):
        start_processes(2, torch.device(kind), 'script.py', [])
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(UserError, match=f'this device is {kind}'):
        start(SimpleNamespace(device='auto'), 1, 'script.py', [])


class Waits(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors, for each of which a GPU would be waited for."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == '_local_scalar_dense'
        return func(*args, **(kwargs or {}))


class NoDoubles(TorchDispatchMode):
    """Fails at the first tensor of 64 bit numbers, which MPS does not have; on the CPU, in place of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not any(isinstance(x, torch.Tensor) and x.dtype == torch.float64
                       for x in pytree.tree_leaves(result)), func
        return result


@pytest.mark.parametrize('chunk', [0, 64])
def test_pretraining_computes_nothing_in_float64(chunk: int) -> None:
    model, views = method()
    precision, optimizer = Precision(CPU), build_optimizer('sgd', model.train().parameters(), 0.01)
    with NoDoubles():
        found = losses.compute_losses(model, batch_of(views), precision, chunk)
        precision.step(found['loss'], optimizer)


def test_nothing_else_computes_in_float64() -> None:
    precision, images = Precision(CPU), torch.randn(2, 3, 32, 32)
    model = LinearSegmentationModel('resnet18', 3)
    optimizer = build_optimizer('adam', model.parameters(), 0.01)
    with NoDoubles():
        precision.step(linear_losses(model, {'image': images, 'semseg': torch.ones(2, 32, 32).long()},
                                     precision)['loss'], optimizer)
        found = find_objects(ContrastiveSegmentationModel('resnet18').eval(), images, min_component=0.01)
        saliency_losses(BASNet(), {'image': images, 'sal': torch.ones(2, 1, 32, 32)}, precision)['loss'].backward()
    assert len(found) == 2


def test_a_checkpoint_waits_once(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(9)])
    with Waits() as waits:
        save_training(tmp_path / 'checkpoint.pth.tar', model, torch.optim.SGD(model.parameters()), {})
    assert waits.count == 1


@pytest.mark.parametrize(('places', 'waits'), [
    (('mps', 'mps'), ['mps']), (('cuda:1', 'cuda:1'), ['cuda:1']), (('cuda:0', 'cuda:1'), ['cuda:0', 'cuda:1'])])
def test_a_state_comes_to_the_cpu_after_one_wait_for_each_device(places: tuple[str, str], waits: list[str],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """None named is the current device, and that of MPS cannot be named."""
    done: list[str] = []
    with FakeTensorMode():
        first, second = (torch.empty(size, device=place) for size, place in zip((3, 2), places, strict=True))
    monkeypatch.setattr(torch, 'get_device_module', lambda device: SimpleNamespace(synchronize=(
        (lambda: done.append('mps')) if torch.device(device).type == 'mps' else
        (lambda named='current': done.append(str(named))))))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda x, *args, **kwargs: done.append('copy') or (
        torch.ones(x.shape) if isinstance(x, FakeTensor) else to(x, *args, **kwargs)))
    copies = devices.on_cpu({'a': first, 'b': [second, 5], 'c': torch.zeros(1)})
    assert done[:3] == ['copy'] * 3
    assert sorted(done[3:]) == waits
    assert copies['b'][1] == 5
    assert all(x.device == CPU for x in (copies['a'], copies['b'][0], copies['c']))
    done.clear()
    assert devices.on_cpu(copies)['a'] is copies['a']
    assert done == ['copy'] * 3  # which PyTorch need not make


def test_the_random_state_of_any_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {'mps': torch.tensor([1]), 'xpu': torch.tensor([2])}
    monkeypatch.setattr(torch, 'get_device_module', lambda device: SimpleNamespace(
        get_rng_state=lambda: states[device.type].clone(), set_rng_state=lambda x: states.update({device.type: x})))
    kept = devices.random_states(torch.device('mps'))
    assert kept.keys() == {'cpu', 'mps'}
    drawn = torch.rand(3)
    states.update(mps=torch.tensor([7]), xpu=torch.tensor([8]))
    devices.restore_random_states(kept, torch.device('mps'))
    assert torch.equal(torch.rand(3), drawn)
    assert states == {'mps': torch.tensor([1]), 'xpu': torch.tensor([8])}
    devices.restore_random_states(kept, torch.device('xpu'))  # of which the run before had none
    assert devices.random_states(CPU).keys() == {'cpu'}


def test_basnet_and_its_images_have_one_memory_order(tmp_path: Path) -> None:
    torch.save(BASNet().state_dict(), tmp_path / 'basnet.pth')
    source = build_source('basnet', 'cpu', weights=tmp_path / 'basnet.pth', input_size=32)
    seen = []
    source.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
    source([torch.zeros(40, 30, 3, dtype=torch.uint8).numpy()] * 2)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert source.network.inconv.weight.is_contiguous(memory_format=torch.channels_last)
