"""Where a process of our own that is started with `-P` finds our modules, whatever the user's folder holds."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def module_path(*more: Path) -> str:
    """A value for `PYTHONPATH`: this code first, then where this process looks, then further folders."""
    return os.pathsep.join([str(_ROOT), *filter(None, sys.path), *map(str, more)])
