"""A part of a data set at reduced size."""
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.voc import VOCSegmentation
from experiments import subset
from utils.report.pictures import thumbnail
from utils.run.errors import UserError


def test_a_part_at_half_the_size(shapes: Path, tmp_path: Path) -> None:
    whole = VOCSegmentation(shapes, 'val', semseg=True, saliency='supervised_model')
    lists, part = tmp_path / 'lists', tmp_path / 'part'
    lists.mkdir()
    (lists / 'val.txt').write_text('\n'.join(whole.ids[1:4]) + '\n')
    arguments = ['--voc', str(shapes), '--output', str(part), '--lists', str(lists), '--size', '32']
    subset.main(arguments)
    (part / 'dataset.yml').write_text((shapes / 'dataset.yml').read_text())
    small = VOCSegmentation(part, 'val', semseg=True, saliency='supervised_model')
    assert small.ids == whole.ids[1:4]
    for before, after in zip([whole[i] for i in (1, 2, 3)], small, strict=True):
        height, width = after['image'].shape[:2]
        assert max(height, width) == 32
        assert after['semseg'].shape == after['sal'].shape == (height, width)
        for key in ('semseg', 'sal'):
            large = cv2.resize(after[key], before[key].shape[::-1], interpolation=cv2.INTER_NEAREST)
            assert (large == before[key]).mean() > 0.9
        assert np.abs(after['image'].mean((0, 1)) - before['image'].mean((0, 1))).max() < 3
    with pytest.raises(UserError, match='exists; choose another --output'):
        subset.main(arguments)
    with pytest.raises(UserError, match='no lists in'):
        subset.main([*arguments[:3], str(tmp_path / 'new'), '--lists', str(tmp_path / 'db')])


def test_small_images_are_not_enlarged() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    assert thumbnail(image, 40).shape == (10, 20, 3)
    assert thumbnail(image, 10).shape == (5, 10, 3)
