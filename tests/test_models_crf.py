"""The CRF in worker processes and with fewer classes, against the CRF of all classes in this process."""
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from models.crf import crf_in_workers, dense_crf
from tests.golden_inputs import generator, photo
from utils.run.errors import UserError
from utils.run.parallel import in_threads

pytest.importorskip('pydensecrf', reason='the CRF is optional')
HEIGHT, WIDTH = 40, 56


def inputs(name: str, present: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A picture and logits (21, 16, 16) in which smooth regions of the present classes stand out by 6."""
    draw = generator(name)
    regions = cv2.resize(draw.standard_normal((3, 3, len(present))).astype(np.float32), (16, 16)).reshape(16, 16, -1)
    logits = 0.5 * draw.standard_normal((21, 16, 16)).astype(np.float32)
    for i, c in enumerate(present):
        logits[c][regions.argmax(-1) == i] += 6
    return photo(name, HEIGHT, WIDTH), logits


def test_workers_change_nothing() -> None:
    pairs = [inputs(f'crf/{i}', (0, 3, 7)) for i in range(4)]
    with crf_in_workers({'iterations': 3}, 0) as refine:
        expected = [refine(*pair) for pair in pairs]
    assert expected[0].shape == (HEIGHT, WIDTH)
    assert expected[0].dtype == np.uint8
    with crf_in_workers({'iterations': 3}, 2) as refine, ThreadPoolExecutor(4) as threads:
        refined = list(threads.map(lambda pair: refine(*pair), pairs))
        with pytest.raises(ValueError, match='spatial dimensions'):
            refine(pairs[0][0], np.zeros((21, 16), np.float32))  # a worker's failure is raised here
    np.testing.assert_array_equal(refined, expected)


def test_a_killed_worker_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr('models.crf.dense_crf', os._exit)
    with pytest.raises(UserError, match=r'workers \(--workers, or crf_workers\)'), crf_in_workers({}, 1) as refine:
        refine(3)  # the exit status


def test_min_probability_leaves_out_what_is_nowhere() -> None:
    image, logits = inputs('crf/few', (2, 5, 9))
    exact = dense_crf(image, logits)
    few = dense_crf(image, logits, min_probability=0.2)
    assert set(np.unique(few)) <= {2, 5, 9}
    assert np.mean(few == exact) > 0.99


@pytest.mark.parametrize('std', [1, 2])
def test_the_blur_that_stands_in_for_the_small_kernel(std: int) -> None:
    image, logits = photo('crf/noise', HEIGHT, WIDTH), generator('crf/noise').standard_normal((4, HEIGHT, WIDTH))
    options = {'pos_xy_std': std, 'bi_w': 0}  # this kernel alone, on noise: as many pixels as can be depend on it
    exact = dense_crf(image, logits, **options)
    assert np.mean(dense_crf(image, logits, **options, min_probability=1e-9) == exact) > 0.985
    assert np.mean(dense_crf(image, logits, **options, min_probability=1e-9, pos_w=0) == exact) < 0.95
    np.testing.assert_array_equal(dense_crf(image, logits, min_probability=1e-9, pos_w=0),
                                  dense_crf(image, logits, pos_w=0))


def test_min_probability_with_one_class_or_none_left() -> None:
    logits = np.zeros((4, 8, 8), np.float32)
    logits[2] = 3  # probability 0.87, the others 0.04
    image = photo('crf/one', HEIGHT, WIDTH)
    for least in (0.1, 0.95):
        assert (dense_crf(image, logits, min_probability=least) == 2).all()


def test_in_threads_keeps_order_and_bounds_the_work() -> None:
    started = []

    def items():
        for i in range(20):
            started.append(i)
            yield i

    for count, result in enumerate(in_threads(lambda i: i * i, items(), threads=3, limit=5)):
        assert result == count ** 2
        assert len(started) <= count + 5


def test_in_threads_ends_with_the_error_of_an_item() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 / i, iter([1, 0, 2]), threads=2, limit=2))


def test_logits_may_be_a_tensor() -> None:
    image, logits = inputs('crf/tensor', (1, 4))
    np.testing.assert_array_equal(dense_crf(image, torch.from_numpy(logits), 2), dense_crf(image, logits, 2))
