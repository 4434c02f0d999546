"""Three training steps, figure by figure, against the original implementation in float64."""
import numpy as np
import pytest
import torch
from torch import nn

from models.backbones import freeze_layers
from models.segmentation import ContrastiveSegmentationModel
from pretrain.losses import accuracy, compute_losses, contrastive_loss, saliency_loss
from pretrain.maskcontrast import MaskContrast
from tests.golden_inputs import GOLDENS, fill, images, masks, tensor, unit_columns
from tests.test_pretrain_maskcontrast import batch_of
from tests.test_pretrain_maskcontrast import step as forward
from utils.run.devices import Precision


def build(tag: str, dtype: torch.dtype) -> tuple[MaskContrast, dict]:
    what = GOLDENS[tag]['what']
    encoder = fill(ContrastiveSegmentationModel(what['backbone'], what['ndim'], dropout=what['dropout']))
    method = MaskContrast(encoder, what['ndim'], what['K'], what['m'], what['T']).to(dtype)
    method.queue.copy_(tensor(unit_columns(tag, what['ndim'], what['K']), dtype))
    if what['freeze_layers']:
        for model in (method.model_q, method.model_k):
            freeze_layers(model.backbone)
    return method, what


@pytest.mark.parametrize('tag', ['r18', 'r18-freeze'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_steps(tag: str, dtype: torch.dtype) -> None:
    method, what = build(tag, dtype)
    size, batch, double = what['size'], what['batch'], dtype == torch.float64
    golden = GOLDENS[tag]
    rel = 1e-8 if double else 1e-4

    method.eval()
    with torch.no_grad():
        embedding, scores = method.model_q(tensor(images(f'{tag}/eval', 2, size), dtype))
    assert embedding.mean().item() == pytest.approx(golden['eval_embedding_mean'], rel=rel)
    assert embedding.std().item() == pytest.approx(golden['eval_embedding_std'], rel=rel)
    assert scores.mean().item() == pytest.approx(golden['eval_saliency_mean'], rel=rel)
    at = embedding[:, ::8, size // 3, size // 2].flatten()
    np.testing.assert_allclose(at, golden['eval_embedding_at']['values'], rtol=rel, atol=1e-8 if double else 1e-3)
    at = scores[:, size // 3, ::size // 4].flatten()
    np.testing.assert_allclose(at, golden['eval_saliency_at']['values'], rtol=rel, atol=1e-8 if double else 1e-3)

    method.train()
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, **what['sgd'])
    for step, expected in enumerate(golden['steps'][:None if double else 1]):
        views = [tensor(draw(f'{tag}/{view}{step}', batch, size), dtype)
                 for view in 'qk' for draw in (images, masks)]
        output = forward(method, views)
        contrastive = contrastive_loss(output.logits, output.labels)
        saliency = saliency_loss(output.saliency, views[1])
        optimizer.zero_grad()
        (contrastive + saliency).backward()
        optimizer.step()

        assert list(output.logits.shape) == expected['logits_shape']
        assert {str(i): n for i, n in enumerate(output.labels.bincount().tolist())} == expected['labels_count']
        assert contrastive.item() == pytest.approx(expected['contrastive_loss'], rel=rel)
        assert saliency.item() == pytest.approx(expected['saliency_loss'], rel=rel)
        assert method.queue_ptr.item() == expected['queue_ptr']
        if not double:
            continue
        assert output.logits.mean().item() == pytest.approx(expected['logits_mean'], rel=1e-8)
        assert output.logits.std().item() == pytest.approx(expected['logits_std'], rel=1e-8)
        assert accuracy(output.logits, output.labels).item() == pytest.approx(expected['top1'], rel=1e-6)
        named = dict(method.model_q.named_parameters())
        for name, norm in expected['grad_norms'].items():
            assert named[name].grad.norm().item() == pytest.approx(norm, rel=1e-8), name
        first = method.queue[::32 // len(expected['queue_first_key']), step * batch]
        np.testing.assert_allclose(first, expected['queue_first_key'], atol=1e-8)
        assert method.model_k.head.weight.sum().item() == pytest.approx(expected['key_head_weight_sum'], rel=1e-8)
        assert method.model_q.head.weight.sum().item() == pytest.approx(expected['query_head_weight_sum'], rel=1e-8)
        running_mean = method.model_k.backbone.bn1.running_mean.sum().item()
        assert running_mean == pytest.approx(expected['key_bn1_running_mean_sum'], rel=1e-8)


@pytest.mark.parametrize('chunk', [0, 100])
def test_the_options_of_speed_change_no_figure(chunk: int) -> None:
    """Channels-last weights and images, the loss in chunks: what training runs, held to the golden steps."""
    tag = 'r18'
    method, what = build(tag, torch.float64)
    precision = Precision(torch.device('cpu'))
    precision.to_device(method.train())
    optimizer = torch.optim.SGD(method.model_q.parameters(), **what['sgd'])
    for step, expected in enumerate(GOLDENS[tag]['steps']):
        views = [tensor(draw(f'{tag}/{view}{step}', what['batch'], what['size']), torch.float64)
                 for view in 'qk' for draw in (images, masks)]
        losses = compute_losses(method, batch_of(views), precision, chunk)
        precision.step(losses['loss'], optimizer)
        assert losses['contrastive'].item() == pytest.approx(expected['contrastive_loss'], rel=1e-8)
        assert losses['saliency'].item() == pytest.approx(expected['saliency_loss'], rel=1e-8)
        assert losses['accuracy'].item() == pytest.approx(expected['top1'], rel=1e-6)
        named = dict(method.model_q.named_parameters())
        for name, norm in expected['grad_norms'].items():
            assert named[name].grad.norm().item() == pytest.approx(norm, rel=1e-8), name
        assert method.model_k.head.weight.sum().item() == pytest.approx(expected['key_head_weight_sum'], rel=1e-8)


def test_saliency_loss() -> None:
    logits, labels = tensor(images('bce', 3, 32)[:, 0]), tensor(masks('bce', 3, 32))
    assert saliency_loss(logits, labels).item() == pytest.approx(GOLDENS['balanced_bce']['loss'], rel=1e-8)
    assert saliency_loss(logits, torch.ones_like(labels)).item() == 0
    assert saliency_loss(logits, torch.zeros_like(labels)).item() == 0
    assert saliency_loss(torch.full((1, 4), 1e4), torch.tensor([[0, 1, 1, 0]])).isfinite()


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_parameter_counts(backbone: str) -> None:
    model = ContrastiveSegmentationModel(backbone)
    assert sum(p.numel() for p in model.parameters()) == GOLDENS['parameters'][backbone]['total']
    assert len(model.state_dict()) == GOLDENS['parameters'][backbone]['tensors']


def test_frozen_layers_stay() -> None:
    method, what = build('r18-freeze', torch.float32)
    method.train()
    backbone = method.model_q.backbone
    frozen = [m for name in ('conv1', 'bn1', 'layer1', 'layer2') for m in backbone.get_submodule(name).modules()]
    assert not any(m.training for m in frozen)
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert any(m.training for m in backbone.layer3.modules() if isinstance(m, nn.BatchNorm2d))
