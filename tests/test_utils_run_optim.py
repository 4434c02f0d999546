"""Optimisers under loss scaling: a step that overflows is skipped and leaves nothing behind."""
from collections.abc import Iterator

import pytest
import torch

from utils.run.devices import Precision
from utils.run.trainer import build_optimizer

FUSED = {'sgd': torch.optim.SGD, 'adam': torch.optim.Adam}


@pytest.fixture
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills it
    yield
    torch.use_deterministic_algorithms(False)


def train(name: str, monkeypatch: pytest.MonkeyPatch, fused: bool, overflows: tuple[int, ...]) -> list[torch.Tensor]:
    """The weights after each of four steps; on the CPU PyTorch has the fused kernels of a GPU too."""
    kind = FUSED[name]
    monkeypatch.setattr(torch.optim, kind.__name__, lambda *args, **kwargs: kind(*args, **{**kwargs, 'fused': fused}))
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(name, network.parameters(), 0.01)
    precision = Precision(torch.device('cpu'))
    precision.scaler = torch.amp.GradScaler('cpu', init_scale=2. ** 16)
    weights = []
    for step in range(4):
        loss = network(torch.ones(2, 4)).square().mean()
        precision.step(loss * (1e38 if step in overflows else 1), optimizer)
        weights.append(network.weight.detach().clone())
    return weights


@pytest.mark.usefixtures('_uninitialised_memory_is_nan')
@pytest.mark.parametrize('name', ['sgd', 'adam'])
@pytest.mark.parametrize('overflows', [(), (0,), (0, 2)])
def test_an_overflow_leaves_the_fused_optimiser_as_it_leaves_the_plain_one(
        name: str, overflows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    fused = train(name, monkeypatch, True, overflows)
    plain = train(name, monkeypatch, False, overflows)
    for ours, reference in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=0)
    assert all(torch.equal(fused[step], fused[step - 1]) for step in overflows if step)


def test_the_first_step_with_a_momentum_of_zero_is_pytorchs() -> None:
    torch.manual_seed(0)
    weights = torch.randn(50, 7)
    ours, reference = (torch.nn.Parameter(weights.clone()) for _ in range(2))
    optimizers = (build_optimizer('sgd', [ours], 0.1, 0.9, 1e-4, nesterov=True),
                  torch.optim.SGD([reference], 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True))
    for _ in range(3):
        gradient = torch.randn(50, 7)
        for parameter, optimizer in zip((ours, reference), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(ours, reference)


@pytest.mark.parametrize('orders', [(torch.channels_last, torch.contiguous_format),
                                    (torch.contiguous_format, torch.channels_last)])
@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_a_run_goes_on_in_another_memory_order(name: str, orders: tuple[torch.memory_format, ...]) -> None:
    torch.manual_seed(0)
    weights, gradients = torch.randn(6, 5, 3, 3), torch.randn(4, 6, 5, 3, 3)

    def train(first: torch.memory_format, last: torch.memory_format) -> torch.Tensor:
        kept, state = weights, None
        for order, steps in ((first, gradients[:2]), (last, gradients[2:])):
            parameter = torch.nn.Parameter(kept.clone(memory_format=order))
            optimizer = build_optimizer(name, [parameter], 0.1)
            if state is not None:
                optimizer.load_state_dict(state)
            for gradient in steps:
                parameter.grad = gradient.clone(memory_format=order)
                optimizer.step()
            kept, state = parameter.detach(), optimizer.state_dict()
        return kept

    assert torch.allclose(train(*orders), train(orders[1], orders[1]), atol=1e-6)
