"""Several budgets of one run: what they are called, their order, and that they are apart."""

import math
import re
from itertools import permutations

import pytest

from mmstp.errors import BudgetError
from mmstp.search.budget import feasible_rows
from mmstp.search.budgets import budgets_of, find_budgets, rows_by_budget


def budgets(supernet, target, metric='macs', tolerance=0.05):
    return budgets_of(target, metric, tolerance, supernet.space, supernet.cost)


@pytest.mark.parametrize('exhaustive', [True, False])
def test_each_has_the_members_that_it_has_alone_and_none_of_another(
    exhaustive, supernet_of, monkeypatch
):
    if not exhaustive:
        monkeypatch.setattr('mmstp.search.budget.ENUMERABLE', 10)
    supernet = supernet_of('wrn16_2')
    space, cost = supernet.space, supernet.cost
    found = rows_by_budget(space, cost, budgets(supernet, [0.5, 0.2, 0.3]), 20, seed=1)
    assert list(found) == ['20', '30', '50']
    for label, rows in found.items():
        (alone,) = budgets(supernet, int(label) / 100).values()
        assert (rows == feasible_rows(space, cost, alone, 20, seed=1)).all()
    sets = [{*map(space.decode, rows)} for rows in found.values()]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_labels_are_shares_whatever_a_target_is(supernet_of):
    supernet = supernet_of('wrn16_2')
    (dense,) = supernet.cost.macs([supernet.space.largest]).tolist()
    target = [{'macs': 0.8, 'params': 0.9}, dense / 8, 0.3, {'params': 0.5}]
    found = budgets(supernet, target)
    assert list(found) == ['12.5', '30', 'params-50', 'macs-80-params-90']
    assert list(budgets(supernet, 0.3)) == list(budgets(supernet, [0.3])) == ['30']
    for text, label in {
        '30': '30', '0.3': '30', '0.125': '12.5', f'{dense / 8}': '12.5', '0.5': 'params-50',
        'macs-80-params-90': 'macs-80-params-90', '0.8': None, '31': None, 'x': None,
    }.items():  # fmt: skip
        assert find_budgets(found, text) == ([label] if label else [])


def test_budgets_are_the_same_in_any_order(supernet_of):
    target = [{'macs': 0.5}, {'params': 0.5}, {'params': 0.4, 'macs': 0.4}, 0.3]
    expected = ['30', 'macs-40-params-40', 'macs-50', 'params-50']
    for order in permutations(target):
        assert list(budgets(supernet_of('wrn16_2'), order)) == expected
    swapped = {'macs': 0.4, 'params': 0.4}
    assert list(budgets(supernet_of('wrn16_2'), [swapped])) == ['macs-40-params-40']


def test_a_label_is_no_number(supernet_of):
    supernet = supernet_of('wrn16_2')
    (dense,) = supernet.cost.macs([supernet.space.largest]).tolist()
    found = budgets(supernet, [0.3, 30 * dense / 3000])  # of a device on which 1 % are 30 ms
    found['0.3'] = found.pop('1')
    assert find_budgets(found, '0.3') == ['0.3']


def test_a_number_may_name_two_budgets(supernet_of):
    found = budgets(supernet_of('wrn16_2'), [0.5, {'params': 0.5}])
    assert find_budgets(found, '0.5') == list(found)
    assert find_budgets(found, 'params-50') == ['params-50']


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        ([], 'target=[]: expected at least one budget'),
        ([0.3, 0.3], 'target=[0.3, 0.3]: two budgets are 30; expected some that differ more'),
        (10**400, 'target=1000'),
        ([True], 'target[0]=True: expected a fraction in (0, 1]'),
        ([0.3, math.nan], 'target[1]=nan: expected a fraction'),
        ([-1], 'target[0]=-1: expected a fraction'),
        ([0.3, 0], 'target[1]=0: expected a fraction'),
        ([0.3, None], 'target[1]=None: expected a fraction'),
        ([0.3, [0.4]], 'target[1]=[0.4]: expected a fraction in (0, 1]'),
        ([0.3, '40%'], "target[1]='40%': expected a fraction"),
        ([0.3, {'flops': 0.3}], "target[1] has no metric 'flops': accepted are"),
        ([0.3, {}], 'target[1]={}: expected a number for at least one metric'),
        ([0.001, 0.3], 'no architecture meets target='),
        ([0.5, 0.3, 0.31], 'the budgets 30 and 31 share members, such as (('),
        ([0.5, {'macs': 0.5, 'params': 0.99}], 'share members'),
    ],
)
def test_lists_that_are_none(target, message, supernet_of):
    supernet = supernet_of('wrn16_2')
    with pytest.raises(BudgetError, match=re.escape(message)):
        rows_by_budget(supernet.space, supernet.cost, budgets(supernet, target), 20)
