"""YAML files and overrides, read against a schema: every mistake is collected, with its file and line.

And the files that this code wrote, as config.yml beside the results, read as they are.
"""
import re
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from utils.config.keys import Section, flat, nearest, nest, schema_keys, type_name
from utils.config.paths import find_file, shown
from utils.config.published import RULES, Rule
from utils.run.errors import UserError, cannot_read, name_some

NULL, STR, FLOAT = (f'tag:yaml.org,2002:{name}' for name in ('null', 'str', 'float'))
NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')
EXPONENT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$')
MOVE = 'move it away to do without what it says'
NAME, LAST_KEY = 'config.yml', 'config_name'


class Loader(yaml.SafeLoader):
    """YAML 1.1, in which 4e-3 is a number too."""


Loader.add_implicit_resolver(FLOAT, EXPONENT, list('-+.0123456789'))


class Reader:
    """What overrides and files give to the keys of a schema; read them by falling rank, for the first value counts."""

    def __init__(self, schema: type[Section]) -> None:
        self.schema, self.keys, self.rules = schema, schema_keys(schema), RULES.get(schema, {})
        self.sections = {name.rpartition('.')[0] for name in (*self.keys, *self.rules)} - {''}
        self.values: dict[str, Any] = {}  # by dotted key, as the two that follow
        self.places: dict[str, str] = {}  # where it was given, 'configs/env.yml, line 3', or the file that lacks it
        self.translated: dict[str, str | None] = {}  # key of the published code -> the one here, None: without effect
        self.errors: list[str] = []  # one sentence for each mistake
        self.readable = True  # all files were YAML with keys: a key that is missing was left out by the user

    def read_file(self, path: Path, known: Collection[str] = (), above: tuple[Path, ...] = ()) -> None:
        """Read a file that may hold the known keys (default: all), and below it the one that it names as ``base``."""
        where, known = shown(path), known or (*self.keys, *self.rules)
        self.places = dict.fromkeys(known, where) | self.places
        try:
            pairs = _parse(path, where).value
            base = next((pair for pair in pairs if pair[0].value == 'base'), None)
            self._take([('', *pair) for pair in pairs if pair is not base], where, known)
            if base:
                above = *above, path.resolve()
                self.read_file(_find_base(base[1], path, above, _place(where, base[0])), known, above)
        except UserError as error:
            self.errors.append(str(error))
            self.readable = False

    def read_override(self, text: str) -> None:
        """Read one 'a.b=value' of the command line; the value is YAML, or of a key of text that text.

        Such a text may hold # and quotes; the word null and a whole value in quotes are YAML's.
        """
        place, (name, equals, value) = f'--set {text}', text.partition('=')
        section, dot, key = name.strip().rpartition('.')
        is_yaml = self._kind(name.strip()) not in ('str', 'str | None') or re.fullmatch(r'(?s)null|(["\']).*\1|', value)
        try:
            if not equals:
                raise UserError('expected KEY=VALUE')
            node = yaml.compose(value, Loader) or yaml.ScalarNode(NULL, '') if is_yaml else yaml.ScalarNode(STR, value)
            self._take([(section + dot, yaml.ScalarNode(STR, key), node)], place, (*self.keys, *self.rules))
        except (yaml.YAMLError, UserError) as error:
            self.errors.append(f'{place}: {_problem(error)}')

    def _kind(self, name: str | None) -> str:
        return type_name(self.keys[name].annotation) if name in self.keys else ''

    def _take(self, given: list[tuple[str, yaml.Node, yaml.Node]], source: str, known: Collection[str]) -> None:
        """Take what one file or override gives, in which no key comes twice: '' or 'section.', key and value each."""
        seen: dict[str, str] = {}
        for following, (section, key, node) in enumerate(given, 1):
            where, name = _place(source, key), section + (key.value if isinstance(key, yaml.ScalarNode) else '?')
            rule = self.rules.get(name, Rule(name))
            same = name, rule.key or name  # a published key and the one here that takes its value
            try:
                if twice := next((one for one in same if one in seen), None):
                    raise UserError(f'{twice} is given twice, first in {seen[twice]}; keep one')
                seen |= dict.fromkeys(same, where)
                if name.removeprefix(section).count('.') or name not in {*known, *self.sections}:
                    raise UserError(f"unknown key '{name}'; {self._meant(name, known)}")
                if name not in self.sections:
                    self._take_value(name, rule, node, where)
                elif isinstance(node, yaml.MappingNode):
                    given[following:following] = [(f'{name}.', *pair) for pair in node.value]
                elif node.tag != NULL:  # a section with every line commented out is empty, not wrong
                    raise UserError(f'{name} holds the keys {_keys_below(f"{name}.", known)}; '
                                    'expected key: value lines below it')
            except UserError as error:
                self.errors.append(f'{where}: {error}')

    def _take_value(self, name: str, rule: Rule, node: yaml.Node, where: str) -> None:
        if self._kind(rule.key) == 'list[str]' and isinstance(node, yaml.SequenceNode):
            for item in node.value:  # names: 'no' and 2012 are what they say, not false and a number
                item.tag = STR if isinstance(item, yaml.ScalarNode) else item.tag
        try:
            value = yaml.constructor.SafeConstructor().construct_document(node)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise UserError(f'{name}: not a plain YAML value: {_problem(error)}') from error
        if rule.accepted and value not in rule.accepted:
            raise UserError(f'{name}, a key of the published code, can only be {rule.accepted[0]!r} here, '
                            f'got {value!r}; {rule.hint}')
        if name in self.rules:
            self.translated[name] = rule.key
        if rule.key and rule.key not in self.values:
            self.values[rule.key] = rule.false if rule.false and not value else value
            self.places[rule.key] = where

    def _meant(self, name: str, known: Collection[str]) -> str:
        """What to do about an unknown key."""
        section, _, last = name.rpartition('.')
        own = [key for key in known if key in self.keys]
        if name in own:
            return f'write {last} in a line of its own, indented below {section}:'
        near = nearest(last, [key for key in own if key.rpartition('.')[0] == section]) or nearest(last, own, 0.85)
        here = _keys_below(f'{section}.' if section in self.sections else '', known)
        return f"did you mean '{near}'?" if near else f'the keys here are {here}'

    def check(self) -> dict[str, Any]:
        """The right values and the defaults of absent keys, by dotted name; what is wrong or missing is an error."""
        try:
            return flat(self.schema.model_validate(nest(self.values)).model_dump())
        except ValidationError as error:
            wrong: dict[tuple[str, str], list[Any]] = {}  # key, 'item 2 of ' -> what pydantic says
            for item in error.errors():
                name = next(name for name in accumulate(map(str, item['loc']), '{}.{}'.format) if name in self.keys)
                of_list = next((f'item {part + 1} of ' for part in item['loc'] if isinstance(part, int)), '')
                wrong.setdefault((name, of_list), []).append(item)
            for (name, of_list), items in wrong.items():
                if name in self.values:
                    self.errors.append(f'{self.places[name]}: {of_list}{name} must {_reason(items)}')
                elif self.readable:
                    self.errors.append(f'{self.places[name]}: the key {name} is missing '
                                       f'({self.keys[name].description})')
            defaults = {name: field.get_default() for name, field in self.keys.items()}
            return {name: value for name, value in (defaults | self.values).items() if name not in dict(wrong.keys())}


def _parse(path: Path, where: str) -> yaml.MappingNode:
    """The keys of a YAML file. Raises UserError."""
    try:
        root = yaml.compose(path.read_text(encoding='utf-8-sig'), Loader)
    except PermissionError as error:
        raise cannot_read(where) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        raise UserError(f'{where}{line}: not valid YAML: {_problem(error)}') from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f'{where}: expected lines of the form key: value at the top level')
    return root


def _find_base(node: yaml.Node, path: Path, above: Collection[Path], place: str) -> Path:
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f'{place}: base must be the path of one file')
    beside = path.parent / node.value
    try:
        base = beside if beside.is_file() else find_file(node.value)
    except UserError as error:
        raise UserError(f'{place}: base: {error}') from error
    if base.resolve() in above:
        raise UserError(f'{place}: base leads back to {shown(base.resolve())}; take one base out')
    return base


def _place(source: str, node: yaml.Node) -> str:
    return source if source.startswith('--set ') else f'{source}, line {node.start_mark.line + 1}'


def _keys_below(prefix: str, known: Collection[str]) -> str:
    names = [name.removeprefix(prefix).partition('.')[0] for name in known if name.startswith(prefix)]
    return name_some(list(dict.fromkeys(names)), 40)


def _reason(items: list[Any]) -> str:
    """What pydantic says of one value, 'be a valid list, got 5; write [5]'."""
    wants = ' or '.join(dict.fromkeys(item['msg'].partition('should ')[2] for item in items))
    wants = wants.replace('a valid boolean', 'true or false')
    value, kind, hint = items[-1]['input'], items[-1]['type'], ''
    if isinstance(value, str):
        hint = '; remove the quotes' * (kind in ('int_type', 'float_type') and NUMBER.fullmatch(value) is not None)
    elif not isinstance(value, (list, dict, type(None))):
        hint = {'string_type': ', as YAML reads it; put it in quotes', 'list_type': f'; write [{value}]'}.get(kind, '')
    return f'{wants}, got {value!r}{hint}'


def _problem(error: Exception) -> str:
    """What a YAML parser complains about, in one line."""
    text = getattr(error, 'problem', None) or getattr(error, 'reason', None) or str(error)
    return ' '.join(str(text).split())


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
