"""Mixed precision: what is short, what stays float32, and that the losses stay close."""
import pytest
import torch

from pretrain.losses import compute_losses
from tests.test_pretrain_maskcontrast import batch_of, method
from utils.run.devices import Precision, to_float32
from utils.run.errors import UserError

CPU = torch.device('cpu')


def run(precision: Precision, steps: int, dtype: torch.dtype = torch.float32):
    model, views = method()
    model.to(dtype).train()
    batch = {name: view.to(dtype) if view.is_floating_point() else view
             for name, view in batch_of(views).items()}
    optimizer = torch.optim.SGD(model.model_q.parameters(), 0.01)
    losses = []
    for _ in range(steps):
        found = compute_losses(model, batch, precision)
        precision.step(found['loss'], optimizer)
        losses.append(found['loss'].detach())
    return model, torch.stack(losses)


def test_bf16_keeps_weights_bank_and_losses_full() -> None:
    precision = Precision(CPU, 'bf16')
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    model, short = run(precision, 4)
    _, reference = run(Precision(CPU), 4)
    assert short.dtype == torch.float32
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(7))
    assert not torch.equal(short, reference)
    assert abs(short[0] / reference[0] - 1) < 0.02  # later ones drift apart: three images are a small batch


def test_a_float64_model_stays_float64() -> None:
    _, plain = run(Precision(CPU), 2, torch.float64)
    _, cast = run(Precision(CPU, 'bf16'), 2, torch.float64)
    assert plain.dtype == cast.dtype == torch.float64
    assert torch.equal(plain, cast)
    assert to_float32(plain) is plain


def test_memory_order_changes_nothing_but_rounding() -> None:
    _, first = run(Precision(CPU), 2)
    _, second = run(Precision(CPU, channels_last=False), 2)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match='fp16 needs a CUDA GPU; on cpu take'):
        Precision(CPU, 'fp16')
