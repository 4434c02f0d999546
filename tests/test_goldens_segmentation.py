"""The linear probe, prototypes, cluster matching, schedules and the CRF against the original implementation."""
import numpy as np
import pytest
import torch

from models.crf import dense_crf
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel, resize, weighted_prototypes
from segmentation.clustering import match_clusters, merge_clusters
from segmentation.engine import compute_losses
from segmentation.metrics import confusion_matrix, iou_of
from tests.golden_inputs import GOLDENS, fill, generator, images, labels, photo, tensor
from utils.run.devices import Precision
from utils.run.trainer import learning_rate


def test_linear_probe() -> None:
    golden = GOLDENS['linear']
    model = fill(LinearSegmentationModel('resnet18', 21)).double()
    model.freeze_all_but_classifier()
    model.set_train_mode('all')
    optimizer = torch.optim.SGD(model.classifier.parameters(), **golden['what']['sgd'])
    for step, expected in enumerate(golden['losses']):
        batch = {'image': tensor(images(f'lin/{step}', 2, 64)), 'semseg': tensor(labels(f'lin/{step}', 2, 64))}
        loss = compute_losses(model, batch, Precision(torch.device('cpu')))['loss']
        assert loss.item() == pytest.approx(expected, rel=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.classifier.weight.sum().item() == pytest.approx(golden['weight_sum'], rel=1e-8)
    bias = model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(bias[:len(golden['bias'])], golden['bias'], atol=1e-8)


def test_prototypes() -> None:
    golden = GOLDENS['prototypes']
    model = fill(ContrastiveSegmentationModel('resnet18')).double().eval()
    x = tensor(images('proto', 4, 64))
    with torch.no_grad():
        maps = model.maps(x)
        scores = resize(maps['saliency'], x.shape[-2:])[:, 0] + 0.3
        weights = torch.where(scores > 0.5, scores, 0)
        prototypes = weighted_prototypes(maps['embedding'], weights)
    assert (weights > 0).sum((1, 2)).tolist() == golden['mask_pixels']
    np.testing.assert_allclose(prototypes[:, ::4], golden['prototype_every_4th'], atol=1e-8)


def random_clusters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = generator('hungarian')
    truth = draw.integers(0, 21, 60000)
    order = draw.permutation(21)
    one_to_one = np.where(draw.random(60000) < 0.6, order[truth], draw.integers(0, 21, 60000))
    split = np.where(draw.random(60000) < 0.6, truth + 21 * (draw.random(60000) < 0.4), draw.integers(0, 42, 60000))
    return truth, one_to_one, split


def test_hungarian_matching() -> None:
    truth, prediction, _ = random_clusters()
    golden = GOLDENS['hungarian']
    confusion = confusion_matrix(truth, prediction, 21)
    mapping = match_clusters(confusion)
    assert {str(i): int(c) for i, c in enumerate(mapping)} == golden['cluster_to_class']
    iou = iou_of(merge_clusters(confusion, mapping))
    np.testing.assert_allclose(iou, golden['iou'], atol=1e-8)
    assert iou.mean() == pytest.approx(golden['miou'], rel=1e-8)


def test_majority_vote() -> None:
    truth, _, prediction = random_clusters()
    confusion = confusion_matrix(truth, prediction, 21, 42)
    mapping = match_clusters(confusion)
    assert mapping.tolist() == GOLDENS['majority_vote']['cluster_to_class']
    iou = iou_of(merge_clusters(confusion, mapping))
    assert iou.mean() == pytest.approx(GOLDENS['majority_vote']['miou'], rel=1e-8)


@pytest.mark.parametrize('name', ['poly', 'step', 'cosine'])
def test_learning_rate(name: str) -> None:
    golden = GOLDENS['learning_rate'][name]
    for epoch, expected in golden['lr_at'].items():
        lr = learning_rate(name, golden['base_lr'], int(epoch), golden['epochs'], 0.1, [25])
        assert lr == pytest.approx(expected, rel=1e-12)
    assert learning_rate('constant', 0.3, 7, 9) == 0.3


def test_crf() -> None:
    pytest.importorskip('pydensecrf', reason='the CRF is optional')
    y, x = np.mgrid[:16, :16]
    circle = ((y - 7.5) ** 2 + (x - 7.5) ** 2) / 5.3 ** 2 < 1
    logits = generator('crf/logits').standard_normal((21, 16, 16)).astype(np.float32)
    logits[0][~circle] += 2.5
    logits[8][circle] += 2.5
    before = resize(torch.from_numpy(logits)[None], (96, 128))[0].argmax(0).numpy()
    golden = GOLDENS['crf']
    assert {str(c): int(n) for c, n in zip(*np.unique(before, return_counts=True), strict=True)} \
        == golden['pixels_per_class_before']
    y, x = np.mgrid[:96, :128]
    truth = np.where(((y - 48) / 32) ** 2 + ((x - 64) / (128 / 3)) ** 2 < 1, 8, 0)
    assert (before == truth).mean() == pytest.approx(golden['agreement_before'], rel=1e-8)
    as_the_kernel_gets_it = photo('crf', 96, 128)[..., ::-1]  # dense_crf takes RGB and hands on BGR
    after = dense_crf(as_the_kernel_gets_it, torch.from_numpy(logits))
    counts = np.bincount(after.ravel(), minlength=21)
    different = sum(abs(counts[c] - golden['pixels_per_class'].get(str(c), 0)) for c in range(21)) / 2
    assert different <= 0.001 * after.size
    assert (after == truth).mean() == pytest.approx(golden['agreement_after'], abs=1e-3)
