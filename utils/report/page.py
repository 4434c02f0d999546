"""One HTML page of blocks: it holds its pictures itself, runs no script and asks nothing of any server."""
import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.report.pictures import Draw, to_svg
from utils.run.files import PALETTE, write_text

REPORT = 'report.html'  # name of every page
Block = dict[str, Any]  # 'kind', which names a macro of page.html, 'title', and what that macro shows
SMALL, WIDEST = 50_000, 1400  # bytes of a picture that is taken as it is; width of any other, pixels
IGNORED = {'ignore label': '#{:02x}{:02x}{:02x}'.format(*PALETTE[255])}  # name and colour


def data_uri(content: bytes, kind: str) -> str:
    return f'data:image/{kind.lower()};base64,{b64encode(content).decode()}'


def picture_uri(path: Path) -> str:
    """A PNG or JPEG file as a data URI; a big one as a JPEG, at most 1,400 pixels wide."""
    with Image.open(path) as picture:
        if path.stat().st_size <= SMALL:
            return data_uri(path.read_bytes(), str(picture.format))
        file, small = io.BytesIO(), picture.convert('RGB')
    small.thumbnail((WIDEST, 10 * WIDEST))
    small.save(file, 'JPEG', quality=85)
    return data_uri(file.getvalue(), 'JPEG')


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """{class: '#rrggbb'} of the VOC palette; of classes of one name that of the first."""
    return {name: '#{:02x}{:02x}{:02x}'.format(*PALETTE[classes.index(name) % 256]) for name in classes}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = '',
          folded: bool = False) -> Block:
    """Rows of text; ``folded`` hides them until the title is pressed."""
    return {'kind': 'table', 'title': title, 'head': head, 'rows': rows, 'note': note, 'folded': folded}


def matrix(title: str, confusion: np.ndarray, classes: Sequence[str]) -> Block:
    """A confusion matrix (true x predicted pixels) in percent of each true class."""
    totals = confusion.sum(1)
    shares = 100 * confusion / np.maximum(totals, 1)[:, None]
    rows = [{'name': name, 'pixels': int(total), 'shares': share.tolist()}
            for name, total, share in zip(classes, totals, shares, strict=True)]
    return {'kind': 'matrix', 'title': title, 'names': list(classes), 'colours': class_colours(classes), 'rows': rows}


def plots(title: str, draws: Sequence[Draw]) -> Block:
    """Plots side by side, each for the light and the dark page."""
    drawn = [{theme: data_uri(to_svg(draw, theme), 'svg+xml') for theme in ('light', 'dark')}
             for draw in draws]
    return {'kind': 'plots', 'title': title, 'plots': drawn}


def pictures(title: str, shown: Sequence[tuple[str, Path]], note: str = '',
             colours: Mapping[str, str] = {}, columns: int = 0) -> Block:
    """(Caption, file) of each, in their own size; ``colours`` {name: '#rrggbb'} are a legend.

    ``columns`` stand in a row of a wide screen; 0: as many as fit.
    """
    return {'kind': 'pictures', 'title': title, 'note': note, 'colours': dict(colours), 'columns': columns,
            'pictures': [{'caption': caption, 'uri': picture_uri(path)} for caption, path in shown]}


def write_page(folder: Path, title: str, lead: str, blocks: Sequence[Block]) -> Path:
    """Write report.html, whole or not at all, with a line below its title; blocks that show nothing are left out."""
    shown = [block for block in blocks if any(block.get(key) for key in ('rows', 'plots', 'pictures'))]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    page = environment.get_template('page.html').render(title=title, lead=lead, blocks=shown)  # all text is escaped
    write_text(folder / REPORT, page.lstrip())
    return folder / REPORT
