"""What came of a folder of images: report.json, report.txt and report.html beside the results."""
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.report import page
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.log import warn_of_failure

REPORT = 'report.json'
NAMED = 50  # images left out that the page names


def fingerprint(path: Path | None) -> str | None:
    """Of a file's content, for settings: a file may move, and another may come in its place."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def check_settings(output: Path, settings: dict[str, Any]) -> None:
    """See that what is in the output folder, if anything, was made in the same way; note how, if nothing is.

    Raises:
        UserError: it was made of other images, with another method or other weights.
    """
    path = output / REPORT
    try:
        before = json.loads(path.read_text())['settings']
    except FileNotFoundError:
        write_text(path, json.dumps({'settings': settings}, indent=2) + '\n')
        return
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{path} is not a report of this script; move it away or choose another --output.') from None
    changed = [f'{name} {before.get(name)} then, {value} now' for name, value in settings.items()
               if before.get(name) != value]
    if changed:
        raise UserError(f'--output {output} was made with other settings ({"; ".join(changed)}); choose another '
                        'folder or delete this one.')


def write_report(output: Path, settings: dict[str, Any], what: str, images: int, written: int, existing: int,
                 left_out: dict[str, str], sheet: str, classes: Sequence[str] = ()) -> str:
    """Write report.json, report.txt and report.html.

    Args:
        what: is made of each image: 'masks'.
        images, written, existing: how many images were found, masks written now, masks there already.
        left_out: {image: why it has no mask}.
        sheet: name of the contact sheet in ``output``, shown if it is there.
        classes: names of the labels whose colours it has.

    Returns:
        the text of report.txt.
    """
    counts = {'images': images, f'{what}_written': written, f'{what}_existing': existing}
    write_text(output / REPORT, json.dumps({'settings': settings, **counts, 'left_out': left_out}, indent=2) + '\n')
    reasons = sorted(left_out.items())
    lines = [f'{images} images: {written} {what} written, {existing} there already, {len(left_out)} left out',
             *(f'left out: {name}: {reason}' for name, reason in reasons)]
    text = '\n'.join('\\n'.join(line.splitlines()) for line in lines) + '\n'  # names may hold line breaks
    write_text(output / 'report.txt', text)
    with warn_of_failure(page.REPORT):
        rows = [(name.replace('_', ' '), str(count)) for name, count in (*counts.items(), ('left out', len(left_out)))]
        blocks = [page.table('Images', (), rows)]
        if reasons:
            note = f'The first {NAMED} of {len(reasons)}; report.txt names all.' if len(reasons) > NAMED else ''
            blocks.append(page.table('Left out', ('image', 'why'), reasons[:NAMED], note))
        if (output / sheet).is_file():
            blocks.append(page.pictures('Contact sheet', [(sheet, output / sheet)],
                                        colours=page.class_colours(classes)))
        shown = [(name, json.dumps(value, ensure_ascii=False)) for name, value in settings.items()]
        page.write_page(output, what.capitalize(), str(output), [*blocks, page.table('Settings', (), shown,
                                                                                     folded=True)])
    return text
