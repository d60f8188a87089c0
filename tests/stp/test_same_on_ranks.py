"""All ranks hold the same pool; where one does not, all of them say so."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmstp import Architecture, ArchitecturePool
from mmstp.stp import same_on_ranks
from mmstp.stp.of_runner import stp_of
from mmstp.stp.pool import ShrinkSchedule
from tests import tiny
from tests.runs import distribute, free_port, one_of_two

MEMBERS = [Architecture((depth,), (1.0,)) for depth in (1, 2, 3)]


def pool(seed=0):
    found = ArchitecturePool(MEMBERS, seed=seed)
    found.update(found.sample(), 0.5)
    return found


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda pool: None, None),
        (lambda pool: pool.update(MEMBERS[0], 0.1), 'scores, visits'),
        (lambda pool: pool.sample(), 'queue'),
        (lambda pool: pool.rng.random(), 'random_state'),
        (lambda pool: pool.shrink(1), 'architectures, scores, visits'),
    ],
)
def test_what_differs_is_named(change, named, monkeypatch):
    """Three ranks, of which the last has changed."""
    ranks = [pool(), pool(), pool()]
    change(ranks[2])
    sent = []
    monkeypatch.setattr(same_on_ranks, 'all_gather', lambda own: sent.append(own) or [own])
    for rank in ranks:
        same_on_ranks.refuse_differing(rank.state_dict())
    monkeypatch.setattr(same_on_ranks, 'all_gather', lambda own: sent)
    if named is None:
        same_on_ranks.refuse_differing(ranks[0].state_dict())
        return
    with pytest.raises(RuntimeError, match=rf'same search: rank 2 in {named}.* \(compared'):
        same_on_ranks.refuse_differing(ranks[0].state_dict())


def test_ranks_compare_wherever_one_of_them_might_drop():
    schedule = ShrinkSchedule(size=9, interval=3, end=8)
    due = [iteration for iteration in range(1, 20) if schedule.due(iteration)]
    assert due == [3, 6, 8]
    left = 9
    for iteration in range(1, 20):
        drops = schedule.drops(iteration, left)
        assert not drops or iteration in due
        left -= drops


class Disturb(Hook):
    """Scores a candidate again behind an iteration."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 0:
            stp = stp_of(runner)
            stp.pool.update(stp.pool.best, 0.1)


def _rank(rank, port, out):
    with one_of_two(rank, port):
        cfg = tiny.config(Path(out) / 'run')
        distribute(cfg)
        said = []
        for own in ({}, {'seed': rank}):
            other = copy.deepcopy(cfg)
            other.model.pool.update(own)
            runner = Runner.from_cfg(other)
            if rank and not own:
                runner.register_hook(Disturb())
            try:
                runner.train()
            except RuntimeError as error:
                said.append(str(error))
        torch.save(said, f'{out}/{rank}.pth')


@pytest.mark.slow
def test_a_rank_with_another_pool_ends_all(tmp_path):
    """Behind the first drop (iteration 2), and before the first step."""
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        scores, seed = torch.load(tmp_path / f'{rank}.pth')
        assert 'rank 1 in scores, visits (compared' in scores
        assert 'rank 1 in architectures' in seed
