"""Config files: found, read, checked against ``utils.config.schema`` and carried as a read-only EasyDict."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from easydict import EasyDict

from utils.config.cli import ArgumentParser
from utils.config.paths import user_path
from utils.config.published import describe
from utils.config.schema import Env
from utils.config.strict_yaml import StrictReader, nest
from utils.run.errors import MissingFileError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
PLACEHOLDER = '/path/to'
# Keys that do not change results but for rounding, so that a run may continue with others. Not among them: precision,
# tf32 and val_tf32, which round far more; compile, which draws other numbers for dropout.
IGNORED = ('num_workers', 'cache', 'crf_workers', 'device', 'channels_last', 'loss_chunk', 'log_every',
           'checkpoint_every', 'panel_every', 'probe_every', 'probe_split', 'probe_images', 'num_visualizations',
           'val_batch_size', 'root_dir', 'db_root', 'output_dir', 'config_name')


class Config(EasyDict):
    """An EasyDict that refuses every change; lists in it are tuples. ``as_dict`` gives a plain copy.

    ``_notes``, no entry, are lines on its file that ``utils.run.setup.prepare`` logs.
    """

    def __init__(self, values: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        object.__setattr__(self, '_notes', tuple(notes))
        for name, value in values.items():
            if isinstance(value, dict):
                value = Config(value)
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, name, value)
            dict.__setitem__(self, name, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError('the config is read-only once loaded')

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple:  # pickle and deepcopy would assign item by item
        return Config, (dict(self),)


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain nested dicts and lists: what YAML, JSON and ``weights_only`` checkpoints take."""
    return {name: as_dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for name, value in config.items()}


def add_config_arguments(parser: ArgumentParser, schema: type) -> None:
    """Add --config_env, --config_exp and --set (as ``overrides``) to a script's arguments, the keys to its help."""
    parser.add_config_keys(schema)
    parser.add_argument('--config_env', default='configs/env.yml',
                        help='file with root_dir and db_root (default: %(default)s)')
    parser.add_argument('--config_exp', required=True, help='file of the experiment, e.g. one of configs/')
    parser.add_argument('--set', dest='overrides', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override keys of the config, e.g. --set epochs=1 optimizer_kwargs.lr=0.01')


def find_file(path: str | Path) -> Path:
    """The absolute path of a file looked up from the working directory, then the repository root.

    Raises:
        MissingFileError: it is in neither; the message lists both.
    """
    return _look_up(path, (Path.cwd(), REPOSITORY))


def resolve_path(path: str | Path, root_dir: str | Path) -> Path:
    """The absolute path of a checkpoint looked up from the working directory, root_dir, the repository root.

    Raises:
        MissingFileError: it is in none of them; the message lists the three.
    """
    return _look_up(path, (Path.cwd(), Path(root_dir), REPOSITORY))


def _look_up(path: str | Path, folders: Sequence[Path]) -> Path:
    places = list(dict.fromkeys((folder / user_path(str(path))).absolute() for folder in folders))
    for place in places:
        if place.is_file():
            return place
    raise MissingFileError(f'no file {path}: looked for {" and ".join(map(str, places))}; correct the path '
                           'or make the file first.')


def load_config(config_env: str, config_exp: str, schema: type, overrides: Sequence[str] = (),
                root_of_data: Path | None = None) -> EasyDict:
    """Read the two config files and the overrides, check them and fill in the defaults.

    Args:
        config_env: YAML file of ``utils.config.schema.Env``, looked up by ``find_file``.
        config_exp: YAML file of ``schema``, looked up likewise.
        schema: dataclass of the experiment, e.g. ``utils.config.schema.Pretrain``.
        overrides: 'a.b=value' each, the value in YAML, for keys of the experiment, root_dir and db_root.
        root_of_data: db_root where the file still has the placeholder.

    Returns:
        A read-only EasyDict of the keys of ``schema`` with ``root_dir``, ``db_root`` and ``output_dir``
        as absolute paths (str) and ``config_name``, the experiment file's name without suffix.

    Raises:
        UserError: a file is missing, or anything in them is wrong: one line for each mistake.
    """
    files = find_file(config_env), find_file(config_exp)
    shown_env, shown_exp = map(_shown, files)
    env, exp = StrictReader(Env), StrictReader(schema)
    env.read_file(files[0], shown_env)
    exp.read_file(files[1], shown_exp)
    errors = []
    for text in overrides:
        name, equals, _ = text.partition('=')
        if not equals:
            errors.append(f'--set {text}: expected KEY=VALUE')
            continue
        (env if name.strip() in env.keys else exp).read_override(text)
    db_root_missing = env.readable and 'db_root' not in env.places  # as in the env.yml of the published code
    if db_root_missing:
        env.values['db_root'], env.places['db_root'] = PLACEHOLDER, shown_env
    env.fill_defaults(shown_env)
    exp.fill_defaults(shown_exp)
    errors = env.errors + exp.errors + errors
    errors += [f'{exp.places.get(key, shown_exp)}: {problem}' for key, problem in check_combinations(exp.values)]
    db_root = env.values.get('db_root', '')
    unset = db_root == PLACEHOLDER or db_root.startswith(f'{PLACEHOLDER}/')
    if unset and root_of_data is not None:
        db_root = str(root_of_data)
    elif unset:
        state = 'missing' if db_root_missing else f'still the placeholder {db_root}'
        errors.append(f'{env.places["db_root"]}: db_root is {state}; set it to the folder '
                      'that holds the data sets, there or with --set db_root=FOLDER')
    if errors:
        count = f'{len(errors)} errors in the config:\n' if len(errors) > 1 else ''
        raise UserError(count + '\n'.join(errors))

    name = files[1].stem
    root_dir = _absolute(env.values['root_dir'], REPOSITORY)
    values = {**nest(exp.values), 'root_dir': root_dir, 'db_root': _absolute(db_root, REPOSITORY),
              'output_dir': _absolute(exp.values['output_dir'] or name, Path(root_dir)), 'config_name': name}
    return Config(values, describe(shown_exp, exp.translated, exp.places, schema))


def check_combinations(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Values that are of the right type but cannot work, alone or together.

    Args:
        values: dotted key -> value; keys that the schema at hand lacks are absent.

    Returns:
        (key, sentence) for each problem.
    """
    problems = []
    for names, fits, expected in RANGES:
        problems += [(name, f'{name} is {_text(values[name])}; expected {expected}')
                     for name in names.split() if name in values and not fits(values[name])]

    def given(name: str, *options: Any) -> bool:
        return name in values and values[name] in options

    if given('pretraining', 'imagenet_moco') and given('moco_state_dict', None):
        problems.append(('pretraining', 'pretraining: imagenet_moco needs moco_state_dict, the path of the checkpoint'))
    if given('scheduler', 'step') and given('scheduler_kwargs.lr_decay_epochs', []):
        problems.append(('scheduler', 'scheduler: step needs scheduler_kwargs.lr_decay_epochs, e.g. [25]'))
    if values.get('train_batch_size', 0) > values.get('moco_kwargs.K', 0) > 0:
        problems.append(('train_batch_size', f'train_batch_size {values["train_batch_size"]} does not fit into the '
                         f'memory bank of moco_kwargs.K {values["moco_kwargs.K"]}; raise K or take smaller batches'))
    if values.get('probe_every') and given('model_kwargs.use_classification_head', False):
        problems.append(('probe_every', 'probe_every needs model_kwargs.use_classification_head: true, which predicts '
                         'the masks; set it, or probe_every: 0'))
    if (given('optimizer_kwargs.nesterov', True) and given('optimizer', 'sgd')
            and given('optimizer_kwargs.momentum', 0)):
        problems.append(('optimizer_kwargs.nesterov', 'optimizer_kwargs.nesterov needs a momentum above 0'))
    if values.get('crop', 0) > values.get('resize', float('inf')):
        problems.append(('crop', f'crop {values["crop"]} is larger than resize {values["resize"]}; lower it'))
    if 'val_images' in values and given('val_images', None) != given('val_masks', None):
        problems.append(('val_images', 'val_images and val_masks go together; give both or neither'))
    if given('features', 'embedding', 'backbone'):  # the protocols on prototypes: nothing runs on random weights
        needs = [name for name, option in (('features', 'embedding'), ('saliency', 'network')) if given(name, option)]
        if given('pretraining', 'imagenet_classification', 'imagenet_moco', 'none') and needs:
            problems.append(('pretraining', f'pretraining: {values["pretraining"]} holds no trained heads; give the '
                             'path of a checkpoint, or features: backbone and saliency: supervised_model'))
        elif given('saliency', 'network') and given('model_kwargs.use_classification_head', False):
            problems.append(('saliency', 'saliency: network needs model_kwargs.use_classification_head: true'))
    return problems


def _increasing(pair: Sequence[float]) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1]


# keys, what a value must satisfy, and how to say that
RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    ('val_size train_size val_batch_size train_batch_size model_kwargs.ndim num_clusters num_seeds '
     'num_neighbours log_every augmentation_kwargs.size resize crop crf_kwargs.iterations probe_images',
     lambda v: v >= 1, '1 or more'),
    ('epochs num_workers num_visualizations freeze_layers optimizer_kwargs.weight_decay crf_kwargs.pos_w '
     'crf_kwargs.bi_w label_seed network_lr_factor', lambda v: v >= 0, '0 or more'),
    ('label_share', lambda v: 0 < v <= 1, 'a share above 0, up to 1'),
    ('moco_kwargs.T optimizer_kwargs.lr scheduler_kwargs.lr_decay_rate crf_kwargs.pos_xy_std crf_kwargs.bi_xy_std '
     'crf_kwargs.bi_rgb_std', lambda v: v > 0, 'a number above 0'),
    ('moco_kwargs.m augmentation_kwargs.jitter_probability augmentation_kwargs.grey_probability '
     'augmentation_kwargs.flip_probability flip_probability', lambda v: 0 <= v <= 1, 'a number from 0 to 1'),
    ('checkpoint_every loss_chunk moco_kwargs.K panel_every probe_every', lambda v: v >= 0, '0 or more'),
    ('crf_workers', lambda v: v is None or v >= 0, '0 or more'),
    ('optimizer_kwargs.momentum model_kwargs.dropout crf_kwargs.min_probability', lambda v: 0 <= v < 1,
     'a number from 0 to below 1'),
    ('seed', lambda v: 0 <= v < 2 ** 31, 'a whole number from 0 to 2147483647'),
    ('scheduler_kwargs.lr_decay_epochs', lambda v: all(e >= 0 for e in v), 'epochs of 0 or more'),
    ('augmentation_kwargs.scale', lambda v: _increasing(v) and v[1] <= 1, 'two increasing numbers above 0, up to 1'),
    ('augmentation_kwargs.ratio', _increasing, 'two increasing numbers above 0'),
    ('augmentation_kwargs.jitter', lambda v: len(v) == 4 and min(v) >= 0 and v[3] <= 0.5,
     'four numbers of 0 or more, the last (hue) at most 0.5'),
    ('overclustering', lambda v: all(k >= 1 for k in v), 'numbers of clusters of 1 or more'),
    ('min_component', lambda v: 0 < v <= 1, 'a share of the image above 0, up to 1'),
    ('border_label', lambda v: v in (0, 255), '0 or 255'),
]


def _shown(path: Path) -> str:
    """A path as messages show it: relative to the working directory when below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _absolute(path: str, base: Path) -> str:
    return str((base / user_path(path)).resolve())


def _text(value: Any) -> str:
    """A value for messages: null, true, 0.1, "text", [25]."""
    return json.dumps(value, default=str, ensure_ascii=False)
