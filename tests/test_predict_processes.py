"""New images in two processes: the files of one, and one report."""
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import saliency.predict as masks
import segmentation.predict as maps
from models.segmentation import LinearSegmentationModel
from tests.golden_inputs import photo
from tests.test_utils_run_distributed import finish, start
from utils.run.checkpoint import save_checkpoint
from utils.run.errors import EXIT_STOPPED, EXIT_USER_ERROR
from utils.run.setup import _exit_code

ROOT = Path(__file__).resolve().parents[1]
NAMES = ('a.png', 'b.png', 'b-1.png', 'sub/a.png', 'sub/c.png', 'sub/deep/d.png', 'sub.1/e.png')


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Objects on a ground, an image without one, a damaged one, and one that would have the result of another."""
    folder = tmp_path / 'images'
    for number, name in enumerate(NAMES):
        drawn = photo('ground', 24, 32) // 8
        drawn[6:18, 8 + number:22] = 200, 180, 20
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(folder / name)
    Image.new('RGB', (32, 24), 'blue').save(folder / 'sub' / 'empty.png')
    (folder / 'sub' / 'broken.jpg').write_bytes(b'nothing')
    shutil.copy(folder / 'a.png', folder / 'a.bmp')
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For the rounding of processes that have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob('*') if path.is_file()
            and path.suffix not in ('.html', '.json', '.txt', '.lock')}


def report(output: Path) -> dict:
    return json.loads((output / 'report.json').read_text())


def test_masks(images: Path, tmp_path: Path, one_thread: None) -> None:
    one, two = tmp_path / 'one', tmp_path / 'two'
    flags = ['--images', str(images), '--method', 'unsupervised', '--workers', '0', '--batch-size', '2']
    masks.main([*flags, '--output', str(one), '--coco', str(tmp_path / 'one.json')])
    first, expected = one / 'sub' / 'deep' / 'd.png', report(one)
    assert sorted(expected['left_out']) == ['a.png', 'sub/broken.jpg', 'sub/empty.png']
    (two / 'sub' / 'deep').mkdir(parents=True)
    (two / 'report.json').write_text(json.dumps({'settings': expected['settings']}))
    shutil.copy2(first, two / 'sub' / 'deep')  # as a run that was killed left it, and a file of rows
    (two / '.rows').mkdir()
    (two / '.rows' / 'left_out_2.jsonl').write_text('["b.png", "')
    code, out, err = finish(start(str(ROOT / 'saliency/predict.py'), *flags, '--output', str(two), '--coco',
                                  str(tmp_path / 'two.json'), '--nproc', '2'))
    assert code == 0, err
    assert out.count('left out') == 1
    assert report(two) == expected | {'masks_written': len(NAMES) - 1, 'masks_existing': 1}
    assert files(two) == files(one)
    assert (two / 'sub' / 'deep' / 'd.png').stat().st_mtime_ns == first.stat().st_mtime_ns
    texts = [(output / 'report.txt').read_text().splitlines() for output in (one, two)]
    assert texts[0][1:] == texts[1][1:]
    assert texts[1][0] == f'10 images: {len(NAMES) - 1} masks written, 1 there already, 3 left out'
    assert (tmp_path / 'one.json').read_bytes() == (tmp_path / 'two.json').read_bytes()
    coco = json.loads((tmp_path / 'two.json').read_text())
    assert [image['file_name'] for image in coco['images']] == ['a.bmp', *sorted(NAMES[1:])]
    assert [entry['image_id'] for entry in coco['annotations']] == list(range(len(NAMES)))
    assert not (two / '.rows').exists()


def test_a_mistake_in_one_process_is_told_once(images: Path, tmp_path: Path) -> None:
    output = tmp_path / 'masks'
    flags = ['--images', str(images), '--method', 'unsupervised', '--workers', '0', '--output']
    masks.main([*flags, str(tmp_path / 'whole')])
    shutil.copytree(tmp_path / 'whole', output)
    (output / 'b.png').write_bytes(b'no mask')
    code, _, err = finish(start(str(ROOT / 'saliency/predict.py'), *flags, str(output), '--batch-size', '1', '--coco',
                                str(tmp_path / 'coco.json'), '--nproc', '2'))
    assert code == EXIT_USER_ERROR, err
    assert err.count('error:') == err.count(f'mask {output / "b.png"} cannot be read') == 1
    assert 'Traceback' not in err


def test_label_maps(images: Path, tmp_path: Path, one_thread: None) -> None:
    (images / 'sub' / 'broken.jpg').unlink()
    torch.manual_seed(0)
    save_checkpoint(LinearSegmentationModel('resnet18', 3).state_dict(), tmp_path / 'linear.pth.tar')
    (tmp_path / 'config.yml').write_text('{backbone: resnet18, val_size: 32, config_name: x}')
    one, two = tmp_path / 'one', tmp_path / 'two'
    flags = ['--images', str(images), '--model', str(tmp_path / 'linear.pth.tar'), '--batch-size', '2', '--device',
             'cpu', '--workers', '1', '--precision', 'bf16']
    maps.main([*flags, '--output', str(one)])
    code, out, err = finish(start(str(ROOT / 'segmentation/predict.py'), *flags, '--output', str(two), '--nproc', '2'))
    assert code == 0, err
    assert out.count('label maps written') == 1
    assert report(two) == report(one)
    assert report(two)['label maps_written'] == len(NAMES) + 1
    assert files(two) == files(one)
    labels = np.array(Image.open(two / 'predictions' / 'sub' / 'a.png'))
    assert labels.shape == (24, 32)
    assert len(np.unique(labels)) > 1
    with pytest.raises(Exception, match='precision bf16 then, None now'):
        maps.main([*flags, '--output', str(one), '--precision', 'fp32'])


@pytest.mark.parametrize(('codes', 'asked', 'expected', 'told'), [
    ((EXIT_STOPPED, -9), False, 1, 'process 1 was ended by SIGKILL'), ((-15, -9), False, 1, 'process 1 was ended'),
    ((EXIT_STOPPED, 1), False, 1, ''), ((EXIT_STOPPED, -9), True, EXIT_STOPPED, ''),
    ((EXIT_STOPPED, EXIT_STOPPED), False, EXIT_STOPPED, ''),
    ((EXIT_STOPPED, EXIT_USER_ERROR), False, EXIT_USER_ERROR, '')])
def test_a_process_that_fails_is_not_one_that_was_stopped(codes: tuple[int, ...], asked: bool, expected: int,
                                                          told: str, capsys: pytest.CaptureFixture) -> None:
    failures = {rank: ProcessFailure(rank, 1, code, 'none') for rank, code in enumerate(codes)}
    assert _exit_code(ChildFailedError('predict.py', failures), asked) == expected
    err = capsys.readouterr().err
    assert told in err if told else not err
