"""The config beside the results: config.yml in an output directory, written, compared and read back."""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config.keys import Section, flat, schema_keys
from utils.config.load import as_dict
from utils.run.errors import UserError, cannot_read, name_some
from utils.run.files import write_text
from utils.run.log import clear_metrics

NAME, LAST_KEY = 'config.yml', 'config_name'
MOVE = 'move it away to do without what it says'
RESULTS = ('*.pth.tar', '*.pth', '*.npz', 'results.json', 'predictions*')  # checkpoints and results in a folder


def read_yaml(path: Path, hint: str = MOVE) -> dict[str, Any] | None:
    """The keys of a file that this code wrote; None if it is not there. Raises UserError if it is damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise cannot_read(path) from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise damaged(path, str(error).splitlines()[0], hint) from error
    if not isinstance(content, dict):
        raise damaged(path, 'it holds no keys', hint)
    return content


def damaged(path: Path, why: str, hint: str = MOVE) -> UserError:
    return UserError(f'{path} is damaged ({why}); restore it, or {hint}.')


def read_config(output_dir: Path, hint: str = MOVE) -> dict[str, Any] | None:
    """config.yml of a run; None if there is none. Raises UserError if it is damaged."""
    content = read_yaml(output_dir / NAME, hint)
    if content is not None and LAST_KEY not in content:
        raise damaged(output_dir / NAME, f'its end, with {LAST_KEY}, is missing', hint)
    return content


def save_config(config: Section, output_dir: str | Path, identity: Sequence[str] = ()) -> Path:
    """Write ``config.yml`` in output_dir, or make sure that the one there says the same. Call it in one process only.

    A folder without checkpoint or results, of a start that failed, takes the new config; curves in it go. Keys that
    leave results the same may differ, but for those of ``identity``. A key that the file lacks, as those of an earlier
    version do, counts as its default. Raises UserError, which names the keys that differ.
    """
    path = Path(output_dir) / NAME
    occupied = any(not found.name.startswith('.') for pattern in RESULTS for found in path.parent.glob(pattern))
    old = read_config(path.parent, 'choose another output_dir (--set output_dir=...)') if occupied else None
    if old is None:
        if path.exists():
            clear_metrics(path.parent)
        write_text(path, yaml.safe_dump(as_dict(config), sort_keys=False))
        return path
    keys = schema_keys(config._schema)
    free = {LAST_KEY, *(name for name, field in keys.items() if not field.frozen)} - {*identity}
    defaults = {name: field.default for name, field in keys.items() if not field.is_required()}
    before, after = ({name: json.dumps(value, ensure_ascii=False, default=str) for name, value in values.items()}
                     for values in (defaults | flat(old), flat(as_dict(config))))
    changes = [f'{name}: {before.get(name, "absent")} -> {after.get(name, "absent")}'
               for name in dict.fromkeys((*after, *before)) if name not in free and before.get(name) != after.get(name)]
    if changes:
        other = 'root_dir' if 'db_root' in identity else 'output_dir'  # the steps on a folder share its root_dir
        raise UserError(f'{output_dir} holds results of another config ({name_some(changes, 20)}); '
                        f'choose another {other} (--set {other}=...) or delete the folder.')
    return path
