"""docs/configuration.md is what the schema says."""
from pathlib import Path

from utils.config.reference import reference, rows
from utils.config.schema import Env, Pretrain

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date():
    assert (ROOT / 'docs' / 'configuration.md').read_text() == reference(), \
        'run: python -m utils.config.reference > docs/configuration.md'


def test_rows_name_nested_keys_choices_and_defaults():
    found = {key: (values, default) for key, values, default, _ in rows(Pretrain)}
    assert found['moco_kwargs.T'] == ('float', '0.5')
    assert found['precision'] == ('fp32, bf16, fp16', 'fp32')
    assert found['augmentation_kwargs.scale'] == ('list[float]', '[0.2, 1.0]')
    assert found['output_dir'] == ('str', 'null')
    assert rows(Env)[0][:3] == ('root_dir', 'str', '')
