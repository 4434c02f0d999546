"""The final network of MaskDistill, its loss, frozen stages, schedule and scores, against the published code."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.coco import read_instances
from models.backbones import freeze_layers
from models.segmentation import LinearSegmentationModel
from models.weights import identify, load_strict
from segmentation.engine import compute_losses, ohem_loss
from segmentation.metrics import confusion_matrix, iou_of
from segmentation.score_instances import average_precision
from tests import golden_transformers as inputs
from tests.golden_inputs import generator, images, labels, tensor, weight
from tests.golden_transformers import GOLDENS
from utils.run.devices import Precision
from utils.run.trainer import learning_rate

CPU = Precision(torch.device('cpu'))


@pytest.mark.parametrize('name', ['a', 'b', 'c', 'd'])
def test_ohem(name: str) -> None:
    golden = GOLDENS['ohem'][name]
    logits = torch.from_numpy(generator('logits/' + name).standard_normal((2, 21, 16, 16)) * 3).requires_grad_()
    truth = tensor(labels(name, 2, 16))
    if name == 'b':
        truth[:, 2:] = 255
    assert ((truth != 255).sum().item(), truth.numel()) == (golden['valid'], golden['pixels'])
    loss = ohem_loss(logits, truth, golden['threshold'])
    assert loss.item() == pytest.approx(golden['loss'], rel=1e-8)
    loss.backward()
    assert logits.grad.norm().item() == pytest.approx(golden['grad_norm'], rel=1e-8)
    assert (logits.grad != 0).any(1).sum().item() == golden['pixels_with_gradient']


def test_a_batch_without_a_label_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model, truth = LinearSegmentationModel('resnet18', 3), torch.full((2, 32, 32), 255)
    batch = {'image': torch.zeros(2, 3, 32, 32), 'semseg': truth, 'id': ['a', 'b']}
    loss = compute_losses(model, batch, CPU, 0.2)['loss']
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert 'no pixel of the images a, b has a label' in caplog.text


def test_schedule() -> None:
    golden = GOLDENS['schedule']
    rates = [learning_rate('step', 0.002, epoch, 45, 0.1, [40]) for epoch in golden['epochs']]
    assert rates == pytest.approx(golden['lr'])


def test_evaluation() -> None:
    total = np.zeros((21, 21), np.int64)
    for i in range(4):
        truth, drawn = (labels(f'{what}{i}', 1, 40)[0] for what in ('gt', 'pred'))
        predicted = np.where(generator(f'keep{i}').random((40, 40)) < 0.6, truth, drawn)
        total += confusion_matrix(truth, np.where(predicted == 255, 0, predicted), 21)
    golden = GOLDENS['evaluation']
    np.testing.assert_allclose(iou_of(total), golden['iou'], atol=1e-12)
    assert iou_of(total).mean() == pytest.approx(golden['miou'], abs=1e-12)


@pytest.mark.parametrize(('protocol', 'most'), [('multi', None), ('single', 1)])
def test_eval_instances(tmp_path: Path, protocol: str, most: int | None) -> None:
    golden, detections = GOLDENS['eval_instances'], inputs.detections('a', 6, 6, 60, 80, classes=6)
    annotations = {'images': [{'id': i, 'file_name': f'2010_{i:06d}.jpg', 'height': 60, 'width': 80} for i in range(6)],
                   'annotations': inputs.ground_truth('a', detections, 3, 60, 80, classes=6),
                   'categories': [{'id': i, 'name': f'class {i}'} for i in range(6)]}
    for name, content in (('truth', annotations), ('found', detections)):
        (tmp_path / name).write_text(json.dumps(content))
    truth, _ = read_instances(tmp_path / 'truth')
    found, _ = read_instances(tmp_path / 'found', None, tmp_path / 'truth')
    truth, found = ({name: entries[:most] for name, entries in objects.items()} for objects in (truth, found))
    np.testing.assert_allclose(average_precision(truth, found), golden[protocol]['stats'], rtol=0, atol=1e-10)
    if most:
        kept = golden[protocol]
        assert [entry['id'] for entries in truth.values() for entry in entries] == kept['ground_truth_kept']
        assert [[entry['image_id'], entry['score']] for entries in found.values()
                for entry in entries] == kept['predictions_kept']


@pytest.mark.parametrize('group', ['md18', 'md18-free'])
def test_steps_of_the_final_network(group: str) -> None:
    golden, what = GOLDENS[group], GOLDENS[group]['what']
    model = LinearSegmentationModel('resnet18', 21, dropout=0.0)
    theirs = {name.replace('decoder.', 'head.', 1): value for name, value in model.state_dict().items()}
    state = {f'module.{name}': torch.from_numpy(np.asarray(weight(name, tuple(value.shape))))
             for name, value in theirs.items()}
    assert sorted(name for name in theirs if name.startswith('head.')) == sorted(golden['names'])
    weights = identify(state, 'theirs')
    assert weights.kind == 'linear'
    load_strict(model, weights)
    model.double()
    with torch.no_grad():
        out = model.eval()(tensor(images(f'{group}/eval', 2, 64)))
    assert out.mean().item() == pytest.approx(golden['eval_mean'], rel=1e-8)
    assert out.std().item() == pytest.approx(golden['eval_std'], rel=1e-8)
    np.testing.assert_allclose(out[:, ::5, 21, 32].flatten(), golden['eval_at']['values'], atol=1e-7)
    assert out.argmax(1).flatten().bincount(minlength=21).tolist() == golden['eval_argmax_counts']

    freeze_layers(model.backbone, what['freeze_layers'] or False)
    model.set_train_mode('none')
    for name, training in golden['in_training_mode'].items():
        assert model.backbone.get_submodule(name).training is training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **what['sgd'])
    parameters = {name.replace('decoder.', 'head.', 1): p for name, p in model.named_parameters()}
    for step, expected in enumerate(golden['steps']):
        batch = {'image': tensor(images(f'{group}/{step}', 4, 64)), 'id': list('abcd'),
                 'semseg': tensor(labels(f'{group}/{step}', 4, 64))}
        loss = compute_losses(model, batch, CPU, 0.2)['loss']
        assert loss.item() == pytest.approx(expected['loss'], rel=1e-8)
        optimizer.zero_grad()
        loss.backward()
        for name, norm in expected['grad_norms'].items():
            found = parameters[name].grad
            assert found is None if norm is None else found.norm().item() == pytest.approx(norm, rel=1e-8)
        optimizer.step()
        sums = {'conv1_weight_sum': model.backbone.conv1.weight, 'head4_weight_sum': model.classifier.weight,
                'bn1_running_mean_sum': model.backbone.bn1.running_mean,
                'layer3_bn1_running_mean_sum': model.backbone.layer3[0].bn1.running_mean}
        for name, value in sums.items():
            assert value.sum().item() == pytest.approx(expected[name], rel=1e-8)
