"""Where a run goes on, and that nothing is written over without a word."""

import fcntl
import json
import multiprocessing
import time

import pytest
import torch

from mmstp.cli.resuming import LAST, LOCK, newest_checkpoint, work_dir_locked
from mmstp.errors import CheckpointError, LaunchError


@pytest.fixture
def work_dir(trained, tmp_path):
    """A work dir with both checkpoints of a run."""
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:100_000])


STATES = {
    'last_checkpoint is missing': lambda folder: None,
    'it is empty': lambda folder: (folder / LAST).write_text(''),
    'it names a file that is gone': lambda folder: (folder / LAST).write_text('/no/epoch_9.pth'),
    'it names a folder': lambda folder: (
        (folder / 'epoch_3').mkdir(),
        (folder / LAST).write_text(str(folder / 'epoch_3')),
    ),
    'it names a torn file': lambda folder: (
        (folder / 'epoch_3.pth').write_bytes(b'PK\x03\x04 torn'),
        (folder / LAST).write_text(str(folder / 'epoch_3.pth')),
    ),
}


@pytest.mark.parametrize('state', STATES)
def test_the_newest_good_checkpoint_is_found(state, work_dir, warnings):
    STATES[state](work_dir)
    name, content = newest_checkpoint(work_dir)
    assert name == str(work_dir / 'epoch_2.pth')
    assert content['meta']['epoch'] == 2
    assert f'resuming from {name}, the newest good checkpoint (iteration 8)' in warnings()
    assert LAST in warnings()


def test_the_newest_is_the_one_written_last(work_dir, warnings):
    """Not the one that is farthest: a run may have begun anew beside those of another."""
    content = torch.load(work_dir / 'epoch_1.pth', weights_only=False)
    content['meta']['time'] = '99991231_235959'
    torch.save(content, work_dir / 'epoch_1.pth')
    assert newest_checkpoint(work_dir)[0] == str(work_dir / 'epoch_1.pth')


def test_torn_files_and_weights_that_are_not_finite_are_passed_over(work_dir, warnings):
    content = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    next(iter(content['state_dict'].values())).fill_(float('nan'))
    torch.save(content, work_dir / 'epoch_2.pth')
    (work_dir / LAST).write_text(str(work_dir / 'epoch_2.pth'))
    assert newest_checkpoint(work_dir)[0] == str(work_dir / 'epoch_1.pth')
    assert 'numbers that are not finite' in warnings()


def test_what_is_named_and_good_is_taken(work_dir):
    (work_dir / LAST).write_text(str(work_dir / 'epoch_1.pth'))
    assert newest_checkpoint(work_dir)[0] == str(work_dir / 'epoch_1.pth')


def test_nothing_good_is_an_error_that_names_every_file(call, tiny_config, work_dir):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        cut(work_dir / name)
    (work_dir / LAST).write_text(str(work_dir / 'epoch_2.pth'))
    before = (work_dir / 'epoch_1.pth').read_bytes()
    with pytest.raises(CheckpointError, match=r'(?s)epoch_2\.pth.*cut off.*epoch_1\.pth.*cut off'):
        call('train.py', tiny_config, '--work-dir', work_dir, '--resume')
    assert (work_dir / 'epoch_1.pth').read_bytes() == before


def test_a_first_checkpoint_that_was_not_written_is_the_beginning(tmp_path, warnings):
    """A full disk, or the end of a run that writes in the background."""
    (tmp_path / LAST).write_text(str(tmp_path / 'epoch_1.pth'))
    assert newest_checkpoint(tmp_path) is None
    assert 'which was not written' in warnings()


def test_an_empty_folder_is_the_beginning(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_resumed_from_the_newest_good_one(call, tiny_config, trained, work_dir):
    """Of which the tool makes the same checkpoint as the run that was not interrupted."""
    cut(work_dir / 'epoch_2.pth')
    call('train.py', tiny_config, '--work-dir', work_dir, '--resume')
    found, expected = (
        torch.load(folder / 'epoch_2.pth', weights_only=False) for folder in (work_dir, trained)
    )
    assert found['mmstp'] == expected['mmstp']
    assert all(
        torch.equal(tensor, found['state_dict'][name])
        for name, tensor in expected['state_dict'].items()
    )


def test_starting_anew_beside_checkpoints_is_said(call, tiny_config, work_dir, warnings):
    call('train.py', tiny_config, '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_epochs=1')
    assert 'holds 2 checkpoints of an earlier run' in warnings()


@pytest.mark.parametrize('name', ['text', 'json', 'empty', 'cut off', 'weights alone', 'none'])
def test_a_file_named_with_resume(call, tiny_config, trained, tmp_path, name):
    path = tmp_path / 'given.pth'
    match name:
        case 'text':
            path.write_text('hello')
        case 'json':
            path.write_text(json.dumps({'meta': {}}))
        case 'empty':
            path.write_bytes(b'')
        case 'cut off':
            path.write_bytes((trained / 'epoch_1.pth').read_bytes()[:5000])
        case 'weights alone':
            torch.save({'state_dict': {'a': torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint '.*given\.pth' (is not|cannot be) "):
        call('train.py', tiny_config, '--work-dir', tmp_path / 'run', '--resume', path)


# --- the run that it is of ------------------------------------------------------------------------

OTHERS = {
    'model.target=0.3': 'model.target = 0.4 in the checkpoint, 0.3 in the config',
    'model.metric=params': "model.metric = 'macs' in the checkpoint, 'params' in the config",
    'model.tolerance=0.2': 'model.tolerance = 0.1',
    'model.space.divisor=4': 'model.space.divisor = 8',
    'model.space.widths=[0.5]': r'model.space.widths = (0.3, 0.5, 0.7, 0.9, 1.0)',
    'model.space.depths=False': 'model.space.depths = True',
    'model.pool.size=9': 'model.pool.size = 5',
    'model.pool.alpha=0.5': 'model.pool.alpha = 0.3',
    'model.model.backbone.avg_down=True': 'model.model.backbone.avg_down = None in the checkpoint',
    'data_preprocessor.to_rgb=True': 'data_preprocessor.to_rgb = False in the checkpoint, True',
}


@pytest.mark.parametrize('option', OTHERS)
def test_another_search_is_named(call, tiny_config, trained, tmp_path, option):
    checkpoint = trained / 'epoch_1.pth'
    for args in (
        ('train.py', tiny_config, '--work-dir', tmp_path, '--resume', checkpoint),
        ('export.py', tiny_config, checkpoint, '--out', tmp_path),
        ('test.py', tiny_config, checkpoint, '--work-dir', tmp_path),
    ):
        with pytest.raises(CheckpointError) as error:
            call(*args, '--cfg-options', option)
        assert f'{str(checkpoint)!r} is of a run with another config' in str(error.value)
        assert OTHERS[option] in str(error.value)


def test_the_same_search_written_otherwise_is_the_same(call, tiny_config, trained, tmp_path):
    call('export.py', tiny_config, trained / 'epoch_1.pth', '--out', tmp_path, '--num-images', 16,
         '--cfg-options', 'model.space.widths=[0.9,0.3,0.7,0.5]', 'model.space.stem=False',
         'train_cfg.max_epochs=7', 'model.beta1=2')  # fmt: skip


# --- one run at a time ----------------------------------------------------------------------------


def test_two_runs_in_one_folder(call, tiny_config, tmp_path):
    message = r'another run \(process \d+ on .*work_dir'
    with work_dir_locked(tmp_path), pytest.raises(LaunchError, match=message):
        call('train.py', tiny_config, '--work-dir', tmp_path)
    with (tmp_path / LOCK).open() as file:  # free again
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_workers_that_outlive_a_run_do_not_keep_its_folder(tmp_path):
    """When it is killed they notice after seconds."""
    forked = multiprocessing.get_context('fork')
    begun = forked.Event()

    def work():
        begun.set()
        time.sleep(60)

    with work_dir_locked(tmp_path):
        worker = forked.Process(target=work)
        worker.start()
        assert begun.wait(30)
    with work_dir_locked(tmp_path):
        assert worker.is_alive()
    worker.kill()
    worker.join()


def test_other_ranks_of_a_run_do_not_lock(monkeypatch, tmp_path):
    monkeypatch.setenv('RANK', '1')
    with work_dir_locked(tmp_path), work_dir_locked(tmp_path):
        assert not (tmp_path / LOCK).exists()
