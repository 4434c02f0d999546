"""The reference of all config keys, docs/configuration.md, from the schema.

    python -m utils.config.reference > docs/configuration.md
"""
from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from utils.config import schema

PAGES = (schema.Env, schema.Pretrain, schema.LinearFinetune, schema.Kmeans, schema.Retrieval, schema.TrainSaliency)


def rows(of: type, prefix: str = '') -> list[tuple[str, str, str, str]]:
    """(key, type, default, help) of every key of a dataclass; nested keys with dots. An empty default: required."""
    types = get_type_hints(of)
    out = []
    for field in fields(of):
        if is_dataclass(types[field.name]):
            out += rows(types[field.name], f'{prefix}{field.name}.')
        else:
            out.append((prefix + field.name, _type(field, types[field.name]), _default(field), field.metadata['help']))
    return out


def _type(field: Field, hint: Any) -> str:
    if field.metadata['choices']:
        return ', '.join(map(str, field.metadata['choices']))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace(' | None', '')


def _default(field: Field) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return ''
    return value if isinstance(value, str) else json.dumps(value)


def reference() -> str:
    """The Markdown page."""
    lines = ['# Configuration', '',
             'Every key, its values and its default (none given: required), made from `utils/config/schema.py`. '
             '`--set KEY=VALUE` overrides any of them.']
    for page in PAGES:
        lines += ['', f'## {(page.__doc__ or "").strip() if page is not schema.Env else "configs/env.yml"}', '',
                  '| key | values | default | |', '|---|---|---|---|']
        lines += ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in (f'`{key}`', *rest)) + ' |'
                  for key, *rest in rows(page)]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(reference(), end='')
