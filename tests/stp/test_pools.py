"""A pool for each budget: turns, support subnets, and what is refused."""

import copy
import itertools
import re
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger

from mmstp import SubnetEvalHook
from mmstp.errors import BudgetError, CheckpointError
from mmstp.stp.search_state import pools_state, read_search
from tests import tiny

TARGETS = [0.6, 0.25, 0.4]
LABELS = ['25', '40', '60']


@pytest.fixture(scope='module')
def made():
    return tiny.stp(model__target=TARGETS)


@pytest.fixture
def stp(made):
    """Its weights may change, its pools are its own."""
    found = copy.copy(made)
    found.pools = copy.deepcopy(made.pools)
    found.driver = found.pools
    return found


def steps(stp, count):
    """Trains a few, without an optimizer; the losses."""
    return [
        {k: v.item() for k, v in stp(*tiny.batch(seed=i), mode='loss').items()}
        for i in range(count)
    ]


def test_budgets_take_turns_and_score_their_own(stp):
    steps(stp, 7)
    visits = {label: sum(pool.visits.values()) for label, pool in stp.pools.items()}
    assert visits == {'25': 3, '40': 2, '60': 2}
    assert stp.pools.turn == '40'
    for label, pool in stp.pools.items():
        budget = stp.pools.budgets[label]
        assert budget.meets(budget.used(stp.supernet.cost, list(pool.scores))).all()
        assert {a for a, score in pool.scores.items() if score is not None} == {
            a for a, number in pool.visits.items() if number
        }


@pytest.mark.parametrize('main', [{}, {'AP': 0.5}])
def test_a_subnet_that_finds_nothing_has_0(stp, main, monkeypatch):
    hook, found = SubnetEvalHook(num_images=8), iter([{}, {'AP': 0.3}, {'AP': 0.6}])
    monkeypatch.setattr(hook, '_of_subnet', lambda *_: next(found))
    metrics, runner = dict(main), SimpleNamespace(model=stp, logger=MMLogger('test'))
    hook._evaluate(runner, None, metrics)
    mean = {'subnet/AP': pytest.approx(0.3)}
    assert metrics == main | mean | {'subnet-25/AP': 0, 'subnet-40/AP': 0.3, 'subnet-60/AP': 0.6}


def test_supports_contain_their_target_and_one_of_the_next_larger_budget(stp):
    space = stp.supernet.space
    for label, larger in zip(LABELS, [*LABELS[1:], None], strict=True):
        supports = set()
        for target in stp.pools[label].scores:
            for _ in range(10):
                support = space.check(stp.pools.support(space, label, target))
                supports.add(support)
                assert support.contains(target)
                assert larger is None or support in {
                    target.joined(other) for other in stp.pools[larger].scores
                }
        assert len(supports) > len(stp.pools[label])


def test_no_two_pools_share_a_member(made):
    for own, other in itertools.combinations(made.pools.values(), 2):
        assert not set(own.scores) & set(other.scores)


def test_ranks_compare_every_pool_by_its_own_names(stp):
    before = copy.deepcopy(stp.pools.fields())
    stp.pools['40'].update(stp.pools['40'].best, 0.1)
    after = stp.pools.fields()
    assert {name for name in before if before[name] != after[name]} == {'scores-40', 'visits-40'}


def test_a_list_of_one_is_its_number():
    alone, listed = (tiny.stp(model__target=target) for target in (0.4, [0.4]))
    for stp in (alone, listed):
        stp.driver = stp.pools
    assert steps(alone, 3) == steps(listed, 3)
    assert alone.pools.fields() == listed.pools.fields()
    assert pools_state(alone, {}) == pools_state(listed, {})
    assert set(alone.pools.fields()) == {'turn', *alone.pool.state_dict()}  # names without a suffix


def test_a_state_goes_on_as_it_would_have(stp):
    """In pools that have drawn otherwise since."""
    steps(stp, 4)
    sizes = dict.fromkeys(LABELS, 5)
    state = copy.deepcopy(pools_state(stp, sizes))
    expected = [stp.pools.draw() for _ in range(8)]
    assert read_search(stp, state) == (sizes, False)
    assert [stp.pools.draw() for _ in range(8)] == expected


def test_one_budget_has_to_be_meant(made):
    for ask in (lambda: made.pool, lambda: made.budget, made.export):
        with pytest.raises(BudgetError, match='the budgets 25, 40, 60, each with a pool'):
            ask()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s['budgets'].pop('25'), 'for other budgets (40, 60) than 25, 40, 60'),
        (lambda s: s.update(budgets=3), 'for other budgets (a single one) than'),
        (lambda s: s.update(s.pop('budgets')['25']), 'for other budgets (a single one) than'),
        (lambda s: s.update(turn='15'), "the turn of '15'; expected one of 25, 40, 60"),
        (lambda s: s.update(turn=['25']), "the turn of ['25']"),
        (lambda s: s.update(alone=True), 'alone is True, with 5 architectures in a pool'),
        (
            lambda s: s['budgets'].update({'25': s['budgets']['40'], '40': s['budgets']['25']}),
            'does not meet the budget',
        ),
        (lambda s: s['budgets'].update({'40': None}), 'it has no pool'),
    ],
)
def test_a_state_that_is_not_this_run_s_is_refused(change, message, stp):
    state = pools_state(stp, {})
    before = stp.pools
    change(state)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_search(stp, state)
    assert stp.pools is before
