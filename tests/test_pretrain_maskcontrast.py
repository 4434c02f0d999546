"""Loss, bank and prototypes against slow oracles written as loops."""
import math

import pytest
import torch

from models.backbones import IMAGENET
from models.segmentation import (
    ContrastiveSegmentationModel,
    mask_prototypes,
    pixel_embeddings,
    resize,
    weighted_prototypes,
)
from pretrain.losses import accuracy, chunked_contrastive_loss, contrastive_loss, saliency_loss
from pretrain.maskcontrast import MaskContrast, Output


def test_contrastive_loss_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    images, bank, pixels = 3, 5, 40
    logits = torch.randn(pixels, images + bank, generator=generator, dtype=torch.float64)
    labels = torch.randint(images, (pixels,), generator=generator)
    total = weights = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        share = sum(1 for other in labels.tolist() if other == label) / pixels
        weight = 1 / math.log(1.02 + share)
        total += weight * (math.log(sum(math.exp(x) for x in row)) - row[label])
        weights += weight
    assert contrastive_loss(logits, labels).item() == pytest.approx(total / weights, rel=1e-12)


@pytest.mark.parametrize('chunk', [1, 7, 40, 1000])
def test_chunked_loss_equals_the_plain_one(chunk: int) -> None:
    generator = torch.Generator().manual_seed(4)
    images, bank, pixels, dim = 3, 5, 40, 6
    q, columns = (torch.nn.functional.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)
                  for n in (pixels, images + bank))
    labels = torch.randint(images, (pixels,), generator=generator)
    first, second = q.clone().requires_grad_(), q.clone().requires_grad_()
    logits = first @ columns.T / 0.5
    plain = contrastive_loss(logits, labels)
    chunked, top1 = chunked_contrastive_loss(second, columns.T, labels, 0.5, chunk)
    (3 * plain).backward()
    (3 * chunked).backward()
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-10, atol=1e-14)
    assert top1 == accuracy(logits, labels)


def test_collapsed_embeddings_are_no_success() -> None:
    q, keys, labels = torch.zeros(40, 6), torch.ones(6, 9), torch.arange(4).repeat(10)
    _, top1 = chunked_contrastive_loss(q, keys, labels, 0.5, 7)
    assert top1 == accuracy(q @ keys, labels) == 0.25


def test_a_batch_without_foreground_has_no_contrastive_loss() -> None:
    loss, _ = chunked_contrastive_loss(torch.zeros(0, 6), torch.ones(6, 9), torch.zeros(0, dtype=torch.long), 0.5, 7)
    assert loss == 0


def test_saliency_loss_against_loops() -> None:
    scores, masks = [0.3, -1.2, 2.0, 0.1, -0.4], [1, 0, 1, 0, 0]
    w = masks.count(0) / len(masks)
    total = 0.0
    for s, y in zip(scores, masks, strict=True):
        p = 1 / (1 + math.exp(-s))
        total += -w * math.log(p) if y else -(1 - w) * math.log(1 - p)
    loss = saliency_loss(torch.tensor(scores), torch.tensor(masks))
    assert loss.item() == pytest.approx(total / len(masks), rel=1e-6)


def test_mask_prototypes_against_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    masks = torch.randint(2, (3, 5, 6), generator=generator)
    masks[2] = 0
    pixels = pixel_embeddings(embeddings, (5, 6), foreground(masks))
    prototypes = mask_prototypes(pixels, foreground(masks) // 30, 3)
    for b in range(3):
        total = torch.zeros(4, dtype=torch.float64)
        for y in range(5):
            for x in range(6):
                if masks[b, y, x]:
                    total += embeddings[b, :, y, x] / embeddings[b, :, y, x].norm()
        torch.testing.assert_close(prototypes[b], total / total.norm() if masks[b].any() else total)


@pytest.mark.parametrize('size', [(32, 48), (30, 41), (4, 6)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_pixel_embeddings_are_those_of_the_whole_resize(size: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(3, 7, 4, 6, generator=generator, dtype=dtype)
    first, second = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    masks = torch.randint(2, (3, *size), generator=generator)
    masks[1] = 0
    large = torch.nn.functional.normalize(resize(first, size), dim=1).permute(0, 2, 3, 1)
    expected, found = large[masks.bool()], pixel_embeddings(second, size, foreground(masks))
    bar = {'rtol': 0, 'atol': 1e-6 if dtype == torch.float32 else 1e-14}
    torch.testing.assert_close(found, expected, **bar)
    slope = torch.randn(expected.shape, generator=generator, dtype=dtype)
    expected.backward(slope)
    found.backward(slope)
    torch.testing.assert_close(second.grad, first.grad, rtol=0, atol=20 * bar['atol'])


@pytest.mark.parametrize('size', [(32, 48), (30, 41)])
def test_weighted_prototypes_equal_upsampling_first(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 7, 4, 6, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, *size, generator=generator, dtype=torch.float64).mul(2).sub(1).clamp_min(0)
    weights[1] = 0
    large = torch.nn.functional.interpolate(features, size, mode='bilinear', align_corners=False)
    expected = torch.nn.functional.normalize((large * weights[:, None]).sum((2, 3)), dim=1)
    torch.testing.assert_close(weighted_prototypes(features, weights), expected)


def foreground(masks: torch.Tensor) -> torch.Tensor:
    return masks.flatten().nonzero()[:, 0].int()


def batch_of(views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views and masks as a loader batches them."""
    batch = dict(zip(('query', 'query_mask', 'key', 'key_mask'), views, strict=True))
    return batch | {f'{view}_pixels': foreground(batch[f'{view}_mask']) for view in ('query', 'key')}


def step(model: MaskContrast, views: list[torch.Tensor]) -> Output:
    return model(views[0], foreground(views[1]), views[2], foreground(views[3]))


def method(K: int = 7, size: int = 32, batch: int = 3, **model) -> tuple[MaskContrast, list[torch.Tensor]]:
    torch.manual_seed(0)
    encoder = ContrastiveSegmentationModel('resnet18', 8, dropout=0.0, **model)
    masks = torch.zeros(batch, size, size, dtype=torch.uint8)
    masks[:, 4:20, 8:24] = 1
    views = [torch.randn(batch, 3, size, size), masks, torch.randn(batch, 3, size, size), masks.flip(2)]
    return MaskContrast(encoder, 8, K, m=0.9), views


def test_bank_is_a_ring_that_wraps_around() -> None:
    model, views = method(K=7)
    model.train()
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(7))
    untouched = model.queue[:, 6].clone()
    step(model, views)
    step(model, views)
    assert model.queue_ptr.item() == 6
    assert torch.equal(model.queue[:, 6], untouched)
    kept = model.queue.clone()
    step(model, views)
    assert model.queue_ptr.item() == 2
    assert torch.equal(model.queue[:, 2:6], kept[:, 2:6])
    assert not torch.isclose(model.queue[:, [6, 0, 1]], kept[:, [6, 0, 1]]).all(0).any()
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(7))


def test_key_encoder_moves_before_it_is_used_and_has_no_gradient() -> None:
    model, views = method()
    model.train()
    with torch.no_grad():
        for parameter in model.model_q.parameters():
            parameter.add_(1)
    before = [p.clone() for p in model.model_k.parameters()]
    output = step(model, views)
    for old, new, query in zip(before, model.model_k.parameters(), model.model_q.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
    contrastive_loss(output.logits, output.labels).backward()
    assert all(p.grad is None for p in model.model_k.parameters())
    assert model.model_q.head.weight.grad.abs().sum() > 0


def test_logits_hold_the_batch_first_and_the_bank_of_before() -> None:
    model, views = method()
    model.eval()
    bank = model.queue.clone()
    with torch.no_grad():
        output = step(model, views)
        embedding, _ = model.model_q(views[0])
        key = torch.nn.functional.normalize(model.model_k(views[2])[0], dim=1)
        keys = torch.nn.functional.normalize((key * views[3][:, None]).sum((2, 3)), dim=1)
    q = torch.nn.functional.normalize(embedding, dim=1).permute(0, 2, 3, 1)[views[1].bool()]
    torch.testing.assert_close(output.logits, q @ torch.cat([keys.T, bank], 1) / 0.5)
    assert output.labels.bincount().tolist() == [256, 256, 256]


@pytest.mark.parametrize('colours', [IMAGENET, ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))])
def test_views_of_8_bits_become_what_the_backbone_wants(colours: tuple) -> None:
    model, views = method()
    model.model_q.backbone.mean, model.model_q.backbone.std = colours
    model = MaskContrast(model.model_q, 8, 7).train()
    seen = []
    for encoder in (model.model_k, model.model_q):
        encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    views[0], views[2] = (torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    step(model, views)
    mean, std = (torch.tensor(colour, dtype=torch.float64).view(3, 1, 1) for colour in colours)
    for images, view in zip(seen, (views[2], views[0]), strict=True):
        assert torch.equal(images, view.float().mul_((1 / (255 * std)).float()).add_((-mean / std).float()))
        torch.testing.assert_close(images.double(), (view / 255 - mean) / std, rtol=0, atol=1e-6)
    assert not {'scale', 'shift'} & model.state_dict().keys()


def test_one_image_trains() -> None:
    model, views = method(batch=1)
    model.train()
    output = step(model, views)
    loss = contrastive_loss(output.logits, output.labels) + saliency_loss(output.saliency, views[1])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.model_q.parameters() if p.grad is not None)


def test_without_upsampling_the_outputs_are_an_eighth() -> None:
    model, views = method(upsample=False, use_classification_head=False)
    views[1], views[3] = views[1][:, ::8, ::8], views[3][:, ::8, ::8]
    output = step(model, views)
    assert output.saliency is None
    assert len(output.logits) == views[1].sum()


def test_without_a_bank_the_batch_alone_is_compared() -> None:
    model, views = method(K=0)
    output = step(model.train(), views)
    assert output.logits.shape == (views[1].sum(), 3)
    assert model.queue.shape == (8, 0)
    assert model.queue_ptr.item() == 0
    torch.testing.assert_close(chunked_contrastive_loss(output.q, output.keys, output.labels, output.T, 50)[0],
                               contrastive_loss(output.logits, output.labels))
