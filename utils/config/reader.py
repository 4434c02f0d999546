"""YAML files and overrides, read against a schema: every mistake is collected, with its file and line."""
import json
import re
from collections.abc import Callable, Collection
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


class Loader(yaml.SafeLoader):
    """YAML 1.1, in which 4e-3 is a number too."""


Loader.add_implicit_resolver(FLOAT, EXPONENT, list('-+.0123456789'))


class Reader:
    """What overrides and files give to the keys of a schema; read them by falling rank, for the first value counts.

    Attributes:
        values: dotted key -> value.
        places: dotted key -> where it was given, e.g. 'configs/env.yml, line 3', or the file that lacks it.
        errors: one sentence for each mistake.
        readable: all files were YAML with keys, so that a key is missing because the user left it out.
        translated: key of the published code -> the key here that took its value, None for one without effect.
    """

    def __init__(self, schema: type[Section]) -> None:
        self.schema, self.keys, self.rules = schema, schema_keys(schema), RULES.get(schema, {})
        self.sections = {name.rpartition('.')[0] for name in (*self.keys, *self.rules)} - {''}
        self.values: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.errors: list[str] = []
        self.readable = True
        self.translated: dict[str, str | None] = {}
        self._place: Callable[[yaml.Node], str]  # of the file or override that is read, as the two that follow
        self._known: Collection[str] = ()
        self._seen: dict[str, str] = {}

    def read_file(self, path: Path, known: Collection[str] | None = None, above: tuple[Path, ...] = ()) -> None:
        """Read a file that may hold the known keys (default: all), and below it the one that it names as ``base``."""
        where, known = shown(path), (*self.keys, *self.rules) if known is None else known
        self._place = lambda node: f'{where}, line {node.start_mark.line + 1}'
        self._known, self._seen = known, {}
        self.places = dict.fromkeys(known, where) | self.places
        try:
            root = yaml.compose(path.read_text(encoding='utf-8-sig'), Loader)
        except PermissionError as error:
            raise cannot_read(where) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, 'problem_mark', None)
            self._unreadable(f'{where}{f", line {mark.line + 1}" if mark else ""}: not valid YAML: {_problem(error)}')
            return
        if not isinstance(root, yaml.MappingNode):
            self._unreadable(f'{where}: the file is empty; expected lines of the form key: value' if root is None else
                             f'{self._place(root)}: expected lines of the form key: value at the top level')
            return
        base = next((pair for pair in root.value if pair[0].value == 'base'), None)
        if base:
            root.value.remove(base)
        self._read(root, '')
        if base and not isinstance(base[1], yaml.ScalarNode):
            self._unreadable(f'{self._place(base[0])}: base must be the path of one file')
        elif base:
            self._read_base(path, self._place(base[0]), base[1].value, known, above)

    def _read_base(self, path: Path, where: str, text: str, known: Collection[str], above: tuple[Path, ...]) -> None:
        above = (*above, path.resolve())
        try:
            base = path.parent / text if (path.parent / text).is_file() else find_file(text)
        except UserError as error:
            self._unreadable(f'{where}: base: {error}')
            return
        if base.resolve() in above:
            self._unreadable(f'{where}: base leads back to {shown(base.resolve())}; take one base out')
        else:
            self.read_file(base, known, above)

    def _unreadable(self, sentence: str) -> None:
        self.errors.append(sentence)
        self.readable = False

    def read_override(self, text: str) -> None:
        """Read one 'a.b=value' of the command line; the value is YAML, or of a key of text that text.

        Such a text may hold # and quotes; the word null and a whole value in quotes are YAML's.
        """
        name, equals, value = text.partition('=')
        name, where = name.strip(), f'--set {text}'
        self._place = lambda node: where
        self._known, self._seen = (*self.keys, *self.rules), {}
        if not equals:
            self.errors.append(f'{where}: expected KEY=VALUE')
            return
        is_text = name in self.keys and type_name(self.keys[name].annotation) in ('str', 'str | None')
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in '"\''
        mark = yaml.Mark(where, 0, 0, 0, '', 0)
        try:
            if is_text and value not in ('', 'null') and not quoted:
                node: yaml.Node = yaml.ScalarNode(STR, value, mark)
            else:
                node = yaml.compose(value, Loader) or yaml.ScalarNode(NULL, '', mark)
        except yaml.YAMLError as error:
            self.errors.append(f'{where}: the value is not valid YAML: {_problem(error)}')
            return
        self._give(name, node, where)

    def _read(self, mapping: yaml.MappingNode, prefix: str) -> None:
        for key, node in mapping.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else '?'
            if '.' in name:
                self._unknown(prefix + name, self._place(key))
            else:
                self._give(prefix + name, node, self._place(key))

    def _give(self, name: str, node: yaml.Node, where: str) -> None:
        rule = self.rules.get(name, Rule(name))
        for given in dict.fromkeys((name, rule.key or name)):  # a published key and the one here that takes its value
            if given in self._seen:
                self.errors.append(f'{where}: {given} is given twice, first in {self._seen[given]}; keep one')
                return
            self._seen[given] = where
        if name in self.sections:
            if isinstance(node, yaml.MappingNode):
                self._read(node, f'{name}.')
            elif node.tag != NULL:  # a section with every line commented out is empty, not wrong
                self.errors.append(f'{where}: {name} holds the keys {self._keys_below(f"{name}.")}; '
                                   'expected key: value lines below it')
            return
        if name not in self._known:
            self._unknown(name, where)
            return
        try:
            value = yaml.constructor.SafeConstructor().construct_document(node)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            self.errors.append(f'{where}: {name}: not a plain YAML value: {_problem(error)}')
            return
        if rule.accepted and value not in rule.accepted:
            self.errors.append(f'{where}: {name}, a key of the published code, can only be '
                               f'{describe(rule.accepted[0])} here, got {describe(value)}; {rule.hint}')
            return
        if name in self.rules:
            self.translated[name] = rule.key
        if rule.key is None or rule.key in self.values:
            return
        value = rule.false if rule.false and not value else value
        if isinstance(value, list) and type_name(self.keys[rule.key].annotation) == 'list[str]':
            # names: 'no' and 2012 are what they say, not false and a number
            value = [n.value if isinstance(n, yaml.ScalarNode) else v for n, v in zip(node.value, value, strict=True)]
        self.values[rule.key], self.places[rule.key] = value, where

    def _unknown(self, name: str, where: str) -> None:
        section, _, last = name.rpartition('.')
        known = [known for known in self._known if known in self.keys]
        if name in known:
            hint = f'write {last} in a line of its own, indented below {section}:'
        else:
            siblings = [other for other in known if other.rpartition('.')[0] == section]
            near = nearest(last, siblings) or nearest(last, known, 0.85)
            here = self._keys_below(f'{section}.') if section in self.sections else self._keys_below('')
            hint = f"did you mean '{near}'?" if near else f'the keys here are {here}'
        self.errors.append(f"{where}: unknown key '{name}'; {hint}")

    def _keys_below(self, prefix: str) -> str:
        names = [name.removeprefix(prefix) for name in self._known if name.startswith(prefix)]
        return name_some(list(dict.fromkeys(name.partition('.')[0] for name in names)), 40)

    def check(self) -> dict[str, Any]:
        """The right values and the defaults of absent keys, by dotted name; what is wrong or missing is an error."""
        try:
            return flat(self.schema.model_validate(nest(self.values)).model_dump())
        except ValidationError as error:
            wrong: dict[str, list[str]] = {}
            for item in error.errors():
                name = next(name for name in accumulate(map(str, item['loc']), '{}.{}'.format) if name in self.keys)
                wrong.setdefault(name, [])
                if item['type'] != 'missing':
                    wrong[name].append(item['msg'].partition('should ')[2].replace('a valid boolean', 'true or false'))
            for name, reasons in wrong.items():
                if name in self.values:
                    self.errors.append(f'{self.places[name]}: {name} must {" or ".join(dict.fromkeys(reasons))}, got '
                                       f'{self._got(name)}')
                elif self.readable:
                    self.errors.append(f'{self.places[name]}: the key {name} is missing '
                                       f'({self.keys[name].description})')
            defaults = {name: field.get_default(call_default_factory=True) for name, field in self.keys.items()}
            return {name: value for name, value in (defaults | self.values).items() if name not in wrong}

    def _got(self, name: str) -> str:
        value, kind = self.values[name], type_name(self.keys[name].annotation)
        if isinstance(value, str) and NUMBER.fullmatch(value) and 'str' not in kind:
            return f'{describe(value)}; remove the quotes'
        if 'str' in kind and not isinstance(value, (str, list, dict, type(None))):
            return f'{describe(value)}, as YAML reads it; put it in quotes'
        if kind.startswith('list') and not isinstance(value, (list, dict, type(None))):
            return f'{describe(value)}; write [{value}]'
        return describe(value)


def describe(value: Any) -> str:
    """A value for messages: true, 0.1, [1, 2], the text 'a', nothing, key: value lines."""
    if isinstance(value, str):
        return f"the text '{value}'"
    if value is None:
        return 'nothing'
    try:
        return 'key: value lines' if isinstance(value, dict) else json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:
        return 'a list that holds itself'


def _problem(error: Exception) -> str:
    """What a YAML parser complains about, in one line."""
    text = getattr(error, 'problem', None) or getattr(error, 'reason', None) or str(error)
    return ' '.join(str(text).split())
