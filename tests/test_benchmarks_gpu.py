"""The table for a GPU is made of figures that belong together; here of a CPU, without processes of their own."""
import itertools
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, train_step

ARGUMENTS = ['--device', 'cpu', '--backbone', 'resnet18', '--batches', '2', '--size', '32', '--workers', '0', '--steps',
             '2', '--predict', '32', '--images', '4', '--eager']


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu, 'apart', lambda function, *args: function(*args))
    monkeypatch.setattr(gpu, 'WARM', 1)
    monkeypatch.setattr(gpu, 'computes_bf16', lambda device: False)
    monkeypatch.setitem(gpu.SIDE, 'cpu', 64)
    gpu.main(ARGUMENTS)
    lines = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}
    steps = [name for name in rows if name.endswith('2 pairs')]
    assert steps == ['reference, fp32, 2 pairs', 'ours, fp32, 2 pairs']
    assert len(rows) == 6
    for name in steps:
        milliseconds, pairs, peak, *_ = rows[name]
        assert float(pairs) == pytest.approx(2000 / float(milliseconds.split()[0]), abs=0.06)
        assert float(peak) > 0.1
    assert float(rows['loader, 0 workers'][1]) > 0
    assert rows['fp32 behind 0 workers'][-1].startswith('waits ')
    assert float(rows['predict.py'][1]) > 0


@pytest.mark.parametrize('unread', [False, True])
def test_a_failed_way_is_a_row(unread: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def apart(function, *args):
        if function is gpu.time_step and args[0] == 'reference':
            raise TypeError('cannot\nbe read') if unread else RuntimeError('CUDA out of memory')
        return {gpu.time_step: (1.0, 1000.0, 10 ** 12), gpu.time_product: 2e12, gpu.time_loader: 5.0,
                gpu.time_both: (1.0, 0.5)}[function]

    monkeypatch.setattr(gpu, 'apart', apart)
    monkeypatch.setattr(gpu.prediction, 'measure', lambda args, device: [(1, 1), (2, 2)])
    gpu.main(ARGUMENTS)
    printed = capsys.readouterr().out
    assert f'| failed: {"cannot be read" if unread else "CUDA out of memory"} ' in printed
    assert '0.93 ' in printed  # 1000 MB in GiB
    assert '50%' in printed


@pytest.mark.parametrize(('device', 'steps', 'own'), [
    ('cuda', ['step'] * gpu.WARM + ['reset', 'step', 'step', 'peak', 'step'],
     ['step', 'step', 'reset', 'step', 'peak']),
    ('cpu', ['step'] * (gpu.WARM + 3), ['step', 'step'])])
def test_memory_of_a_gpu_is_that_of_steps_after_the_first(device: str, steps: list[str], own: list[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of the table counts FLOP."""
    done, pixels = list[str](), list[int]()

    class Way:
        def __init__(self, *_: object) -> None:
            self.batch = {'query_pixels': torch.arange(9), 'query': torch.zeros(9)}

        def step(self) -> float:
            pixels.append(len(self.batch['query_pixels']))
            assert len(self.batch['query']) == 9
            done.append('step')
            return 1.0

    for module in (gpu, train_step):
        monkeypatch.setattr(module, 'Way', Way)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: done.append('reset'))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: done.append('peak') or 3e6)
    args = Namespace(device=device, steps=2, compile=True, threads=torch.get_num_threads())
    assert gpu.time_step('fp32', args)[0] == 1
    assert pixels == [8, *[9] * (len(pixels) - 1)]  # compiled for any number of pixels
    assert done == steps
    done.clear()
    assert train_step.own_peak_memory('fp32', args) > 1
    assert done == own


@pytest.mark.parametrize(('slow', 'waits'), [(0.03, 0.6), (0.0, 0.0)])
def test_batches_made_ahead_hide_no_slow_loader(slow: float, waits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Way:
        def __init__(self, *_: object) -> None:
            self.batch = {}

        def step(self) -> None:
            time.sleep(0.02)

    def batches(folder: Path, workers: int, args: Namespace) -> Iterator[dict]:
        for number in itertools.count():
            time.sleep(slow if number > gpu.AHEAD * workers else 0.0)
            yield {}

    monkeypatch.setattr(gpu, 'WARM', 1)
    monkeypatch.setattr(gpu, 'Way', Way)
    monkeypatch.setattr(gpu, 'batches', batches)
    args = Namespace(steps=4, batch=10)
    assert gpu.time_both('fp32', Path(), 2, args)[1] == pytest.approx(waits, abs=0.12)
    if slow:
        assert gpu.time_loader(Path(), 2, args) < 10 / slow


@pytest.mark.parametrize('name', ['reference', 'fp32'])
@pytest.mark.parametrize(('batch', 'K'), [(2, 128), (48, 144), (130, 130)])
def test_both_ways_have_the_bank_of_the_presets_and_a_pinned_batch(name: str, batch: int, K: int,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda x: pinned.append(x) or x)
    monkeypatch.setattr(torch.nn.Module, 'to', lambda module, *_, **__: module)
    way = train_step.Way(name, Namespace(device='cuda', batch=batch, size=16, backbone='resnet18', freeze=True,
                                         compile=False))
    assert way.model.queue.shape[1] == K
    assert way.batch.keys() >= {'query', 'key', 'query_mask', 'key_mask'}
    assert all(any(value is x for x in pinned) for value in way.batch.values())
