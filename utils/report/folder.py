"""One result for each image of a folder, in an output folder with a report; rerun to resume."""
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from utils.report import page
from utils.report.pictures import legend, montage, thumbnail
from utils.run.errors import UserError, name_some
from utils.run.files import lock_folder, save_image, write_text
from utils.run.log import warn_of_failure

REPORT = 'report.json'
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
        raise UserError(f'{path} is not a report of this script; move it or choose another --output.') from None


class FolderRun:
    """Keeps the output folder for this run, and which images are written, there already or have no result.

    ``images`` is their folder, or a single file; ``result`` what is made of each: 'mask'; ``settings`` how. Raises
    UserError for an output folder that lies inside or around that of the images, cannot be written, is in use, or holds
    what was made with other settings.
    """

    def __init__(self, output: Path, images: Path, result: str, **settings: Any) -> None:
        self.output, self.result = output, result
        self.settings = {'images': str(images.resolve()), **settings}
        self.written: list[Path] = []
        self.existing: list[Path] = []
        self.failed: dict[Path, str] = {}  # image: why it has no result
        inside, around = output.resolve(), images.resolve()
        nested = around.is_dir() and (around in inside.parents or inside in around.parents)
        if nested or inside == (around.parent if around.is_file() else around):
            raise UserError(f'--output {output} and --images {images} lie one inside the other, so that results would '
                            'be taken for images; choose a folder elsewhere.')
        lock_folder(output)
        before = read_settings(output)
        changed = [f'{name} {before.get(name)} then, {value} now' for name, value in self.settings.items()
                   if before.get(name) != value] if before is not None else []
        if changed:
            raise UserError(f'--output {output} was made with other settings ({"; ".join(changed)}); choose another '
                            'folder or delete this one.')
        if before is None:
            self._write_json(settings=self.settings)

    def _write_json(self, **content: Any) -> None:
        write_text(self.output / REPORT, json.dumps(content, indent=2) + '\n')

    def todo(self, frames: Iterable[tuple[Path, Item]], folder: Path) -> Iterator[tuple[Path, Item]]:
        """The (name, ...) whose result, a PNG, is not in ``folder`` yet."""
        for frame in frames:
            if (folder / frame[0].with_suffix('.png')).is_file():
                self.existing.append(frame[0])
            else:
                yield frame

    def collect(self, results: Iterable[tuple[Path, str]]) -> None:
        """Take note of each (name, why it has no result, '' if it has one)."""
        for name, reason in results:
            if reason:
                self.failed[name] = reason
            else:
                self.written.append(name)

    def failures(self) -> str:
        return name_some([f'{name} ({reason})' for name, reason in sorted(self.failed.items())], 3)

    def stale(self, folder: Path) -> list[Path]:
        """The results in ``folder`` of images that are no longer there."""
        known = {name.with_suffix('.png') for name in (*self.existing, *self.written, *self.failed)}
        return [name for name in (path.relative_to(folder) for path in folder.rglob('*.png')) if name not in known]

    def finish(self, duplicates: Mapping[Path, Path], others: Mapping[Path, str], sheet: str,
               read: Callable[[Path], Sequence[np.ndarray]], classes: Sequence[str] = ()) -> str:
        """Write the contact sheet, report.json, report.txt and report.html; returns what came of the images.

        Args:
            duplicates: image without a result -> the other one that has the name of its result.
            others: what else is left out, and why.
            sheet: name of the contact sheet, which shows what ``read`` gives of some images that have a result.
            classes: names of the labels whose colours it has.
        """
        why = self.failed | {name: f'its {self.result} would have the name of that of {owner.name}'
                             for name, owner in duplicates.items()}
        made = sorted([*self.existing, *self.written])
        left_out = {name.as_posix(): reason for name, reason in (why | dict(others)).items()}
        reasons = sorted(left_out.items())
        if made:
            with warn_of_failure(sheet):
                save_image(_contact_sheet(made, read, classes), self.output / sheet)
        images, new, existing = len(made) + len(why), len(self.written), len(self.existing)
        counts = {'images': images, f'{self.result}s_written': new, f'{self.result}s_existing': existing}
        self._write_json(settings=self.settings, **counts, left_out=left_out)
        summary = f'{images} images: {new} {self.result}s written, {existing} there already, {len(reasons)} left out'
        lines = [summary, *(f'left out: {name}: {reason}' for name, reason in reasons)]
        lines = ['\\n'.join(line.splitlines()) for line in lines]  # names may hold line breaks
        write_text(self.output / 'report.txt', '\n'.join(lines) + '\n')
        with warn_of_failure(page.REPORT):
            note = f'The first {NAMED} of {len(reasons)}; report.txt names all.' if len(reasons) > NAMED else ''
            drawn = [(sheet, self.output / sheet)] if (self.output / sheet).is_file() else []
            settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in self.settings.items()]
            page.write_page(self.output, f'{self.result}s'.capitalize(), f'{self.output}: {summary}', [
                page.table('Left out', ('image', 'why'), reasons[:NAMED], note),
                page.pictures('Contact sheet', drawn, colours=page.class_colours(classes)),
                page.table('Settings', (), settings, folded=True)])
        return f'{summary}; see {self.output / "report.txt"}'


def _contact_sheet(names: Sequence[Path], read: Callable[[Path], Sequence[np.ndarray]],
                   classes: Sequence[str]) -> Image.Image:
    """Pictures of images spread over the set, above the legend of their classes."""
    cells: list[np.ndarray] = []
    for index in np.unique(np.linspace(0, len(names) - 1, min(SHOWN, len(names))).astype(int)):
        with suppress(UserError):  # removed or damaged since its result was made
            cells += [thumbnail(picture, SIDE) for picture in read(names[index])]
    grid = montage(cells, COLUMNS)
    if not classes:
        return grid
    below = legend(classes)
    sheet = Image.new('RGB', (max(grid.width, below.width), grid.height + below.height), 'white')
    sheet.paste(grid, (0, 0))
    sheet.paste(below, (0, grid.height))
    return sheet
