"""The command line of every script: help with an example and all defaults, and near options for unknown ones."""
from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from utils.config.paths import user_path
from utils.config.schema import Env
from utils.config.strict_yaml import Key, schema_keys
from utils.run.errors import UserError

WIDTH = 110  # of the list of config keys, characters
NEAR = 0.75  # likeness of an unknown option and what is suggested for it, 0..1


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds to the help of each option its default, if it has one and the help does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ''
        told = 'default' in text or action.default is argparse.SUPPRESS or action.required
        if told or action.default in (None, []):
            return text
        return f'{text} (default: {"off" if action.default is False else "%(default)s"})'


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser whose mistakes are a UserError, with the nearest option or the way to give a config key.

    Args:
        doc: the script's docstring: a line, then an example.
    """

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, formatter_class=_Help)
        self.register('type', Path, user_path)
        self.config_keys: list[str] = []
        self.given: list[str] = []

    def add_config_keys(self, schema: type) -> None:
        """List the keys of an experiment's config, with their defaults, below the options."""
        keys = schema_keys(schema)
        self.config_keys = list(keys)
        self.epilog = '\n'.join(['keys of the config file, of --config_exp and --set:', *describe_keys(keys), '',
                                 'keys of --config_env:', *describe_keys(schema_keys(Env))])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self.given, namespace)

    def error(self, message: str) -> Any:
        """Raises UserError."""
        known = [option for option in self._option_string_actions if option.startswith('--')]
        for word in self.given:
            name, equals, _ = word.partition('=')
            option = name.startswith('--') and name != '--'
            if option and not any(other.startswith(name) for other in known):
                mend = self._near(name)
                raise UserError(f'unknown option {name}; ' + (f'did you mean {mend}?' if mend else 'see --help.'))
            if equals and name in self.config_keys and message.startswith('unrecognized arguments'):
                raise UserError(f'{word} is a config key; write --set {word}.')
        raise UserError(f'{message}; see --help.')

    def _near(self, name: str) -> str | None:
        """The option or the config key, whole or its last part, that an unknown option is most like; None for none."""
        mends = {}
        for key in reversed(self.config_keys):  # of several with one last part the first counts
            mends[key.rpartition('.')[2].lower()] = f'--set {key}=VALUE'
        mends |= {key.lower(): f'--set {key}=VALUE' for key in self.config_keys}
        mends |= {_bare(option): option for option, action in self._option_string_actions.items()
                  if option.startswith('--') and option not in ('--help', '--set') and action.help != argparse.SUPPRESS}
        near = get_close_matches(_bare(name), mends, 1, NEAR)
        return mends[near[0]] if near else None


def _bare(option: str) -> str:
    return option.lstrip('-').replace('-', '_').lower()


def describe_keys(keys: dict[str, Key]) -> list[str]:
    """Lines 'name: type = default   what it is', wrapped."""
    names = {name: f'  {name}: {_type(key.type)} = {_default(key)}' for name, key in keys.items()}
    indent = 44
    lines = []
    for name, key in keys.items():
        choices = key.field.metadata['choices']
        text = key.field.metadata['help'] + (f' ({", ".join(map(str, choices))})' if choices else '')
        wrapped = textwrap.wrap(text, WIDTH - indent)
        if len(names[name]) >= indent:
            lines.append(names[name])
        else:
            lines.append(f'{names[name]:{indent}}{wrapped.pop(0)}')
        lines += [' ' * indent + line for line in wrapped]
    return lines


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _default(key: Key) -> str:
    if key.field.default is not MISSING:
        return json.dumps(key.field.default)
    if key.field.default_factory is not MISSING:
        return json.dumps([round(v, 4) if isinstance(v, float) else v for v in key.field.default_factory()])
    return '(must be given)'
