"""The benchmark of evaluation, which fails if its two ways do not give the same."""
import pytest

from benchmarks.evaluation import main


def test_both_ways_agree(capsys: pytest.CaptureFixture) -> None:
    main(['--parts', 'miou', 'retrieval', '--images', '40', '--share', '1'])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split('|')[1].split(',')[0].strip() for row in rows] == ['mIoU of label maps', 'Retrieval']
