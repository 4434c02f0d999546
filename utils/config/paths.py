"""Paths as users write them."""
from __future__ import annotations

import os
import re
from pathlib import Path

from utils.run.errors import UserError

VARIABLE = re.compile(r'\$\{?[A-Za-z_]\w*')


def user_path(text: str) -> Path:
    """The path that a text names: the text itself if that exists, else with ~ and environment variables expanded.

    Raises:
        UserError: it is empty, or names a variable or a home that is not there: no folder is called $HOME.
    """
    if not text.strip():
        raise UserError('a path is empty; give a file or folder.')
    if Path(text).exists():
        return Path(text)
    expanded = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 - pathlib's raises for an unknown user
    if unknown := VARIABLE.search(expanded):
        raise UserError(f'path {text} names the environment variable {unknown[0]}, which is not set; set it or write '
                        'the path out.')
    if expanded.startswith('~'):
        raise UserError(f'path {text} names a home folder that is not there; write the path out.')
    return Path(expanded)
