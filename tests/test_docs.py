"""Every command and every name in README and docs: scripts, flags, config files and keys exist."""
import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from utils.config.cli import ArgumentParser, ConfigParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = ['README.md', *(f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))]
TRIED_ELSEWHERE = ('experiments/voc_animals.py', 'experiments/ablations.py', 'benchmarks/masks.py')


def commands(page: str) -> list[list[str]]:
    """The words of each indented python command, its script as a path from the repository root."""
    found, folder = [], ''
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith('    cd '):
            folder = line.split()[1].removeprefix('../') + '/'
        elif line.startswith('    python '):
            _, script, *words = shlex.split(line)
            found.append([script if '/' in script else folder + script, *words])
    return found


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {words[0] for _, words in COMMANDS} > {'pretrain/main.py', 'segmentation/eval.py', 'saliency/predict.py'}


@pytest.mark.parametrize(('page', 'words'), COMMANDS, ids=[f'{page}-{words[0]}' for page, words in COMMANDS])
def test_commands_parse(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = words
    assert (ROOT / script).is_file()
    if script in TRIED_ELSEWHERE:
        flags = {word for word in arguments if word.startswith('--')}
        source = ''.join(path.read_text() for path in (ROOT / script).parent.glob('*.py'))
        assert all(f"'{flag}'" in source for flag in flags)
        return
    module = importlib.import_module(script.removesuffix('.py').replace('/', '.'))
    parse, load = ArgumentParser.parse_args, ConfigParser.load

    def parsed(self: ArgumentParser, argv: list[str]) -> argparse.Namespace:
        args = parse(self, argv)
        if not isinstance(self, ConfigParser):
            raise KeyboardInterrupt
        return args

    def loaded(self: ConfigParser, args: argparse.Namespace, **more: Path | None) -> None:
        load(self, args, f'db_root={ROOT}', **more)
        raise KeyboardInterrupt

    monkeypatch.setattr('experiments.voc_animals.find_file', Path)  # the pages name files that their readers have
    monkeypatch.setattr(ArgumentParser, 'parse_args', parsed)
    monkeypatch.setattr(ConfigParser, 'load', loaded)
    with pytest.raises(KeyboardInterrupt):
        module.main(arguments)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r'\]\(([^)#]+)', (ROOT / page).read_text()):
        assert link.startswith('https://') or (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize('page', PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    rooms = 'data|models|pretrain|segmentation|saliency|utils|experiments|benchmarks|tests|docs|configs'
    named = re.findall(rf'`((?:{rooms})/[\w/]+\.(?:py|yml|md|sh))`', (ROOT / page).read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_table_of_the_method_names_what_is_there() -> None:
    section = (ROOT / 'README.md').read_text().split('## Where to find the method\n')[1].split('\n## ')[0]
    rows = [line.split('|')[2:4] for line in section.splitlines() if line.startswith('| ') and '.py`' in line]
    assert len(rows) >= 8
    for files, names in rows:
        sources = [(ROOT / file).read_text() for file in re.findall(r'`([^`]+)`', files)]
        for name in re.findall(r'`([^`]+)`', names):
            *of, last = name.split('.')
            assert any(all(re.search(rf'^(class| *def) {part}\b', source, re.MULTILINE) for part in (*of, last))
                       for source in sources), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 120
