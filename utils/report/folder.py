"""One result for each image of a folder, in an output folder with one report; rerun to resume.

Several processes share the images. What is kept of an image is its result, or a row in a file: none is in memory.
"""
import hashlib
import heapq
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from utils.report import page
from utils.report.pictures import legend, montage, thumbnail
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.files import lock_folder, save_image, write_text
from utils.run.log import warn_of_failure

REPORT, ROWS = 'report.json', '.rows'
NAMED = 50  # images left out that the page names
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of the contact sheet: images, pictures in a row, longer side in pixels
Item = TypeVar('Item')


def fingerprint(path: Path | None) -> str | None:
    """Of a file's content, for settings: a file may move, and another may come in its place."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings in the report of a ``FolderRun``; None if a folder has none. Raises UserError for a damaged one."""
    path = folder / REPORT
    try:
        return dict(json.loads(path.read_text())['settings']) if path.exists() else None
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} is not a report of this script; choose another --output.') from None


class Rows:
    """Rows (name, ...) that each process writes to a file of its own, ascending; the main one reads all, ascending."""

    def __init__(self, folder: Path, what: str) -> None:
        self.paths = [folder / f'{what}_{number}.jsonl' for number in range(distributed.world_size())]
        self.file = self.paths[distributed.rank()].open('w')

    def add(self, name: str, *values: Any) -> None:
        self.file.write(json.dumps([name, *values]) + '\n')

    def __iter__(self) -> Iterator[Any]:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open()) for path in self.paths]
            yield from heapq.merge(*(map(json.loads, file) for file in files), key=itemgetter(0))


class FolderRun:
    """Keeps the output folder for this run, and how many images are written, there already or have no result.

    ``images`` is their folder, or a single file; ``place`` that of the results, PNGs, in ``output``; ``result`` what is
    made of each: 'mask'; ``settings`` how. Raises UserError for an output folder that lies inside or around that of the
    images, cannot be written, is in use, or holds results of another script or of other settings.
    """

    def __init__(self, output: Path, place: str, images: Path, result: str, **settings: Any) -> None:
        self.output, self.results, self.result = output, output / place, result
        self.settings, self.images = {'images': str(images.resolve()), **settings}, images
        self.written = self.existing = self.missing = 0
        inside, around = output.resolve(), images.resolve()
        nested = around.is_dir() and (around in inside.parents or inside in around.parents)
        if nested or inside == (around.parent if around.is_file() else around):
            raise UserError(f'--output {output} and --images {images} lie one inside the other, so that results would '
                            'be taken for images; choose a folder elsewhere.')
        with distributed.main_first():
            if distributed.is_main():
                self._open()
        if not (output / ROWS).is_dir():
            raise UserError(f'--output {output} must be one folder that all machines share.')
        self.left_out, self.outdated = self.rows('left_out'), self.rows('outdated')  # (image, why); (image,)

    def _open(self) -> None:
        lock_folder(self.output)
        before = read_settings(self.output)
        changed = [f'{name} {before.get(name)} then, {value} now' for name, value in self.settings.items()
                   if before.get(name) != value] if before is not None else []
        if changed:
            raise UserError(f'--output {self.output} was made with other settings ({"; ".join(changed)}); choose '
                            'another folder or delete this one.')
        if before is None:  # a run of this script leaves a report before its first result
            if (there := next(self.results.rglob('*.png'), None)) is not None:
                raise UserError(f'--output {self.output} holds {there.relative_to(self.output)}, and no {REPORT} says '
                                'how it was made; choose another folder.')
            write_text(self.output / REPORT, json.dumps({'settings': self.settings}, indent=2) + '\n')
        shutil.rmtree(self.output / ROWS, ignore_errors=True)  # of a run that was killed
        (self.output / ROWS).mkdir()

    def rows(self, what: str) -> Rows:
        return Rows(self.output / ROWS, what)

    def path_of(self, name: Path) -> Path:
        """Of the result of an image."""
        return self.results / name.with_suffix('.png')

    def has(self, name: Path) -> bool:
        return self.path_of(name).is_file()

    def todo(self, frames: Iterable[tuple[Path, Item]], size: int,
             masks: Path | None = None) -> Iterator[tuple[Path, Item]]:
        """The (name, ...) of this process's share, whole batches of ``size``, that have no result yet.

        Takes note of results that are older than their image or their mask in the folder ``masks``, or have none there.
        """
        def changed(path: Path) -> float:
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
            return math.inf

        folder = self.images.is_dir()
        for frame in distributed.share(frames, size):
            name = frame[0]
            if not self.has(name):
                yield frame
                continue
            image = self.images / name if folder else self.images
            sources = [image] if masks is None else [image, masks / name.with_suffix('.png')]
            if max(map(changed, sources)) > self.path_of(name).stat().st_mtime:
                self.outdated.add(name.as_posix())
            self.existing += 1

    def collect(self, results: Iterable[tuple[Path, str]]) -> None:
        """Take note of each (name, why it has no result, '' if it has one)."""
        for name, reason in results:
            if reason:
                self.left_out.add(name.as_posix(), reason)
            self.missing += bool(reason)
            self.written += not reason

    def join(self) -> bool:
        """Wait until all processes have done their shares, and add up; whether this is the main one, alone now."""
        for rows in (self.left_out, self.outdated):
            rows.file.close()
        counts = distributed.gather_objects((self.written, self.existing, self.missing), patient=True)
        self.written, self.existing, self.missing = map(sum, zip(*counts, strict=True))
        return distributed.leave()

    def failures(self, but: str = '') -> tuple[int, str]:
        """How many images have no result for another reason than ``but``, and what keeps the first three of them."""
        failed = (f'{name} ({reason})' for name, reason in self.left_out if reason != but)
        first = list(islice(failed, 3))
        more = sum(1 for _ in failed)
        return len(first) + more, ', '.join(first) + f' and {more} more' * (more > 0)

    def stale(self, names: Iterable[str]) -> list[Path]:
        """The results of images that are no longer there: not in ``names``."""
        def there() -> Iterator[Path]:  # rglob holds all it has found
            return (Path(parent, name) for parent, _, files in os.walk(self.results) for name in files
                    if name.endswith('.png'))

        if sum(1 for _ in there()) == self.written + self.existing:
            return []  # without a set of millions
        known = {str(self.path_of(Path(name))) for name in names}
        return [path.relative_to(self.results) for path in there() if str(path) not in known]

    def finish(self, names: Sequence[str], duplicates: Mapping[str, str], others: Mapping[Path, str], sheet: str,
               read: Callable[[Path], Sequence[np.ndarray]], classes: Sequence[str] = ()) -> str:
        """Write the contact sheet, report.json, report.txt and report.html; returns what came of the images.

        Args:
            names: of all images.
            duplicates: image without a result -> the other one that has the name of its result.
            others: what else is left out, and why.
            sheet: name of the contact sheet, which shows what ``read`` gives of some images that have a result.
            classes: names of the labels whose colours it has.
        """
        more = sorted([(name, f'its {self.result} would have the name of that of {Path(owner).name}')
                       for name, owner in duplicates.items()]
                      + [(name.as_posix(), reason) for name, reason in others.items()])

        def reasons() -> Iterator[Sequence[str]]:
            return heapq.merge(self.left_out, more, key=itemgetter(0))

        if self.written or self.existing:
            with warn_of_failure(sheet):
                save_image(_contact_sheet(self._spread(names), read, classes), self.output / sheet)
        images, left = self.written + self.existing + self.missing + len(duplicates), self.missing + len(more)
        counts = {'images': images, f'{self.result}s_written': self.written, f'{self.result}s_existing': self.existing}
        summary = (f'{images} images: {self.written} {self.result}s written, {self.existing} there already, '
                   f'{left} left out')
        if older := sum(1 for _ in self.outdated):
            summary += f'; {older} of those there are older than their image or mask, or lack it: delete them and rerun'

        def report() -> Iterator[str]:
            yield json.dumps({'settings': self.settings, **counts, 'left_out': {}}, indent=2).removesuffix('}\n}')
            for number, (name, reason) in enumerate(reasons()):
                yield f'{"," * (number > 0)}\n    {json.dumps(name)}: {json.dumps(reason)}'
            yield '\n  ' * (left > 0) + '}\n}\n'

        def lines() -> Iterator[str]:  # names may hold line breaks
            yield summary + '\n'
            for name, reason in reasons():
                yield '\\n'.join(f'left out: {name}: {reason}'.splitlines()) + '\n'
            for name, in self.outdated:
                yield '\\n'.join(f'older than its image or mask, or without it: {name}'.splitlines()) + '\n'

        write_text(self.output / REPORT, report())
        write_text(self.output / 'report.txt', lines())
        with warn_of_failure(page.REPORT):
            note = f'The first {NAMED} of {left}; report.txt names all.' if left > NAMED else ''
            drawn = [(sheet, self.output / sheet)] if (self.output / sheet).is_file() else []
            settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in self.settings.items()]
            page.write_page(self.output, f'{self.result}s'.capitalize(), f'{self.output}: {summary}', [
                page.table('Left out', ('image', 'why'), [*islice(reasons(), NAMED)], note),
                page.pictures('Contact sheet', drawn, colours=page.class_colours(classes)),
                page.table('Settings', (), settings, folded=True)])
        shutil.rmtree(self.output / ROWS)
        return f'{summary}; see {self.output / "report.txt"}'

    def _spread(self, names: Sequence[str]) -> Iterator[Path]:
        """Images that have a result, spread over the set."""
        for start, end in pairwise(np.linspace(0, len(names), min(SHOWN, len(names)) + 1).astype(int)):
            yield from islice(filter(self.has, map(Path, names[start:end])), 1)


def _contact_sheet(names: Iterable[Path], read: Callable[[Path], Sequence[np.ndarray]],
                   classes: Sequence[str]) -> Image.Image:
    """Pictures of images, above the legend of their classes."""
    cells: list[np.ndarray] = []
    for name in names:
        with suppress(UserError):  # removed or damaged since its result was made
            cells += [thumbnail(picture, SIDE) for picture in read(name)]
    grid = montage(cells, COLUMNS)
    if not classes:
        return grid
    below = legend(classes)
    sheet = Image.new('RGB', (max(grid.width, below.width), grid.height + below.height), 'white')
    sheet.paste(grid, (0, 0))
    sheet.paste(below, (0, grid.height))
    return sheet
