"""The wheel that is built from this tree. `.ci/wheel_smoke` installs one and uses it."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
import yaml
from mmengine.config import Config
from modelindex import load
from packaging.requirements import Requirement

import mmstp
from tests.tiny import ROOT

CARRIED = ('configs/', 'tools/', 'model-index.yml')  # into mmstp/.mim


def tracked():
    """What a clone holds, with what is about to be added."""
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return sorted({name for name in listed.split('\0') if name and (ROOT / name).is_file()})


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    if shutil.which('git') is None or not (ROOT / '.git').exists():
        pytest.skip('not a clone')
    folder = tmp_path_factory.mktemp('wheel')
    for name in tracked():
        target = folder / 'source' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    build = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    done = subprocess.run(
        [*build, '--wheel-dir', str(folder), str(folder / 'source')],
        env={**os.environ, 'PIP_NO_INDEX': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob('*.whl')
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / 'unpacked')
    return folder / 'unpacked'


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


def test_it_holds_the_package_and_what_mim_looks_for(wheel):
    package = {
        name for name in tracked() if name.startswith('mmstp/') and name.endswith(('.py', '.typed'))
    }
    carried = {f'mmstp/.mim/{name}' for name in tracked() if name.startswith(CARRIED)}
    assert 'mmstp/py.typed' in package
    assert {'mmstp/.mim/tools/train.py', 'mmstp/.mim/configs/stp/r50_15pct.py'} <= carried
    inside = {name for name in files(wheel) if '.dist-info/' not in name}
    assert inside == package | carried


def test_its_metadata(wheel):
    (path,) = wheel.glob('*.dist-info/METADATA')
    metadata = Parser().parsestr(path.read_text())
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert metadata['Version'] == mmstp.__version__ == citation['version']
    urls = dict(line.split(', ') for line in metadata.get_all('Project-URL'))
    assert {'Homepage', 'Documentation', 'Changelog', 'Issues', 'Paper'} <= set(urls)
    assert all(url.startswith('https://') for url in urls.values())
    needed = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
    always = {one.name: one.specifier for one in needed if one.marker is None}
    assert set(always) == {'numpy', 'torch'}
    tried = (ROOT / 'requirements/torch.txt').read_text().partition('torch==')[2].split()[0]
    assert tried in always['torch']
    # with these .ci/wheel_smoke was tried; the first release that was not is left out
    assert all(version in always['torch'] for version in ('2.6.0', '2.13.0', '2.14.1'))
    assert '2.15.0' not in always['torch']


def test_a_config_is_found_by_its_name(wheel):
    """`mim train mmstp NAME` searches the whole package and refuses a name that is there twice."""
    names = Counter(PurePosixPath(name).name for name in files(wheel / 'mmstp'))
    configs = [
        path.name
        for path in (wheel / 'mmstp/.mim/configs').rglob('*.py')
        if '_base_' not in path.parts
    ]
    assert not {name for name in configs if names[name] > 1}


def test_the_model_index_says_what_the_configs_say(wheel):
    mim = wheel / 'mmstp/.mim'
    index = load(str(mim / 'model-index.yml'))
    index.check(silent=True)
    assert not index.check_errors
    configs = {path.relative_to(mim).as_posix() for path in (mim / 'configs/stp').glob('*.py')}
    assert sorted(model.config for model in index.models) == sorted(configs)
    for model in index.models:
        config, said = Config.fromfile(mim / model.config), model.metadata.data
        assert model.name == Path(model.config).stem
        assert config.model.metric == 'macs'
        assert said['MACs Budget'] == config.model.target
        assert said['Epochs'] == config.train_cfg.max_epochs
        assert said['Batch Size'] == config.auto_scale_lr.base_batch_size
        assert not any(result.metrics for result in model.results)  # nothing was trained for it
        assert model.weights is None
