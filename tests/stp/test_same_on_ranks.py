"""All ranks hold the same pool; where one does not, all of them say so."""

import copy
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmstp import Architecture, ArchitecturePool
from mmstp.stp import same_on_ranks, step
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


class Score(Hook):
    """Scores a candidate again behind an iteration."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 0:
            stp = stp_of(runner)
            stp.pool.update(stp.pool.best, 0.1)


class Draw(Hook):
    """Draws once more, behind the same."""

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 0:
            stp_of(runner).pool.sample()


def _rank(rank, port, out):
    with one_of_two(rank, port):
        cfg = tiny.config(Path(out) / 'run')
        cfg.custom_hooks[0].interval = 3
        distribute(cfg)
        said = []
        for own, hook in (({}, Score()), ({}, Draw()), ({'seed': rank}, Hook())):
            other = copy.deepcopy(cfg)
            other.model.pool.update(own)
            runner = Runner.from_cfg(other)
            if rank:
                runner.register_hook(hook)
            try:
                runner.train()
            except RuntimeError as error:
                said.append([str(error), runner.iter])
        torch.save(said, f'{out}/{rank}.pth')


@pytest.mark.slow
def test_a_rank_with_another_pool_ends_all(tmp_path):
    """Behind the first drop (iteration 3), in the step of another draw (2), before the first."""
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        scores, draw, seed = torch.load(tmp_path / f'{rank}.pth')
        assert 'rank 1 in scores, visits (compared' in scores[0]
        assert 'rank 1 in draws, queue' in draw[0]
        assert 'rank 1 in architectures' in seed[0]
        assert [scores[1], draw[1], seed[1]] == [2, 1, 0]  # iterations that were done


@pytest.mark.parametrize('ranks', [2, 7, 256])
def test_another_draw_of_one_of_many_ranks_is_seen_and_nothing_else(ranks, monkeypatch):
    """In float32, as losses are; of draws whose hashes differ."""
    sent, refused, stp = [], [], Mock()
    stp.pools.fields.return_value = {}
    monkeypatch.setattr(step, 'refuse_differing', lambda fields: refused.append(fields['draws']))

    def read(draw, reduce):
        monkeypatch.setattr(step, 'all_reduce', lambda numbers, op: reduce(numbers))
        return step._read({'loss': torch.tensor(0.1)}, stp, [draw])

    for draw in range(30):
        read(draw, lambda numbers: sent.append(numbers.clone()))
    assert not refused
    for draw, one in enumerate(sent):
        for other in sent:
            mean = torch.stack([one] * (ranks - 1) + [other]).sum(0) / ranks
            assert read(draw, lambda numbers, mean=mean: numbers.copy_(mean)).keys() == {'loss'}
            assert bool(refused) is not torch.equal(one, other)
            refused.clear()
