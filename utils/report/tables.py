"""Tables of results as Markdown and as CSV."""
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def with_spread(mean: float, std: float | None = None, runs: int | None = None, decimals: int = 2) -> str:
    """'45.68 ± 1.50 (n = 5)': a mean with its sample standard deviation over n runs, if both are known."""
    return f'{mean:.{decimals}f}' + ('' if std is None or runs is None else f' ± {std:.{decimals}f} (n = {runs})')


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """A table in Markdown, whose last columns, ``numbers`` of them, stand to the right."""
    lines = [head, ['---'] * (len(head) - numbers) + ['---:'] * numbers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return ''.join('| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + ' |\n'
                   for line in lines)


def pivot(cells: Mapping[Any, Any], columns: Sequence[Any], missing: Any = '-') -> list[list[Any]]:
    """The rows of {(row, column): cell}, where a row is the texts that begin it."""
    return [[*row, *(cells.get((row, column), missing) for column in columns)]
            for row in dict.fromkeys(row for row, _ in cells)]


def csv_text(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same as CSV; numbers in full precision, None as nothing."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([head, *rows])
    return text.getvalue()
