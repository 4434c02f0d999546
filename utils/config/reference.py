"""The reference of all config keys, docs/configuration.md, from the schemas.

    python -m utils.config.reference > docs/configuration.md
"""
from utils.config.keys import choices, default_text, schema_keys, type_name
from utils.config.schema import SCHEMAS, Env


def reference() -> str:
    """The Markdown page."""
    lines = ['# Configuration', '',
             'Every key, its values and its default (none given: required), made from `utils/config/schema.py`. '
             '`--set KEY=VALUE` overrides any of them; a run may continue with other values of those with a star.']
    for schema in (Env, *SCHEMAS):
        lines += ['', f'## {schema.__doc__}', '', '| key | values | default | |', '|---|---|---|---|']
        for name, field in schema_keys(schema).items():
            if schema is Env or name not in Env.model_fields:
                star = '' if field.frozen else '*'
                values = choices(field) or type_name(field.annotation).removesuffix(' | None')
                cells = f'`{name}`{star}', values, default_text(field).strip('"'), field.description or ''
                lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(reference(), end='')
