"""Confusion matrix, IoU, running means, results and pictures."""
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation.metrics import confusion_matrix, iou_of
from utils.report.pictures import CAPTION, PART, montage, panel
from utils.report.results import iou_entry, log_iou, save_results
from utils.run.errors import UserError
from utils.run.files import PALETTE, save_label_map
from utils.run.trainer import Mean


def test_confusion_and_iou_against_loops() -> None:
    draw = np.random.default_rng(0)
    truth, prediction = draw.integers(0, 5, (20, 30)), draw.integers(0, 4, (20, 30))
    truth[truth == 4] = 255
    expected = np.zeros((5, 5), int)
    for t, q in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, q] += 1
    confusion = confusion_matrix(truth.astype(np.uint8), prediction.astype(np.uint8), 5)
    assert np.array_equal(confusion, expected)
    iou = iou_of(confusion)
    for c in range(4):
        hits = expected[c, c]
        assert iou[c] == pytest.approx(hits / (expected[c].sum() + expected[:, c].sum() - hits))
    assert iou[4] == 0


def test_running_means() -> None:
    mean = Mean()
    assert mean.read() == {}
    for value in (1.0, 3.0):
        mean.add({'loss': torch.tensor(value), 'accuracy': torch.tensor(value / 2)})
    assert mean.read() == {'loss': 2.0, 'accuracy': 1.0}
    mean.add({'loss': torch.tensor(8.0), 'accuracy': torch.tensor(6.0)}, 2)
    assert mean.read() == {'loss': 3.0, 'accuracy': 2.0}


def test_results_print_in_the_published_form(caplog, tmp_path: Path) -> None:
    iou = np.array([0.9095, 0.83777])
    with caplog.at_level(logging.INFO):
        log_iou(iou_entry(iou, ['background', 'aeroplane'], np.ones(2, bool)))
    assert caplog.messages == ['mIoU is 87.36', 'IoU class background is 90.95', 'IoU class aeroplane is 83.78']
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log_iou(iou_entry(np.array([0.9, 0, 0.5]), ['background', 'boat', 'cat'], np.array([True, False, True])))
    assert caplog.messages[0] == 'mIoU is 46.67'  # the published mean
    assert caplog.messages[-1] == (
        '1 of the 3 classes have no pixel in the ground truth (boat); the mean of the other 2 is 70.00')
    entry = iou_entry(np.array([0.9, 0, 0.5]), ['background', 'boat', 'cat'], np.array([True, False, True]))
    assert (entry['absent_classes'], entry['mIoU_present']) == (['boat'], pytest.approx(70))
    with pytest.raises(UserError, match='^none of the classes a, b has a pixel in the ground truth'):
        iou_entry(np.zeros(2), ['a', 'b'], np.zeros(2, bool))
    with pytest.raises(UserError, match='^the ground truth has no pixel to score: all carry the ignore label'):
        iou_of(np.zeros((3, 3), int))
    save_results({'linear': iou_entry(iou, ['background', 'aeroplane'], np.ones(2, bool))}, tmp_path)
    save_results({'kmeans': {'mIoU': 1}}, tmp_path)
    stored = json.loads((tmp_path / 'results.json').read_text())
    assert stored['linear']['IoU']['aeroplane'] == pytest.approx(83.777)
    assert stored['kmeans'] == {'mIoU': 1}
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']


def test_palette_is_vocs(tmp_path: Path) -> None:
    assert PALETTE[[0, 1, 2, 3, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0],
                                                       [0, 64, 128], [224, 224, 192]]
    labels = np.array([[0, 20], [255, 1]], np.uint8)
    save_label_map(labels, tmp_path / 'map.png')
    stored = Image.open(tmp_path / 'map.png')
    assert stored.mode == 'P'
    assert np.array_equal(np.array(stored), labels)
    assert np.array_equal(np.array(stored.convert('RGB')), PALETTE[labels])


def test_panel_and_montage() -> None:
    image, labels = np.full((20, 30, 3), 7, np.uint8), np.ones((20, 30), np.uint8)
    joined = np.array(panel([image, labels], ['image', 'truth']))
    assert joined[-1, 0].tolist() == [7, 7, 7]
    assert joined[-1, -1].tolist() == [128, 0, 0]
    labels = np.arange(2, dtype=np.uint8).repeat(250)[None].repeat(375, 0)
    small = np.array(panel([np.zeros((375, 500, 3), np.uint8), labels], ['image', 'truth']))
    assert small.shape[:2] == (150 + CAPTION, 2 * PART + 4)
    assert np.unique(small[CAPTION:, PART + 4:].reshape(-1, 3), axis=0).tolist() == [[0, 0, 0], [128, 0, 0]]
    assert montage([joined] * 3, 2).size == (2 * joined.shape[1] + 8, 2 * joined.shape[0] + 8)
