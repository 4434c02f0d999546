"""The compiled step: that of the plain one, in one graph, whatever the number of pixels in the masks."""
import copy

import torch
from torch._dynamo.utils import counters

from models.segmentation import ContrastiveSegmentationModel
from pretrain.losses import compute_losses
from pretrain.maskcontrast import MaskContrast
from tests.test_pretrain_maskcontrast import batch_of
from utils.run.devices import Precision

BATCH, SIZE, STEPS = 2, 32, 4


def views_of(step: int) -> list[torch.Tensor]:
    """Noise whose masks have another number of pixels at each step, and in each view."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.zeros(2, BATCH, SIZE, SIZE, dtype=torch.uint8)
    masks[0, :, 4:12 + 5 * step, 6:20 + step] = masks[1, :, 3:10 + 4 * step, 5:25] = 1
    images = torch.randint(256, (2, BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return [images[0], masks[0], images[1], masks[1]]


def test_compiled_steps_are_the_plain_ones_and_compile_twice_at_most() -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    plain = MaskContrast(ContrastiveSegmentationModel('resnet18', 8, dropout=0.0, decoder='conv1x1'), 8, 6).double()
    compiled, precision = copy.deepcopy(plain), Precision(torch.device('cpu'), channels_last=False)
    compiled.compile(backend='eager')  # traced as ever, without minutes of C++
    losses, graphs = list[list[float]](), list[int]()
    for model in (plain, compiled):
        model.train()
        optimizer = torch.optim.SGD(model.model_q.parameters(), lr=1e-3)
        losses.append([])
        for step in range(STEPS):
            loss = compute_losses(model, batch_of(views_of(step)), precision)['loss']
            precision.step(loss, optimizer)
            losses[-1].append(loss.item())
            graphs.append(counters['stats']['unique_graphs'])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-8, atol=0)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert graphs == [0] * STEPS + [1] + [2] * (STEPS - 1)  # the second has any number of pixels
    assert not counters['graph_break']
