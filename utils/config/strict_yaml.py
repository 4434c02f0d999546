"""YAML read strictly against a dataclass of ``utils.config.schema``: every mistake is collected, with its place."""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from utils.config.published import RULES
from utils.run.errors import name_some

SCALARS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}
PLURALS = {int: 'whole numbers', float: 'numbers', str: 'texts'}
EXPONENT = re.compile(r'([-+]?)(\d*)\.?(\d*)[eE]([-+]?)(\d+)')
NULL, STR, MAP = (f'tag:yaml.org,2002:{name}' for name in ('null', 'str', 'map'))


class Key(NamedTuple):
    """A key of the schema that holds a value: its type and its dataclass field."""
    type: Any
    field: Field


def schema_keys(schema: type, prefix: str = '') -> dict[str, Key]:
    """All keys of a schema by dotted name, e.g. ``optimizer_kwargs.lr``."""
    keys: dict[str, Key] = {}
    types = get_type_hints(schema)
    for field in fields(schema):
        if is_dataclass(types[field.name]):
            keys.update(schema_keys(types[field.name], f'{prefix}{field.name}.'))
        else:
            keys[prefix + field.name] = Key(types[field.name], field)
    return keys


class StrictReader:
    """Collects the values that files and overrides give to the keys of one schema.

    Keys of the published code's files are read as those that they are here (``utils.config.published``).

    Attributes:
        values: dotted key -> checked value, defaults included after ``fill_defaults``.
        places: dotted key -> where it was given, e.g. 'configs/env.yml, line 3'.
        errors: one sentence for each mistake found so far.
        readable: the file was YAML with keys, so that an absent key is the user's doing.
        translated: key of the published code -> the key here that took its value, None for one without effect.
    """

    def __init__(self, schema: type) -> None:
        self.keys = schema_keys(schema)
        self.rules = RULES.get(schema, {})
        self.sections = {name.rpartition('.')[0] for name in self.keys} - {''}
        self.published_sections = {name.rpartition('.')[0] for name in self.rules} - {''} - self.sections
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.errors: list[str] = []
        self.readable = False
        self.translated: dict[str, str | None] = {}
        self._taken: dict[str, str] = {}  # key -> place, in the file or override that is being read

    def read_file(self, path: Path, shown: str) -> None:
        """Read a YAML file; ``shown`` is its name in messages."""
        self._taken = {}
        try:
            root = yaml.compose(path.read_text(encoding='utf-8-sig'), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, 'problem_mark', None)
            where = f'{shown}, line {mark.line + 1}' if mark else shown
            self.errors.append(f'{where}: not valid YAML: {_problem(error)}')
            return
        if root is None:
            self.errors.append(f'{shown}: the file is empty; expected lines of the form key: value')
        elif not isinstance(root, yaml.MappingNode):
            self.errors.append(f'{shown}, line {root.start_mark.line + 1}: '
                               'expected lines of the form key: value at the top level')
        else:
            self.readable = True
            self._read_mapping(root, '', lambda line: f'{shown}, line {line}')

    def read_override(self, text: str) -> None:
        """Read one 'a.b=value' of the command line; the value is YAML, or of a key of text that text.

        Such a text may hold # and quotes; the word null and a whole value in quotes are YAML's.
        """
        self._taken = {}
        path, _, value = text.partition('=')
        where = f'--set {text}'
        mark = yaml.Mark(where, 0, 0, 0, '', 0)
        key = self.keys.get(path.strip())
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in '"\''
        try:
            if key and key.type in (str, str | None) and value not in ('', 'null') and not quoted:
                node: Any = yaml.ScalarNode(STR, value, mark)
            else:
                node = yaml.compose(value, Loader=yaml.SafeLoader) or yaml.ScalarNode(NULL, '', mark)
        except yaml.YAMLError as error:
            self.errors.append(f'{where}: the value is not valid YAML: {_problem(error)}')
            return
        *sections, last = path.strip().split('.')
        mapping = yaml.MappingNode(MAP, [(yaml.ScalarNode(STR, last, mark), node)], mark)
        for section in reversed(sections):  # a.b=value reads like {a: {b: value}}
            mapping = yaml.MappingNode(MAP, [(yaml.ScalarNode(STR, section, mark), mapping)], mark)
        self._read_mapping(mapping, '', lambda line: where)

    def fill_defaults(self, shown: str) -> None:
        """Give absent keys their defaults; a required one that is absent is an error in file ``shown``."""
        if not self.readable:
            return
        for name, key in self.keys.items():
            if name in self.places:
                continue
            if key.field.default_factory is not MISSING:
                self.values[name] = key.field.default_factory()
            elif key.field.default is not MISSING:
                self.values[name] = key.field.default
            else:
                self.errors.append(f'{shown}: the key {name} is missing ({key.field.metadata["help"]})')

    def _read_mapping(self, mapping: yaml.MappingNode, prefix: str, place: Callable[[int], str]) -> None:
        lines: dict[str, int] = {}
        for key_node, node in mapping.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else '?'
            line, path = key_node.start_mark.line + 1, prefix + name
            where = place(line)
            if name in lines:
                self.errors.append(f'{where}: {path} is given twice, first in line {lines[name]}; keep one')
            elif path in self.sections | self.published_sections and '.' not in name:
                if isinstance(node, yaml.MappingNode):
                    self._read_mapping(node, f'{path}.', place)
                elif node.tag != NULL:  # a section with every line commented out is empty, not wrong
                    self.errors.append(f'{where}: {path} holds the keys {", ".join(self._children(path))}; '
                                       'expected key: value lines below it')
            elif path in self.rules and '.' not in name:
                self._translate(path, node, where)
            elif path not in self.keys or '.' in name:
                self.errors.append(f"{where}: unknown key '{path}'; {self._hint(path, prefix)}")
            else:
                self._take(path, node, where)
            lines.setdefault(name, line)

    def _take(self, path: str, node: yaml.Node, where: str) -> None:
        if path in self._taken:
            self.errors.append(f'{where}: {path} is given twice, also in {self._taken[path]} (a key of the published '
                               'code and ours mean the same); keep one')
        self.places[path] = self._taken[path] = where
        try:
            self.values[path] = convert(node, self.keys[path])
        except ValueError as error:
            self.values.pop(path, None)
            self.errors.append(f'{where}: {path}: {error}')

    def _translate(self, path: str, node: yaml.Node, where: str) -> None:
        """Read a key of the published code."""
        rule = self.rules[path]
        try:
            value = _plain(node)
        except ValueError as error:
            self.errors.append(f'{where}: {path}: {error}')
            return
        if rule.accepted and value not in rule.accepted:
            self.errors.append(f'{where}: {path}, a key of the published code, can only be '
                               f'{_describe(rule.accepted[0])} here, got {_describe(value)}; {rule.hint}')
        elif rule.key is not None:
            other = yaml.ScalarNode(STR, rule.false, node.start_mark) if rule.false and not value else node
            self._take(rule.key, other, where)
        self.translated[path] = rule.key

    def _children(self, section: str) -> list[str]:
        names = [name.rpartition('.') for name in (*self.keys, *sorted(self.sections))]
        own = [last for parent, _, last in names if parent == section]
        return own or [name.rpartition('.')[2] for name in self.rules if name.rpartition('.')[0] == section]

    def _hint(self, path: str, prefix: str) -> str:
        if path in self.keys:
            return f'write {path.rpartition(".")[2]} in a line of its own, indented below {path.rpartition(".")[0]}:'
        name = path.removeprefix(prefix)
        siblings = self._children(prefix.rstrip('.'))
        elsewhere = [known for known in self.keys if known.rpartition('.')[2] == name]
        close = elsewhere or [prefix + match for match in get_close_matches(name, siblings, 1)]
        return f"did you mean '{close[0]}'?" if close else f'the keys here are {name_some(siblings, 40)}'


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, last = name.split('.')
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def convert(node: yaml.Node, key: Key) -> Any:
    """The value of a YAML node as the key's type. Raises ValueError with what was expected."""
    value = _plain(node)
    options = get_args(key.type) if isinstance(key.type, UnionType) else (key.type,)
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    kind = type(value) if type(value) in kinds else kinds[0]
    expected = PLURALS[get_args(kind)[0]] if get_origin(kind) is list else ' or '.join(SCALARS[kind] for kind in kinds)
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError(f'expected a list of {expected}, e.g. [a, b], got {_describe(value)}')
        if get_args(kind)[0] is str:  # names: 'no' and 2012 are what they say, not false and a number
            value = [n.value if isinstance(n, yaml.ScalarNode) else item
                     for n, item in zip(node.value, value, strict=True)]
        for item, item_node in zip(value, node.value, strict=True):
            if problem := _mismatch(item, item_node, get_args(kind)[0]):
                raise ValueError(f'expected a list of {expected}, {problem}')
        return [get_args(kind)[0](item) for item in value]
    if problem := _mismatch(value, node, kind):
        raise ValueError(f'expected {expected}{" or null" if type(None) in options else ""}, {problem}')
    choices = key.field.metadata['choices']
    if choices and value not in choices and not any(map(value.startswith, _prefixes(choices))):
        raise ValueError(f'expected one of {", ".join(map(str, choices))}, got {_describe(value)}')
    return kind(value)


def _plain(node: yaml.Node) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f'not a plain YAML value: {_problem(error)}') from None


def _prefixes(choices: tuple[str, ...]) -> list[str]:
    """What choices such as timm/<name> begin with."""
    return [choice.partition('<')[0] for choice in choices if '<' in choice]


def _mismatch(value: Any, node: yaml.Node, kind: type) -> str:
    """Why a value is not of a type, '' if it is: whole numbers are numbers, true and false are not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number:
        fits = abs(value) <= 1e300  # false for nan and inf too, and float() cannot overflow
        return '' if fits else f'got {_describe(value)}, which is not a finite number of usual size'
    if type(value) is kind:
        return '' if value != '' else 'got an empty one'
    problem = f'got {_describe(value)}'
    if isinstance(value, str) and kind in (int, float):
        if getattr(node, 'style', None) in ("'", '"') and re.fullmatch(r'[-+.\deE]+', value):
            return f'{problem}; remove the quotes'
        if match := EXPONENT.fullmatch(value):
            sign, whole, fraction, exponent_sign, exponent = match.groups()
            plain = f'{sign}{whole or 0}.{fraction or 0}e{exponent_sign or "+"}{exponent}'
            decimal = f' or {_decimal(plain)}' if kind is float and _decimal(plain) else ''
            written = plain if kind is float else _decimal(plain) or 'all digits'
            return f'{problem}: without a point and a signed exponent it is text to YAML; write {written}{decimal}'
    if kind is str and isinstance(node, yaml.ScalarNode) and value is not None:
        return f"{problem}; put it in quotes: '{node.value}'"
    return problem


def _decimal(text: str) -> str:
    """A number in exponent form written out, e.g. 4.0e-3 -> 0.004; '' when that would be long."""
    value = float(text)
    if not math.isfinite(value) or (value and not 1e-6 <= abs(value) < 1e9):
        return ''
    return f'{value:.12f}'.rstrip('0').rstrip('.')


def _describe(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'"
    names = {dict: 'key: value lines', list: 'a list', type(None): 'nothing'}
    return names.get(type(value), str(value))


def _problem(error: Exception) -> str:
    """What a YAML parser complains about, in one line."""
    text = getattr(error, 'problem', None) or getattr(error, 'reason', None) or str(error)
    return ' '.join(str(text).split())
