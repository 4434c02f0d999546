"""The config of a run: read from files and overrides, checked, carried as a read-only EasyDict, kept in config.yml."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from easydict import EasyDict

from utils.config.keys import Section, flat, nest, schema_keys
from utils.config.paths import REPOSITORY, find_file, shown, user_path
from utils.config.published import describe
from utils.config.reader import LAST_KEY, NAME, Reader, read_config
from utils.config.schema import Env, Run, conflicts
from utils.run.errors import UserError, name_some
from utils.run.files import write_text
from utils.run.log import clear_metrics

PLACEHOLDER = '/path/to'
RESULTS = '*.pth.tar', '*.pth', '*.npz', 'results.json', 'predictions*', 'label_maps'  # in a folder, checkpoints too
S = TypeVar('S', bound=Run)


class Config(EasyDict):
    """An EasyDict that refuses every change; lists in it are tuples. ``as_dict`` gives a plain copy.

    ``_schema``, and ``_notes`` for the log, are no entries.
    """

    def __init__(self, values: Mapping[str, Any], schema: type[Run] | None = None, notes: Sequence[str] = ()) -> None:
        object.__setattr__(self, '_schema', schema)
        object.__setattr__(self, '_notes', tuple(notes))
        for name, value in values.items():
            value = Config(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
            object.__setattr__(self, name, value)
            dict.__setitem__(self, name, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError('the config is read-only once loaded')

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple:  # pickle and deepcopy would assign item by item
        return Config, (dict(self), self._schema, self._notes)


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts and lists: what YAML, JSON and ``weights_only`` checkpoints take."""
    return {name: as_dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for name, value in config.items()}


def load_config(config_env: str, config_exp: str, schema: type[S], overrides: Sequence[str] = (),
                root_of_data: Path | None = None, options: Sequence[tuple[str, Any]] = ()) -> S:
    """Read the two config files and the overrides 'a.b=value', of which the last counts, and fill in the defaults.

    ``config_env`` holds root_dir and db_root (``root_of_data`` where that is still the placeholder), ``config_exp`` all
    other keys, and its name is 'config_name'. ``options``, (key, value) each, override the overrides. Paths of folders
    come back absolute. Raises UserError if a file is missing, or anything in them is wrong: one line for each mistake.
    """
    env_file, exp_file = find_file(config_env), find_file(config_exp)
    reader, of_env = Reader(schema), schema_keys(Env)
    reader.values.update(options)
    reader.places.update((name, 'command line') for name, _ in options)
    for text in reversed(overrides):
        reader.read_override(text)
    reader.read_file(exp_file, [name for name in (*reader.keys, *reader.rules) if name not in of_env])
    reader.read_file(env_file, of_env)
    db_root = reader.values.get('db_root', PLACEHOLDER)
    if reader.readable and f'{db_root}/'.startswith(f'{PLACEHOLDER}/'):
        if root_of_data is None:
            state = f'still the placeholder {db_root}' if 'db_root' in reader.values else 'missing'
            reader.errors.append(f'{reader.places["db_root"]}: db_root is {state}; set it to the folder that holds the '
                                 'data sets, there or with --set db_root=FOLDER')
        reader.values['db_root'] = str(root_of_data)
    notes = describe(shown(exp_file), reader.translated, reader.values, schema)
    values = reader.check()
    errors = reader.errors + [f'{reader.places[key]}: {sentence}' for key, sentence in conflicts(values)]
    if errors:
        raise UserError('\n'.join([f'{len(errors)} errors in the config:'] * (len(errors) > 1) + errors))
    values |= {'output_dir': values['output_dir'] or exp_file.stem, 'config_name': exp_file.stem}
    for name, base in (('root_dir', ''), ('db_root', ''), ('output_dir', 'root_dir')):
        values[name] = str((REPOSITORY / values.get(base, '') / user_path(values[name])).resolve())
    return cast(S, Config(nest(values), schema, notes))


def frozen(config: Section, values: Mapping[str, Any], identity: Sequence[str] = ()) -> dict[str, str]:
    """The keys of ``values`` that change the results of a ``config``'s run, and those of ``identity``, as JSON."""
    free = {name for name, field in schema_keys(config._schema).items() if not field.frozen} - {*identity}
    return {name: json.dumps(value, ensure_ascii=False, default=str)
            for name, value in flat(dict(values)).items() if name not in free | {LAST_KEY}}


def changes(config: Section, old: Mapping[str, Any], identity: Sequence[str] = ()) -> dict[str, str]:
    """The ``frozen`` keys that differ from those of an earlier run: {key: 'key: before -> after'}.

    A key that the earlier one lacks, as those of an earlier version do, counts as its default.
    """
    defaults = {name: field.default for name, field in schema_keys(config._schema).items() if not field.is_required()}
    before, after = frozen(config, defaults | flat(dict(old)), identity), frozen(config, as_dict(config), identity)
    return {name: f'{name}: {before.get(name, "absent")} -> {after.get(name, "absent")}'
            for name in dict.fromkeys((*after, *before)) if before.get(name) != after.get(name)}


def save_config(config: Section, output_dir: str | Path, identity: Sequence[str] = ()) -> Path:
    """Write ``config.yml`` in output_dir, or make sure that the one there says the same. Call it in one process only.

    A folder without checkpoint or results, of a start that failed, takes the new config; curves in it go. Raises
    UserError, which names the keys that differ, see ``changes``, and for a config.yml of something else.
    """
    path = Path(output_dir) / NAME
    occupied = any(not found.name.startswith('.') for pattern in RESULTS for found in path.parent.glob(pattern))
    old = read_config(path.parent, 'choose another output_dir (--set output_dir=...)')
    if old is None or not occupied:
        if old is not None:
            clear_metrics(path.parent)
        write_text(path, yaml.safe_dump(as_dict(config), sort_keys=False))
        return path
    if changed := changes(config, old, identity):
        other = 'root_dir' if 'db_root' in changed else 'output_dir'  # the steps on a folder share its root_dir
        raise UserError(f'{output_dir} holds results of another config ({name_some([*changed.values()], 20)}); '
                        f'choose another {other} (--set {other}=...) or delete the folder.')
    return path
