"""docs/configuration.md is what the schemas say."""
from pathlib import Path

from utils.config.reference import reference

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date():
    assert (ROOT / 'docs' / 'configuration.md').read_text() == reference(), \
        'run: python -m utils.config.reference > docs/configuration.md'


def test_rows_name_nested_keys_choices_defaults_and_what_a_run_may_continue_with():
    lines = reference().splitlines()
    for row in ('| `moco_kwargs.T` | float | 0.5 | softmax temperature |',
                '| `optimizer` | sgd, adam | sgd | optimiser |',
                '| `model_kwargs.upsample` | bool | true | upsample the outputs to the input size (else masks are made '
                'as small as the features) |',
                '| `output_dir`* | str | null | where results go; default: root_dir/<name of the config file> |',
                '| `root_dir`* | str |  | folder for results; relative paths start at the repository root |'):
        assert row in lines
