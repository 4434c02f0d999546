"""The quality of masks, worked out by hand on drawn boxes."""
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.masks import main
from utils.run.errors import UserError


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """a: two objects, half found; b: void beside the object; c: no mask; d: an empty mask; e: no object."""
    root = tmp_path / 'VOCSegmentation'
    labels = np.zeros((10, 10))
    labels[:4], labels[4:8] = 3, 20
    write(root / 'SegmentationClassAug' / 'a.png', labels)
    write(root / 'SegmentationClass' / 'a.png', labels * 0)  # the other one counts
    write(root / 'saliency_given' / 'a.png', (labels == 3) * 255)
    labels[4:8] = 255
    write(root / 'SegmentationClass' / 'b.png', labels)
    write(root / 'saliency_given' / 'b.png', (labels > 0) * 255)
    for name in 'cd':
        write(root / 'SegmentationClass' / f'{name}.png', labels)
    write(root / 'saliency_given' / 'd.png', labels * 0)
    write(root / 'SegmentationClass' / 'e.png', labels * 0)
    (root / 'sets').mkdir()
    (root / 'sets' / 'val.txt').write_text('b\nd\ne\n')
    (tmp_path / 'own').mkdir()
    write(tmp_path / 'own' / 'a.png', np.kron(labels == 3, np.ones((2, 2))) * 255)  # twice the size
    return tmp_path


def test_table(root: Path, capsys) -> None:
    main(['--db-root', str(root), '--masks', 'given', str(root / 'own'), '--split', 'val'])
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ['masks', 'images', 'mean IoU', 'median IoU', 'without a mask']
    assert lines[2:] == [['given', '4', '0.375', '0.250', '2'], ['given, val', '2', '0.500', '0.500', '1'],
                         [str(root / 'own'), '4', '0.125', '0.000', '3'],
                         [f'{root / "own"}, val', '2', '0.000', '0.000', '2']]


def test_time(capsys) -> None:
    main(['--time', '1'])
    printed = capsys.readouterr().out
    assert '1 drawn images of 375 x 500 on one core, seconds an image (median, maximum):' in printed
    rows = {cells[1].strip(): cells[2:4] for cells in (line.split('|') for line in printed.splitlines()[3:])}
    assert list(rows) == ['unsupervised', 'transformer, 1 an image at most', 'transformer, 3 an image at most']
    number = r' \d+\.\d{3}, \d+\.\d{3} +'
    assert rows['unsupervised'][0].strip() == '-'
    assert all(re.fullmatch(number, rest) for _, rest in rows.values())
    assert all(re.fullmatch(number, network) for network, _ in [*rows.values()][1:])


def test_one_sentence_each(root: Path) -> None:
    for words, sentence in (([], 'nothing to do'),
                            (['--db-root', str(root), '--masks', 'none'], 'neither a folder nor'),
                            (['--db-root', str(root), '--data', 'own', '--masks', 'given'], 'own has no ground truth')):
        with pytest.raises(UserError, match=sentence):
            main(words)
