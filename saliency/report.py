"""What came of a folder of images: report.json, report.txt and contact_sheet.jpg beside the masks."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saliency.files import mask_name, read_image
from utils.errors import UserError
from utils.pictures import save_image
from utils.results import write_text

REPORT = 'report.json'


def check_settings(output: Path, settings: dict[str, Any]) -> None:
    """See that the masks in the output folder, if any, were made in the same way; note how, if none are.

    Raises:
        UserError: they were made with another method or other weights.
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


def write_report(output: Path, settings: dict[str, Any], images: int, written: int, existing: int,
                 left_out: dict[str, str]) -> str:
    """Write report.json and report.txt.

    Args:
        images, written, existing: how many images were found, masks written now, masks there already.
        left_out: image -> why it has no mask.

    Returns:
        the text of report.txt.
    """
    counts = {'images': images, 'masks_written': written, 'masks_existing': existing, 'left_out': left_out}
    write_text(output / REPORT, json.dumps({'settings': settings, **counts}, indent=2) + '\n')
    lines = [f'{images} images: {written} masks written, {existing} there already, {len(left_out)} left out']
    lines += [f'left out: {name}: {reason}' for name, reason in sorted(left_out.items())]
    text = '\n'.join(lines) + '\n'
    write_text(output / 'report.txt', text)
    return text


def contact_sheet(images: Path, names: Sequence[Path], output: Path, count: int = 24, columns: int = 3,
                  height: int = 160) -> None:
    """Draw image | mask for up to ``count`` images that have a mask, spread over the set."""
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int))]
    width, gap = 2 * height, 6  # the cell of an image and that of its mask: height x height each
    rows = -(-len(chosen) // columns)
    sheet = Image.new('RGB', (columns * (width + gap) + gap, rows * (height + gap) + gap), 'white')
    for place, name in enumerate(chosen):
        left, top = gap + place % columns * (width + gap), gap + place // columns * (height + gap)
        try:
            pair = [Image.fromarray(read_image(path)) for path in (images / name, output / mask_name(name))]
        except ValueError:
            continue  # damaged since its mask was made: an empty place
        for picture in pair:
            picture.thumbnail((height, height))
            sheet.paste(picture, (left, top))
            left += height
    save_image(sheet, output / 'contact_sheet.jpg')
