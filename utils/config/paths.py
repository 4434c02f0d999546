"""Paths as users write them, and where files are looked up."""
import os
import re
from pathlib import Path

from utils.run.errors import MissingFileError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r'\$\{?[A-Za-z_]\w*')


def user_path(text: str) -> Path:
    """The path that a text names: the text itself if that exists, else with ~ and environment variables expanded.

    Raises UserError for an empty one, and for a variable or a home that is not there: no folder is called $HOME.
    """
    if not text.strip():
        raise UserError('a path is empty; give a file or folder.')
    if Path(text).exists():
        return Path(text)
    expanded = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 - pathlib's raises for an unknown user
    if unknown := VARIABLE.search(expanded):
        raise UserError(f'path {text} names the environment variable {unknown[0]}, which is not set; set it.')
    if expanded.startswith('~'):
        raise UserError(f'path {text} names a home folder that is not there; write the path out.')
    return Path(expanded)


def find_file(path: str | Path, *folders: str | Path) -> Path:
    """The absolute path of a file, looked up from the working directory, then folders, then the repository root.

    Raises MissingFileError, which lists them.
    """
    places = dict.fromkeys((folder / user_path(str(path))).absolute()
                           for folder in (Path.cwd(), *map(Path, folders), REPOSITORY))
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise MissingFileError(f'no file {path}: looked for {" and ".join(map(str, places))}; correct the path '
                           'or make the file first.')


def shown(path: Path) -> str:
    """A path as messages show it: relative to the working directory when below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
