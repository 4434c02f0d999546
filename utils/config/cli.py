"""The command line of every script: help with an example and all defaults, and near options for unknown ones."""
import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic

from utils.config.keys import choices, default_text, nearest, schema_keys, type_name
from utils.config.load import S, load_config
from utils.config.paths import user_path
from utils.config.schema import Env
from utils.run.errors import UserError

WIDTH, INDENT = 110, 44  # of the list of config keys, characters
NEAR = 0.75  # likeness of an unknown option and what is suggested for it, 0..1


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds to the help of each option its default, if it has one and the help does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if 'default' in str(action.help) or action.required or action.default in (None, [], argparse.SUPPRESS):
            return action.help
        return f'{action.help} (default: {"off" if action.default is False else "%(default)s"})'


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser whose mistakes are a UserError; ``doc`` is the script's docstring: a line, then an example."""

    config_keys: Sequence[str] = ()

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=_Help)
        self.register('type', Path, user_path)

    def add_nproc(self) -> None:
        self.add_argument('--nproc', type=at_least(1), metavar='N',
                          help='processes to start (default: one for each visible GPU, or one on the CPU)')

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self.given, namespace)

    def error(self, message: str) -> Any:
        """Raises UserError, which names the option or the config key that an unknown option is most like."""
        options = [option for option, action in self._option_string_actions.items()
                   if option not in ('-h', '--help', '--set') and action.help != argparse.SUPPRESS]
        for word in self.given:
            name, equals, _ = word.partition('=')
            if name.startswith('--') and not any(other.startswith(name) for other in self._option_string_actions):
                near = nearest(name, [*options, *self.config_keys], NEAR)
                hint = f'did you mean {near if near in options else f"--set {near}=VALUE"}?' if near else 'see --help.'
                raise UserError(f'unknown option {name}; {hint}')
            if equals and name in self.config_keys and message.startswith('unrecognized arguments'):
                raise UserError(f'{word} is a config key; write --set {word}.')
        raise UserError(f'{message}; see --help.')


class ConfigParser(ArgumentParser, Generic[S]):
    """Of a script with a config of ``schema``, whose keys the help lists; --nproc if it can run in ``processes``.

    An option with the name of a key overrides it.
    """

    def __init__(self, doc: str | None, schema: type[S], processes: bool = True) -> None:
        super().__init__(doc)
        self.schema = schema
        self.config_keys, self.epilog = tuple(schema_keys(schema)), describe_keys(schema)
        self.add_argument('--config_env', default='configs/env.yml', help='file with root_dir and db_root')
        self.add_argument('--config_exp', required=True, help='file of the experiment, e.g. one of configs/')
        self.add_argument('--set', dest='overrides', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                          help='override keys of the config, e.g. --set epochs=1 optimizer_kwargs.lr=0.01')
        if processes:
            self.add_nproc()

    def load(self, args: argparse.Namespace, *defaults: str, root_of_data: Path | None = None) -> S:
        """``load_config`` of the parsed arguments; a key of ``defaults``, 'a.b=value', gives way to --set."""
        options = [(name, str(value.resolve()) if isinstance(value, Path) else value)
                   for name, value in vars(args).items() if name in self.config_keys and value is not None]
        return load_config(args.config_env, args.config_exp, self.schema, [*defaults, *args.overrides], root_of_data,
                           options)


class Distinct(argparse.Action):
    """Of several values the equal ones count once."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least ``least``."""
    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f'{text} is too small; give at least {least}')
        return int(text)

    return whole_number


def describe_keys(schema: type[Env]) -> str:
    """Lines 'name: type = default   what it is', wrapped; the keys of --config_env last."""
    lines = ['keys of the config file, of --config_exp and --set:']
    for name, field in sorted(schema_keys(schema).items(), key=lambda item: item[0] in Env.model_fields):
        if name == next(iter(Env.model_fields)):
            lines += ['', 'keys of --config_env:']
        head = f'{name}: {type_name(field.annotation)} = {default_text(field) or "(must be given)"}'
        allowed = f' ({choices(field)})' * bool(choices(field))
        lines.append(textwrap.fill(f'{head:{INDENT - 4}}  {field.description}{allowed}', WIDTH, initial_indent='  ',
                                   subsequent_indent=' ' * INDENT))
    return '\n'.join(lines)
