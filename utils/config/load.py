"""The config of a run: read from files and overrides, checked, and carried as a read-only EasyDict."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from easydict import EasyDict

from utils.config.keys import nest, schema_keys
from utils.config.paths import REPOSITORY, find_file, shown, user_path
from utils.config.published import describe
from utils.config.reader import Reader
from utils.config.schema import Env, Run, conflicts
from utils.run.errors import UserError

PLACEHOLDER = '/path/to'
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
    root_dir = _absolute(values['root_dir'], REPOSITORY)
    values |= {'root_dir': root_dir, 'db_root': _absolute(values['db_root'], REPOSITORY), 'config_name': exp_file.stem,
               'output_dir': _absolute(values['output_dir'] or exp_file.stem, Path(root_dir))}
    return cast(S, Config(nest(values), schema, notes))


def _absolute(path: str, base: Path) -> str:
    return str((base / user_path(path)).resolve())
