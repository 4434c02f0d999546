"""The benchmarks of evaluation, one of which fails if its two ways do not give the same, and of many clusters."""
import pytest

from benchmarks import clusters
from benchmarks.evaluation import main


def test_both_ways_agree(capsys: pytest.CaptureFixture) -> None:
    main(['--parts', 'miou', 'retrieval', '--images', '40', '--share', '1'])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split('|')[1].split(',')[0].strip() for row in rows] == ['mIoU of label maps', 'Retrieval']


def test_clusters_masks_and_index_of_many_images(capsys: pytest.CaptureFixture) -> None:
    clusters.main(['--images', '200', '--clusters', '5', '--queries', '10'])
    rows = [[part.strip() for part in row.split('|')[1:-1]] for row in capsys.readouterr().out.splitlines()[1:]]
    assert [name.split(',')[0] for name, *_ in rows] == ['PCA and K-means', 'nearest centre', 'silhouette', 'masks',
                                                         'index']
    assert all(float(peak.removesuffix(' MB')) > 0 for *_, peak in rows)
