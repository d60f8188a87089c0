"""The command-line tools, run as a user does."""

import runpy
import shutil
import sys

import pytest
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from tests import tiny

TOOLS = tiny.ROOT / 'tools'


def run_tool(tool, *args, hooks=()):
    """Runs a tool in this process; its runner has some hooks more."""
    own = Runner.from_cfg

    def from_cfg(cfg):
        runner = own(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        return runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'from_cfg', from_cfg)
        patch.setattr(sys, 'argv', [tool, *map(str, args)])
        patch.syspath_prepend(str(TOOLS))
        runpy.run_path(str(TOOLS / tool), run_name='__main__')


@pytest.fixture(scope='session')
def call():
    """`run_tool`."""
    return run_tool


@pytest.fixture(scope='session')
def tiny_config(tmp_path_factory):
    """A config file as a user has it."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    cfg = tiny.config()
    cfg.custom_hooks[1]['num_images'] = 32
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def trained(call, tiny_config, tmp_path_factory):
    """The work dir of ``tools/train.py CONFIG --work-dir DIR``: two epochs, a file for each."""
    work_dir = tmp_path_factory.mktemp('trained')
    call('train.py', tiny_config, '--work-dir', work_dir)
    return work_dir


@pytest.fixture(scope='session')
def exported(call, tiny_config, trained, tmp_path_factory):
    """What ``tools/export.py`` makes of it."""
    folder = tmp_path_factory.mktemp('exported')
    call('export.py', tiny_config, trained / 'epoch_2.pth', '--out', folder, '--num-images', 32)
    return folder


@pytest.fixture
def export_copy(exported, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(exported, tmp_path / 'copy')


@pytest.fixture
def warnings(caplog):
    """What the tools warn of."""
    logger = MMLogger.get_instance('mmstp')
    logger.addHandler(caplog.handler)
    yield lambda: '\n'.join(r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
    logger.removeHandler(caplog.handler)
