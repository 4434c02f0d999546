"""Average precision of instance masks in COCO's files, against figures worked out by hand."""
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import coco
from data.coco import write_coco
from segmentation import score_instances
from utils.run.errors import UserError

Box = tuple[int, int, int, int]
LEFT, RIGHT = (2, 2, 8, 10), (20, 2, 8, 10)  # x, y, width, height
IMAGES = [{'id': i, 'file_name': f'{name}.jpg', 'height': 20, 'width': 30} for i, name in ((7, 'a'), (3, 'b'))]
CATEGORIES = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}, {'id': 5, 'name': 'cow'}]


def entry(image_id: int, box: Box, category_id: int = 1, **others: Any) -> dict[str, Any]:
    x, y, width, height = box
    return {'image_id': image_id, 'category_id': category_id, 'bbox': list(box), **others,
            'segmentation': [[x, y, x + width, y, x + width, y + height, x, y + height]]}


TRUTH = [entry(7, LEFT, id=0, area=80), entry(3, RIGHT, id=1, area=80), entry(3, LEFT, 2, id=2, area=80)]
FOUND = [{**found, 'score': 0.9} for found in (entry(7, LEFT), entry(3, RIGHT), entry(3, LEFT, 2))]


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """score(predictions, annotations, *flags, **of_truth): results.json; of_truth: other entries of that file."""
    def run(predictions: Any, annotations: Any, *flags: str, **of_truth: Any) -> dict[str, Any]:
        content = {'images': IMAGES, 'annotations': annotations, 'categories': CATEGORIES} | of_truth
        (tmp_path / 'truth.json').write_text(json.dumps(content))
        if not isinstance(predictions, Path):
            (tmp_path / 'found.json').write_text(json.dumps(predictions))
            predictions = tmp_path / 'found.json'
        score_instances.main(['--predictions', str(predictions), '--annotations', str(tmp_path / 'truth.json'),
                              '--output', str(tmp_path / 'out'), *flags])
        return json.loads((tmp_path / 'out' / 'results.json').read_text())
    return run


def test_all_found(score, capsys) -> None:
    results = score(FOUND, TRUTH)  # an annotation of id 0 counts
    for protocol in ('single', 'multi'):
        kept = results[f'instances_{protocol}']
        assert [kept[name] for name in ('AP', 'AP50', 'AP75')] == pytest.approx([100, 100, 100])
        assert kept['made_with']['images'] == 2
    printed = capsys.readouterr().out.splitlines()[:2]  # and no table of pycocotools
    assert printed == [f'{kind}: AP is 100.00, AP50 is 100.00, AP75 is 100.00' for kind in ('single', 'multi')]


def test_half_found(score) -> None:
    found = [FOUND[0], {**entry(3, LEFT, 5), 'score': 0.99}]  # of a class without an object, which has no AP
    results = score(found, TRUTH)
    half = 100 * 51 / 101  # of the recalls 0, 0.01, ..., 1, those up to a half, where precision is 1
    assert results['instances_multi']['AP50'] == pytest.approx(half / 2)  # cat, and nothing of dog
    assert results['instances_single']['AP50'] == pytest.approx(half)  # the first objects are two cats
    assert score(found, TRUTH, '--class-agnostic')['instances_multi']['AP50'] == pytest.approx(100 * 67 / 101)


def test_outlines_count_and_not_boxes(score) -> None:
    x, y, width, height = LEFT
    triangle = {**FOUND[0], 'segmentation': [[x, y, x + width, y, x, y + height // 2]]}
    results = score([triangle, *FOUND[1:]], TRUTH)['instances_multi']
    assert results['AP50'] < 100  # the triangle has a quarter of the box


def test_a_file_of_saliency_masks(score, tmp_path: Path) -> None:
    masks = np.zeros((2, 20, 30), int)
    for mask, box in zip(masks, (LEFT, RIGHT), strict=True):
        mask[box[1]:box[1] + box[3], box[0]:box[0] + box[2]] = 1
    write_coco(tmp_path / 'masks.json', [(name, *coco.outline_objects(mask))  # ids 0 and 1
                                         for name, mask in zip(('a.png', 'b.png'), masks, strict=True)])
    with pytest.raises(UserError, match=r"masks.json has category 0 of score 1.0, named ''; .* categories .1, 'cat'"):
        score(tmp_path / 'masks.json', TRUTH)
    results = score(tmp_path / 'masks.json', TRUTH, '--class-agnostic')
    assert results['instances_single']['AP50'] == pytest.approx(100)
    assert results['instances_multi']['AP50'] == pytest.approx(100 * 67 / 101)
    with pytest.raises(UserError, match='truth.json lacks the images a of '):
        score(tmp_path / 'masks.json', TRUTH[1:], '--class-agnostic', images=IMAGES[1:])
    with pytest.raises(UserError, match='masks of image 1 differ in size'):
        score(tmp_path / 'masks.json', TRUTH, '--class-agnostic', images=[{**image, 'height': 40} for image in IMAGES])


def test_each_mask_is_encoded_once(score, monkeypatch: pytest.MonkeyPatch) -> None:
    api, calls = coco.library(*coco.MASKS), []
    monkeypatch.setattr(api, 'encode', lambda mask: pytest.fail('a mask is encoded that is run lengths already'))
    monkeypatch.setattr(api, 'frPyObjects', lambda *given, made=api.frPyObjects: calls.append(1) or made(*given))
    score(FOUND, TRUTH)
    assert len(calls) == 2 + 2 + 3 + 3  # single: the first of each image; multi


def test_a_crowd_is_no_object(score) -> None:
    crowd = entry(3, (0, 0, 30, 20), id=9, area=600, iscrowd=1)
    assert score([*FOUND, {**entry(3, (1, 1, 5, 5)), 'score': 1.0}], [crowd, *TRUTH])['instances_multi'][
        'AP'] == pytest.approx(100)
    assert score(FOUND, [crowd, *TRUTH])['instances_single']['AP'] == pytest.approx(100)
    with pytest.raises(UserError, match='truth.json has no object'):
        score(FOUND, [crowd])


@pytest.mark.parametrize(('found', 'sentence'), [
    ([entry(8, LEFT, score=0.9)], 'found.json has objects of image 8, which .*truth.json lacks'),
    ([entry(7, LEFT, 4, score=0.9)], 'has category 4 of score 0.9'),
    ([entry(7, LEFT)], "is not in COCO's format .KeyError 'score'"),
    ([], 'found.json has no object'), ('text', "is not in COCO's format"), ({}, "is not in COCO's format"),
    ([{**FOUND[0], 'segmentation': {'size': [5, 5], 'counts': [0, 25]}}], 'masks of image 7 differ in size'),
    ([{**FOUND[0], 'segmentation': {'size': [20, 30], 'counts': 'k'}}], 'a mask of image 7 is no polygon'),
    ([{**FOUND[0], 'segmentation': None}], 'a mask of image 7 is no polygon')])
def test_bad_predictions(score, tmp_path: Path, found: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        score(found, TRUTH)
    assert not (tmp_path / 'out').exists()


def test_bad_annotations(score, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='names an image twice'):
        score(FOUND, TRUTH, images=[IMAGES[0], {**IMAGES[1], 'file_name': 'a.png'}])
    (tmp_path / 'other.json').write_text(json.dumps({'images': IMAGES, 'annotations': TRUTH}))
    with pytest.raises(UserError, match="is not in COCO's format .KeyError 'categories'"):
        score(tmp_path / 'other.json', TRUTH)
    with pytest.raises(UserError, match='none.json is missing or no JSON'):
        score(tmp_path / 'none.json', TRUTH)


def test_without_pycocotools(score, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ('pycocotools', 'pycocotools.mask'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match='pip install pycocotools'):
        score(FOUND, TRUTH)


def test_an_area_that_is_no_number_is_counted(score) -> None:
    truth = [{**annotation, 'area': area} for annotation, area in zip(TRUTH, (None, 'large', 80), strict=True)]
    assert score(FOUND, truth) == score(FOUND, TRUTH)
