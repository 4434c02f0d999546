"""The benchmark of what workers send runs, and its reference shows the same views."""
import pytest
import torch
from torchvision.transforms.v2 import functional

from benchmarks import transport
from experiments.estimate import draw_batch
from models.backbones import IMAGENET


def test_table(capsys: pytest.CaptureFixture) -> None:
    transport.main(['--batch', '2', '--size', '16', '--batches', '3', '--rounds', '1'])
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[1].strip(): [float(cell) for cell in cells[2:5]] for cells in (line.split('|') for line in lines[3:])}
    assert list(rows) == ['reference', 'ours']
    assert rows['ours'][2] == pytest.approx(rows['ours'][1] / rows['reference'][1], rel=0.1)


def test_both_send_the_same_views() -> None:
    batch = draw_batch(2, 16)
    plain = transport.plain(batch)
    assert set(plain) == {'query', 'key', 'query_mask', 'key_mask'}
    assert torch.equal(plain['key'], functional.normalize(batch['key'] / 255, *IMAGENET))
    assert torch.equal(plain['key_mask'], batch['key_mask'])
    assert 4 * batch['query'].nbytes == plain['query'].nbytes
