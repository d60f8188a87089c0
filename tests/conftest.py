"""Supernets are shared by the whole session: making one takes seconds.

Tests leave them as they are; who changes weights or modes takes a copy or builds a network anew.
"""

import copy
import functools
import gc
import os
import random
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.dataset import base_dataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from xdist.scheduler import LoadFileScheduling
from yapf.yapflib import yapf_api

from mmstp import Supernet
from tests import networks

# The tensors are small: more threads gain nothing, and lose where processes share the cores. The
# variable is for the processes that tests start.
torch.set_num_threads(int(os.environ.setdefault('OMP_NUM_THREADS', '1')))


ROOT = Path(__file__).resolve().parents[1]
FORMAT = yapf_api.FormatCode


class FilesTogether(LoadFileScheduling):
    """One process has the tests of a file, and one has all files that share supernets."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return 'supernets' if shares_supernets(file) else file


@functools.cache
def shares_supernets(file):
    return 'supernet_of' in (ROOT / file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Instead of `loadgroup`, whose groups xdist 3.8 writes where pytest 9.2 does not read them."""
    return FilesTogether(config, log) if config.getoption('dist') == 'loadfile' else None


def keep_for_the_session():
    """Garbage goes; what is left is of the session, and not looked through for garbage again.

    Else a twentieth of the time is for looking through supernets that are kept.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def no_time_for_looks():
    """A third of a tiny training is MMEngine's formatting of the config, for every checkpoint and
    log, and its collecting of garbage, for every data set, among all objects of the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', lambda text, **options: (text, True))
        patch.setattr(base_dataset, 'gc', Mock())
        keep_for_the_session()
        yield


@pytest.fixture(scope='session', autouse=True)
def runs_named_by_folder():
    """MMEngine names a run by the second it starts in; of two in one second, the later would log
    into the folder of the earlier."""
    init = Runner.__init__

    @functools.wraps(init)
    def named(self, *args, **options):
        options['experiment_name'] = options.get('experiment_name') or options['work_dir']
        init(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, '__init__', named)
        yield


@pytest.fixture
def formatted(monkeypatch):
    """Configs look as people get them."""
    monkeypatch.setattr(yapf_api, 'FormatCode', FORMAT)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, in whatever order they run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def scope_as_it_was():
    """What a test runs in mmdet's scope (`init_detector` stays there) is not of the next one."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = before


@pytest.fixture(scope='session')
def scope_at_first():
    """The scopes that there are before any test."""
    return DefaultScope._instance_dict.copy()


@pytest.fixture(scope='module', autouse=True)
def scope_of_no_other_file(scope_at_first):
    """What fixtures of a file run in mmdet's scope is not of the next file."""
    yield
    DefaultScope._instance_dict = scope_at_first.copy()
    keep_for_the_session()


@functools.cache
def _made(name: str) -> tuple[nn.Module, Supernet]:
    model = networks.build(name)
    made = copy.deepcopy(model), Supernet(model, networks.images(name, batch=1))
    keep_for_the_session()
    return made


@pytest.fixture(scope='session')
def supernet_of():
    """The supernet of a network by name, with default options, in eval mode."""
    return lambda name: _made(name)[1]


@pytest.fixture(scope='session')
def dense_of():
    """A static copy of the network that `supernet_of` gives, made before it became dynamic."""
    return lambda name: copy.deepcopy(_made(name)[0])
