"""The command-line tools, run as a user does."""

import runpy
import sys

import pytest

from tests import tiny

TOOLS = tiny.ROOT / 'tools'


@pytest.fixture(scope='session')
def call():
    """Runs a tool in this process."""

    def run(tool, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', [tool, *map(str, args)])
            patch.syspath_prepend(str(TOOLS))
            runpy.run_path(str(TOOLS / tool), run_name='__main__')

    return run
