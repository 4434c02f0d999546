"""The benchmark of the input pipeline runs, and notices two ways that do not do the same."""
from pathlib import Path

import pytest

from benchmarks import input_pipeline

ARGUMENTS = ['--db-name', 'Shapes', '--images', '4', '--size', '32', '--rounds', '1', '--db-root']


def test_table(db_root: Path, capsys: pytest.CaptureFixture) -> None:
    input_pipeline.main([*ARGUMENTS, str(db_root)])
    printed = capsys.readouterr().out
    table = printed[printed.index('4 images of Shapes'):].splitlines()[3:]  # log lines may come before
    rows = {cells[1].strip(): [float(cell) for cell in cells[2:5]] for cells in (line.split('|') for line in table)}
    assert list(rows) == ['images and masks read', 'pairs']
    for plain, ours, ratio in rows.values():
        assert ratio == pytest.approx(ours / plain, rel=0.05)


def test_other_views_are_noticed(db_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unflipped(input_pipeline.ContrastiveView):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, flip_probability=0, **options)

    monkeypatch.setattr(input_pipeline, 'ContrastiveView', Unflipped)
    with pytest.raises(AssertionError, match='views of'):
        input_pipeline.main([*ARGUMENTS, str(db_root)])
