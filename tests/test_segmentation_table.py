"""Tables and plots of several runs, and the score of label maps on disk."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation import score_predictions, table
from segmentation.metrics import confusion_matrix
from tests.test_utils_report_run import Page
from utils.run.errors import UserError
from utils.run.files import save_label_map


def write(folder: Path, **entries) -> str:
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(json.dumps(entries))
    return str(folder)


@pytest.fixture
def columns(tmp_path: Path) -> list[str]:
    """Arguments of a table of two columns."""
    curve = [{'num_clusters': n, 'mIoU': miou, 'std': 0.5, 'num_runs': 2, 'NMI': 3.0}
             for n, miou in ((50, 30.0), (21, 20.0))]
    first = write(tmp_path / 'a', overclustering=curve, kmeans={
        'mIoU': 20.0, 'std': 1.0, 'num_runs': 5,
        'IoU': {'background': 30.0, 'cat': 10.0}, 'IoU_std': {'background': 0.25, 'cat': 2.0}})
    worse = write(tmp_path / 'b', kmeans={'mIoU': 10.0, 'std': None, 'num_runs': 1,
                                            'IoU': {'background': 20.0, 'cat': 0.0}})
    second = write(tmp_path / 'c', linear={'mIoU': 45.678, 'IoU': {'background': 90.0, 'cat': 1.356}},
                   retrieval={'mIoU': 7.0, 'IoU': {'cat': 7.0}}, other={'mIoU': 1.0})
    return ['--column', 'one', worse, first, '--column', 'two', second, '--output', str(tmp_path / 'out')]


def test_table(columns: list[str], tmp_path: Path, capsys) -> None:
    table.main(columns)
    text = (tmp_path / 'out' / 'table.md').read_text()
    assert text in capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines()]
    assert lines == [['%', 'metric', 'one', 'two'], ['---', '---', '---:', '---:'],
                     ['Linear classifier', 'mIoU', '-', '45.68'],
                     ['K-means', 'mIoU', '20.00 ± 1.00 (n = 5)', '-'],
                     ['Retrieval', 'mIoU', '-', '7.00'],
                     ['other', 'mIoU', '-', '1.00'],
                     ['K-means, 21 clusters', 'mIoU', '20.00 ± 0.50 (n = 2)', '-'],
                     ['K-means, 50 clusters', 'mIoU', '30.00 ± 0.50 (n = 2)', '-']]
    for name in ('classes.png', 'overclustering.png'):
        assert np.asarray(Image.open(tmp_path / 'out' / name)).std() > 0
    assert not (tmp_path / 'out' / 'pictures.png').exists()


def test_columns_of_other_data_or_classes_are_told(tmp_path: Path, capsys) -> None:
    def entry(images: int, *classes: str) -> dict:
        return {'mIoU': 1.0, 'IoU': dict.fromkeys(classes, 1.0), 'made_with': {'data': 'VOC val', 'images': images}}

    first = write(tmp_path / 'a', linear=entry(9, 'cat'), kmeans=entry(9, 'cat'), retrieval=entry(9, 'cat'))
    second = write(tmp_path / 'b', linear=entry(8, 'cat'), kmeans=entry(9, 'cat', 'dog'), retrieval=entry(9, 'cat'))
    table.main(['--column', 'one', first, '--column', 'two', second, '--output', str(tmp_path / 'out')])
    printed, shown = capsys.readouterr().out, Page(tmp_path / 'out' / 'report.html').text
    for text in ('Linear classifier: the columns are not of the same data (one: VOC val, 9 images, 1 classes; two: VOC '
                 'val, 8 images, 1 classes).', 'K-means: the columns are not of the same data'):
        assert text in printed
        assert text in shown
    assert 'Retrieval: the columns' not in printed


def test_the_comparison_joins_results_pictures_and_curves(columns: list[str], tmp_path: Path) -> None:
    pretraining = tmp_path / 'pretrain'
    pretraining.mkdir()
    (pretraining / 'metrics.jsonl').write_text('{"epoch": 1, "step": 1, "train/loss": 1.0}\n')
    for folder in 'abc':  # b has not the best figure of its column
        path = tmp_path / folder / 'visualizations' / f'of_{folder}.png'
        path.parent.mkdir()
        Image.new('RGB', (30, 20), 'red').save(path)
    Image.new('RGB', (30, 20), 'red').save(tmp_path / 'c' / 'neighbours.png')
    table.main([*columns, '--pretraining', str(pretraining), '--note', 'One is the first.'])
    shown = Page(tmp_path / 'out' / 'report.html')
    for text in ('20.00 ± 1.00 (n = 5)', '45.68', 'Training: pretrain', 'IoU of each class', 'Over-clustering',
                 'one: of_a', 'two: of_c', 'Predictions: Linear classifier', 'Results: one · two', 'One is the first.',
                 'Nearest neighbours', 'ignore label'):
        assert text in shown.text, text
    assert 'of_b' not in shown.text
    assert 'Predictions: Retrieval' not in shown.text  # the folder of the linear classifier, shown already
    assert shown.values('style').count('--ink:#800000') == 2  # cat, the second class, in the legends of the pictures
    assert len(shown.values('srcset')) == 3 + 1 + 1  # bars a protocol, over-clustering, training


def test_rows_per_class_and_csv(columns: list[str], tmp_path: Path) -> None:
    table.main([*columns, '--per-class'])
    rows = list(csv.DictReader((tmp_path / 'out' / 'table.csv').open()))
    assert rows[1] == {'protocol': 'Linear classifier', 'metric': 'IoU background', 'one': '', 'one std': '',
                       'one n': '', 'two': '90.0', 'two std': '', 'two n': ''}
    cat = next(row for row in rows if row['protocol'] == 'K-means' and row['metric'] == 'IoU cat')
    assert (cat['one'], cat['one std'], cat['one n'], cat['two']) == ('10.0', '2.0', '5', '')
    assert '| K-means              | IoU cat        | 10.00 ± 2.00 (n = 5) |' in (
        tmp_path / 'out' / 'table.md').read_text()


def test_mistakes_are_one_sentence(columns: list[str], tmp_path: Path) -> None:
    for arguments, said in ((['--column', 'x', str(tmp_path / 'none')], 'does not exist'),
                            (['--column', 'x'], 'no folder'),
                            (['--column', 'x', str(tmp_path / 'a'), '--column', 'x', str(tmp_path / 'b')], 'twice'),
                            (['--column', 'x', write(tmp_path / 'd', kmeans=3)], 'run it again'),
                            (['--column', 'x', write(tmp_path / 'e', clusters={'sizes': [3]})], 'no result against'),
                            ([*columns[:2], *columns[2:4], '--pictures', str(tmp_path)], 'no PNG')):
        with pytest.raises(UserError, match=said):
            table.main([*arguments, '--output', str(tmp_path / 'out')])


def test_confusion_matrix_of_bytes_is_that_of_whole_numbers() -> None:
    draw = np.random.default_rng(0)
    truth, prediction = (draw.integers(0, 5, (30, 40)).astype(np.uint8) for _ in range(2))
    truth[:3], prediction[:2] = 255, 200  # what is predicted of void does not matter
    counts = confusion_matrix(truth, prediction, 5)
    np.testing.assert_array_equal(counts, confusion_matrix(truth.astype(np.int64), prediction.astype(np.int64), 5))
    assert counts.sum() == 27 * 40
    assert confusion_matrix(truth, prediction, 5, 7).shape == (5, 7)
    prediction[9] = 5
    with pytest.raises(ValueError, match='outside'):
        confusion_matrix(truth, prediction, 5)


def test_label_maps_on_disk(shapes: Path, tmp_path: Path) -> None:
    arguments = ['--config_env', 'configs/demo/env.yml', '--config_exp', 'configs/demo/linear_finetune.yml',
                 '--predictions', str(tmp_path / 'maps'), '--set', f'db_root={shapes.parent}', f'root_dir={tmp_path}']

    def fails(said: str) -> None:
        with pytest.raises(UserError, match=said):
            score_predictions.main(arguments)

    fails('6 of 6 images of val have no prediction')
    (tmp_path / 'maps').mkdir()
    names = (shapes / 'sets' / 'val.txt').read_text().split()
    truths = {name: np.array(Image.open(shapes / 'SegmentationClass' / f'{name}.png')) for name in names}
    for name, truth in truths.items():
        fails(f' of 6 images of val have no prediction in .*{name}')
        save_label_map(np.where(truth == 255, 0, truth), tmp_path / 'maps' / f'{name}.png')
    score_predictions.main(arguments)
    assert 'Confusion matrix: Label maps on disk' in Page(tmp_path / 'linear_finetune' / 'report.html').text
    entry = json.loads((tmp_path / 'linear_finetune' / 'results.json').read_text())['offline']
    present = np.unique(np.concatenate([truth.ravel() for truth in truths.values()]))
    assert sorted(entry['IoU'].values())[-1] == 100
    assert sum(value == 100 for value in entry['IoU'].values()) == len(present[present < 255])
    path = tmp_path / 'maps' / f'{names[0]}.png'
    save_label_map(np.full(truths[names[0]].shape, 8), path)
    fails('class id 8, outside 0..7')
    save_label_map(np.zeros((64, 99)), path)
    fails(r'has shape \(64, 99\)')
