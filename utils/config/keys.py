"""Keys of YAML files, declared as pydantic fields: what a field says of itself, and which key a wrong name is like."""
import json
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

REQUIRED: Any = ...
Text = Annotated[str, Field(min_length=1)]

if TYPE_CHECKING:  # a loaded config is an EasyDict: a dict with attributes
    class Section(dict[str, Any]):
        model_fields: ClassVar[dict[str, FieldInfo]]
        model_validate: ClassVar[Callable[[Any], BaseModel]]
        _schema: type['Section']
else:
    class Section(BaseModel):
        """Keys at one level of a file."""
        model_config = ConfigDict(strict=True, extra='forbid', allow_inf_nan=False, defer_build=True)


def key(default: Any, help: str, same_results: bool = False, **limits: Any) -> Any:
    """Declare one key: its default (REQUIRED, or a Section: that of its keys), one line of help, and pydantic's limits.

    ``same_results``: another value changes results by rounding at most, and a run may continue with it. Not so
    precision, tf32 and val_tf32, which round far more, and compile, which draws other numbers for dropout.
    """
    limits |= {'description': help, 'frozen': not same_results}
    return Field(default_factory=default, **limits) if isinstance(default, type) else Field(default, **limits)


def must(fits: Callable[[Any], bool], be: str) -> AfterValidator:
    """A check beyond type and range, for Annotated, and what a value that fails it must be."""
    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(f'should be {be}')
        return value
    return AfterValidator(check)


def schema_keys(schema: type[Section], prefix: str = '') -> dict[str, FieldInfo]:
    """All keys of a schema that hold a value, by dotted name, e.g. ``optimizer_kwargs.lr``."""
    keys: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        section: Any = field.default_factory
        keys |= schema_keys(section, f'{prefix}{name}.') if isinstance(section, type) else {prefix + name: field}
    return keys


def type_name(hint: Any) -> str:
    """'int', 'list[float]' or 'str | None'; of a Literal the type of its values."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, Literal):
        return type_name(args[0] if origin is Annotated else type(args[0]))
    if origin is list:
        return f'list[{type_name(args[0])}]'
    return ' | '.join(map(type_name, args)) if args else 'None' if hint is type(None) else hint.__name__


def choices(field: FieldInfo) -> str:
    """'sgd, adam', '' for a key that takes other values too."""
    return ', '.join(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else ''


def default_text(field: FieldInfo) -> str:
    """The default in JSON, '' of a key that must be given."""
    return '' if field.is_required() else re.sub(r'(\.\d{4})\d+', r'\1', json.dumps(field.default))


def nearest(name: str, names: Sequence[str], likeness: float = 0.6) -> str | None:
    """The dotted name or --option that a wrong one is most like, whole or by its last part (the first of several)."""
    def plain(text: str) -> str:
        return text.lower().lstrip('-').replace('-', '_')

    last = {plain(known.rpartition('.')[2]): known for known in reversed(names)}
    known = last | {plain(known): known for known in reversed(names)}
    found = get_close_matches(plain(name), known, 1, likeness)
    return known[found[0]] if found else None


def flat(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        leaves |= flat(value, f'{prefix}{name}.') if isinstance(value, Mapping) else {prefix + name: value}
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}; the keys are two levels deep at most."""
    nested: dict[str, Any] = {}
    for name, value in leaves.items():
        section, _, last = name.rpartition('.')
        (nested.setdefault(section, {}) if section else nested)[last] = value
    return nested
