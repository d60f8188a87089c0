"""The pool against Algorithm 1 played with plain lists, and the budget against brute force."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from mmstp import Architecture, ArchitecturePool
from mmstp.errors import BudgetError
from mmstp.search.budget import Budget, feasible_rows
from mmstp.search.cost import METRICS
from mmstp.stp.pool import SAMPLINGS, ShrinkSchedule


def candidates(count):
    return [Architecture((i + 1,), (1.0,)) for i in range(count)]


def scored(losses, **options):
    """A pool in which each candidate was visited once, or not at all where the loss is None."""
    members = candidates(len(losses))
    made = ArchitecturePool(members, **options)
    for member, loss in zip(members, losses, strict=True):
        if loss is not None:
            made.update(member, loss)
    return made, members


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('alpha', [0.1, 0.3, 1.0])
def test_score_is_the_moving_average(alpha):
    """Eq. 8 written as one weighted sum over all losses."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    (member,) = candidates(1)
    made = ArchitecturePool([member], alpha=alpha)
    assert made.scores == {member: None}
    for loss in losses:
        made.update(member, loss)
    weights = [(1 - alpha) ** 4] + [alpha * (1 - alpha) ** (4 - i) for i in range(1, 5)]
    assert sum(weights) == pytest.approx(1)
    assert made.scores[member] == pytest.approx(np.dot(weights, losses))
    assert made.visits == {member: 5}


def test_best_has_the_lowest_score():
    made, members = scored([0.5, 0.2, None, 0.9])
    assert made.best == members[1]
    assert ArchitecturePool(members).best == members[0]


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_diverged_training_is_an_error(loss):
    (member,) = candidates(1)
    made = ArchitecturePool([member])
    with pytest.raises(ValueError, match=r'loss of \(\(1,\), \(1.0,\)\) is (nan|inf): training di'):
        made.update(member, loss)
    assert made.scores == {member: None}


def test_update_of_a_stranger_is_an_error():
    made = ArchitecturePool(candidates(2))
    with pytest.raises(KeyError):
        made.update(Architecture((7,), (1.0,)), 1.0)
    assert len(made) == len(made.visits) == 2


def test_views_cannot_change_the_pool():
    made, members = scored([1.0, 2.0])
    made.scores.clear()
    made.visits[members[0]] = 100
    assert made.scores == {members[0]: 1.0, members[1]: 2.0}
    assert set(made.visits.values()) == {1}


# --- shrinking ------------------------------------------------------------------------------------


@pytest.mark.parametrize('count', range(8))
def test_shrink_drops_the_highest_scores(count):
    losses = [0.3, 0.9, 0.1, 0.7, 0.5, 0.2]
    made, members = scored(losses)
    worst = sorted(members, key=lambda m: losses[members.index(m)], reverse=True)
    expected = worst[: min(count, 5)]
    assert made.shrink(count) == expected
    assert set(made.scores) == set(members) - set(expected)
    assert all(member not in made for member in expected)


def test_unvisited_are_dropped_last():
    made, members = scored([0.3, None, 0.1, None])
    assert made.shrink(2) == [members[0], members[2]]
    (dropped,) = made.shrink(1)
    assert dropped in (members[1], members[3])
    assert len(made) == 1


def test_first_of_equal_scores_stays():
    made, members = scored([0.5, 0.5, 0.5])
    assert made.shrink(1) == [members[2]]
    assert made.best == members[0]


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_dropped_are_never_drawn_again(sampling):
    made = ArchitecturePool(candidates(10), sampling=sampling)
    for step in range(200):
        drawn = made.sample()
        assert drawn in made
        made.update(drawn, drawn.depths[0])
        if step % 20 == 19:
            made.shrink(1)
    assert len(made) == 1
    assert made.best == made.sample()


@pytest.mark.parametrize(
    ('size', 'interval', 'end'),
    [(1000, 781, 234_300), (50, 10, 100), (10, 3, 100), (7, 50, 20), (5, 1, 4), (1, 10, 100)],
)
def test_schedule_is_that_of_algorithm_1(size, interval, end):
    """Played with a count alone; ``end`` need not be a multiple of ``interval``."""
    schedule = ShrinkSchedule(size, interval, end)
    left = expected = size
    for iteration in range(1, end + 2 * interval):
        if iteration < end and iteration % interval == 0:
            expected -= interval * (size - 1) // end
        if iteration >= end:
            expected = 1
        left -= schedule.drops(iteration, left)
        assert left == expected, iteration
    assert left == 1


def test_schedule_shrinks_evenly():
    """After a share of the way that share of the pool is gone, up to the rounding of each drop."""
    schedule = ShrinkSchedule(size=1001, interval=10, end=1000)
    left = 1001
    for iteration in range(1, 1000):
        left -= schedule.drops(iteration, left)
        assert left == 1001 - 10 * (iteration // 10)


def test_schedule_never_takes_the_last():
    schedule = ShrinkSchedule(size=100, interval=10, end=20)
    assert schedule.drops(10, left=100) == 49
    assert schedule.drops(10, left=20) == 19
    assert schedule.drops(10, left=1) == 0


# --- drawing --------------------------------------------------------------------------------------


def test_even_sampling_visits_each_once_per_pass():
    members = candidates(20)
    made = ArchitecturePool(members)
    passes = [[made.sample() for _ in members] for _ in range(3)]
    assert all(Counter(one) == Counter(members) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_even_sampling_goes_on_when_the_pool_shrinks():
    made = ArchitecturePool(candidates(10))
    seen = [made.sample() for _ in range(4)]
    for member in made.scores:
        made.update(member, member.depths[0])
    made.shrink(3)
    rest = [made.sample() for _ in range(len(set(made.scores) - set(seen)))]
    assert set(rest) == set(made.scores) - set(seen)


def test_uniform_sampling_is_uniform():
    made = ArchitecturePool(candidates(5), sampling='uniform')
    counts = Counter(made.sample() for _ in range(5000))
    assert len(counts) == 5
    assert max(abs(count - 1000) for count in counts.values()) < 5 * np.sqrt(1000 * 0.8)


def test_seed_decides_the_draws():
    draws = [
        [made.sample() for _ in range(30)]
        for made in (ArchitecturePool(candidates(10), seed=seed) for seed in (1, 1, 2))
    ]
    assert draws[0] == draws[1] != draws[2]


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_resumed_equals_uninterrupted(sampling):
    """The state goes through JSON; what loads it was made with another seed and other members."""

    def play(made, steps):
        log = []
        for step in range(steps):
            drawn = made.sample()
            made.update(drawn, drawn.depths[0] + made.rng.random())
            log.append(drawn)
            if step % 5 == 4:
                log.append(made.shrink(1))
        return log

    first = ArchitecturePool(candidates(12), sampling=sampling)
    play(first, 22)
    state = json.loads(json.dumps(first.state_dict()))
    second = ArchitecturePool(candidates(3), sampling=sampling, seed=9)
    second.load_state_dict(state)
    assert play(second, 30) == play(first, 30)
    assert second.scores == first.scores
    assert second.visits == first.visits
    assert second.state_dict() == first.state_dict()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'architectures': []}, 'at least one'),
        ({'alpha': 0}, r'pool\.alpha=0: expected a number in \(0, 1\]'),
        ({'alpha': 1.5}, r'pool\.alpha=1\.5'),
        ({'sampling': 'best'}, r"pool\.sampling='best': expected one of \('even', 'uniform'\)"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ArchitecturePool(**{'architectures': candidates(2), **options})


# --- budget ---------------------------------------------------------------------------------------


def budget_of(supernet, target=0.3, metric='macs', tolerance=0.05):
    return Budget.of(target, metric, tolerance, supernet.space, supernet.cost)


def networks(supernet, architectures):
    """What tells one network from another: the blocks and the units of each group."""
    return [(*one.depths, *supernet.space.units_of(one)) for one in architectures]


def target_of(supernet, *options):
    (limit,) = budget_of(supernet, *options).limits
    return limit.target


@pytest.mark.parametrize('metric', METRICS)
def test_budget_is_a_share_or_a_number(metric, supernet_of):
    supernet = supernet_of('wrn16_2')
    dense = int(supernet.cost.count([supernet.space.largest], metric)[0])
    assert target_of(supernet, 1, metric) == dense
    assert target_of(supernet, 0.25, metric) == dense / 4
    assert target_of(supernet, 123_456, metric) == 123_456


@pytest.mark.parametrize('metric', ['macs', 'params'])
@pytest.mark.parametrize('target', [0.2, 0.5])
def test_small_spaces_are_searched_completely(metric, target, supernet_of):
    """One architecture after the other, each counted on its own; networks with two names once."""
    supernet = supernet_of('wrn16_2')
    (dense,) = supernet.cost.count([supernet.space.largest], metric)
    met = []
    for architecture in supernet.space.enumerate():
        (cost,) = supernet.cost.count([architecture], metric)
        if 0.95 * target * dense <= cost <= 1.05 * target * dense:
            met.append(architecture)
    rows = feasible_rows(
        supernet.space, supernet.cost, budget_of(supernet, target, metric), wanted=1
    )
    expected = set(networks(supernet, met))
    assert len(met) > len(expected) > 1  # 0.9 of 16 channels are all of them
    assert Counter(networks(supernet, map(supernet.space.decode, rows))) == Counter(expected)


LIMITS = {'macs': 0.4, 'params': 0.3, 'activations': 0.6}


def test_of_several_limits_none_is_exceeded_and_one_is_used_fully(supernet_of):
    """Numbers and fractions alike; one architecture after the other."""
    supernet = supernet_of('wrn16_2')
    dense = {m: int(supernet.cost.count(supernet.space.largest, m)[0]) for m in LIMITS}
    expected = set()
    for architecture in supernet.space.enumerate():
        parts = [
            int(supernet.cost.count(architecture, m)[0]) / (LIMITS[m] * dense[m]) for m in LIMITS
        ]
        if all(part <= 1.05 for part in parts) and any(part >= 0.95 for part in parts):
            expected.update(networks(supernet, [architecture]))
    for target in (LIMITS, {m: LIMITS[m] * dense[m] for m in LIMITS}):
        rows = feasible_rows(supernet.space, supernet.cost, budget_of(supernet, target), wanted=1)
        found = networks(supernet, map(supernet.space.decode, rows))
        assert Counter(found) == Counter(expected)
    used = budget_of(supernet, LIMITS).used(supernet.cost, rows)
    by_each = [budget_of(supernet, v, m).used(supernet.cost, rows) for m, v in LIMITS.items()]
    assert (used == np.max(by_each, axis=0)).all()
    binding = {int(place) for place in np.argmax(by_each, axis=0)}
    assert binding == {0, 1, 2}  # else the test would not tell the limits apart


@pytest.mark.parametrize('metric', METRICS)
def test_one_limit_in_a_dict_is_a_single_target(metric, supernet_of):
    supernet = supernet_of('wrn16_2')
    assert budget_of(supernet, {metric: 0.4}, 'params') == budget_of(supernet, 0.4, metric)


def test_of_several_limits_out_of_reach_each_range_is_named(supernet_of):
    supernet = supernet_of('wrn16_2')
    budget = budget_of(supernet, {'macs': 0.5, 'params': 0.001})
    with pytest.raises(BudgetError) as error:
        feasible_rows(supernet.space, supernet.cost, budget, 10)
    nearest = supernet.describe(supernet.space.smallest)
    for metric in ('macs', 'params'):
        own, dense = nearest[metric], nearest[f'{metric}_dense']
        assert f'{own:,} to {dense:,} {metric} ({own / dense:.2%} to 100%)' in str(error.value)
        assert f'{own:,} {metric} ({own / dense:.2%})' in str(error.value).split('nearest')[1]
    assert 'within 5.00%; too low for params: this space reaches' in str(error.value)


@pytest.mark.parametrize('name', ['wrn16_2', 'resnet50', 'mobilenet_v2'])
@pytest.mark.parametrize('target', [0.3, 0.6, {'macs': 0.5, 'params': 0.4}])
def test_search_of_large_spaces_finds_as_many_as_wanted(name, target, supernet_of, monkeypatch):
    monkeypatch.setattr('mmstp.search.budget.ENUMERABLE', 10)
    supernet = supernet_of(name)
    budget = budget_of(supernet, target, tolerance=0.05)
    wanted = 30
    rows = feasible_rows(supernet.space, supernet.cost, budget, wanted)
    found = networks(supernet, map(supernet.space.decode, rows))
    assert budget.meets(budget.used(supernet.cost, rows)).all()
    everything = supernet.space.all_rows()
    met = everything[budget.meets(budget.used(supernet.cost, everything))]
    there = set(networks(supernet, map(supernet.space.decode, met)))
    assert set(found) <= there and len(set(found)) == len(rows) >= min(wanted, len(there))


def test_search_follows_its_seed(supernet_of, monkeypatch):
    monkeypatch.setattr('mmstp.search.budget.ENUMERABLE', 10)
    supernet = supernet_of('resnet50')
    found = [
        feasible_rows(supernet.space, supernet.cost, budget_of(supernet), 20, seed).tolist()
        for seed in (3, 3, 4)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize('exhaustive', [True, False])
def test_target_out_of_reach_names_what_can_be_reached(exhaustive, supernet_of, monkeypatch):
    if not exhaustive:
        monkeypatch.setattr('mmstp.search.budget.ENUMERABLE', 10)
    supernet = supernet_of('wrn16_2')
    low, dense = supernet.cost.macs([supernet.space.smallest, supernet.space.largest])
    with pytest.raises(BudgetError) as error:
        feasible_rows(supernet.space, supernet.cost, budget_of(supernet, 0.01), 10)
    assert f'this space reaches {low:,} to {dense:,} macs ({low / dense:.2%} to 100%)' in str(
        error.value
    )
    assert f'the nearest is {low:,}' in str(error.value)
    assert f'target={0.01 * dense:,.0f} macs (1.00% of the dense network)' in str(error.value)


def test_a_target_is_told_as_it_was_given(supernet_of):
    supernet = supernet_of('wrn16_2')
    with pytest.raises(BudgetError, match=r'target=1\.5 macs \(0\.00% of the dense network\)'):
        feasible_rows(supernet.space, supernet.cost, budget_of(supernet, 1.5), 10)


def test_a_percentage_is_taken_for_a_number_and_explained(supernet_of):
    supernet = supernet_of('wrn16_2')
    with pytest.raises(BudgetError, match=r'above 1 it is a number; 15 % is target=0\.15'):
        feasible_rows(supernet.space, supernet.cost, budget_of(supernet, 15), 10)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target': 0}, r'target=0: expected a fraction in \(0, 1\] or a number above 1'),
        ({'target': -1e9}, 'target=-1000000000.0'),
        ({'target': True}, 'target=True'),
        ({'target': '15%'}, "target='15%'"),
        (
            {'metric': 'flops'},
            r"metric='flops': accepted are .*, activations, latency",
        ),
        ({'target': {}}, 'target={}: expected a number for at least one metric'),
        ({'metric': 'activation'}, "metric='activation': did you mean 'activations'"),
        ({'target': {'flops': 0.3}}, "target has no metric 'flops': accepted are .*, activations"),
        ({'target': {'activation': 0.3}}, "no metric 'activation': did you mean 'activations'"),
        (
            {'target': {'macs': 0.3, 'params': None}},
            r"target\['params'\]=None: expected a fraction",
        ),
        ({'tolerance': 1}, r'tolerance=1: expected a fraction in \[0, 1\)'),
        ({'tolerance': -0.1}, 'tolerance=-0.1'),
    ],
)
def test_budget_out_of_range(options, message, supernet_of):
    with pytest.raises(BudgetError, match=message):
        budget_of(supernet_of('wrn16_2'), **options)


def test_a_pool_from_a_budget_ends_with_one_that_meets_it(supernet_of):
    """The whole way, with losses at random."""
    supernet = supernet_of('resnet18')
    budget = budget_of(supernet, 0.15, tolerance=0.02)
    rows = feasible_rows(supernet.space, supernet.cost, budget, 50)
    rng = random.Random(0)
    members = [supernet.space.decode(row) for row in rows[:50]]
    made = ArchitecturePool(members)
    schedule = ShrinkSchedule(len(made), interval=7, end=300)
    for iteration in range(1, 301):
        made.update(made.sample(), rng.random())
        made.shrink(schedule.drops(iteration, len(made)))
    assert len(made) == 1
    assert budget.meets(budget.used(supernet.cost, made.best)).all()
