"""The latency of a space from members that were measured, here on a device that is made up."""

import json
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import spearmanr

from mmstp import BudgetError, LatencyError
from mmstp.search.budget import Budget, feasible_rows
from mmstp.search.cost import CostModel
from mmstp.search.latency_fit import FEWEST, Accuracy, doubts, non_negative, rank_correlation
from mmstp.search.latency_table import LatencyTable, to_measure
from mmstp.search.space import SearchSpace
from tests.latency import milliseconds, table_of


@pytest.fixture
def supernet(supernet_of):
    """Of a network whose device is known; left as it was."""
    found = supernet_of('wrn16_2')
    yield found
    found.cost.latency_fit = None


@pytest.mark.parametrize('columns', [1, 4, 7])
def test_fit_is_that_of_another_solver(columns):
    rng = np.random.default_rng(columns)
    for _ in range(10):
        x, y = rng.random((30, columns)) * 10.0 ** rng.integers(0, 9, columns), rng.random(30) + 0.1
        x[:, 0] *= rng.choice([0, 1])  # a column that tells nothing
        expected = nnls(x / np.abs(x).max(axis=0).clip(1e-9) / y[:, None], np.ones(30))[0]
        found = non_negative(x, y) * np.abs(x).max(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_whole_space_has_the_latency_of_a_device_that_is_a_weighted_sum(supernet):
    supernet.cost.use_latency(table_of(supernet))
    rows = supernet.space.all_rows()
    found = supernet.cost.count(rows, 'latency')
    np.testing.assert_allclose(found, milliseconds(supernet, rows), rtol=1e-6)
    some = rows[:: len(rows) // 10]
    one_by_one = [supernet.cost.latency(supernet.space.decode(row))[0] for row in some]
    np.testing.assert_allclose(one_by_one, supernet.cost.latency(some))
    described = supernet.describe(supernet.space.smallest)
    assert described['latency'] == found.min()
    assert described['latency_ratio'] == found.min() / found.max()


@torch.no_grad()
def counted(supernet, architecture):
    """The features of an export by hooks on its layers, without the constant."""
    network, dims = supernet.export(architecture), supernet.graph.dims
    found = dict.fromkeys(['macs', 'activations', 'layers', 'vectors of 16', 'vectors of 64'], 0)

    def count(path, layer, y):
        outputs, inputs, *kernel = layer.weight.shape
        positions = y.numel() // outputs
        found['layers'] += 1
        found['activations'] += y.numel()
        for name, vector in (('macs', 1), ('vectors of 16', 16), ('vectors of 64', 64)):
            sizes = [outputs, inputs]
            for dim in dims.get(f'{path}.weight', ()):
                sizes[dim] = -(-sizes[dim] // vector) * vector
            found[name] += positions * math.prod([*sizes, *kernel])

    for path, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(lambda m, _, y, path=path: count(path, m, y))
    network(*supernet.inputs)
    return {**found, 'params': sum(p.numel() for p in network.parameters())}


@pytest.mark.parametrize('name', ['wrn16_2', 'mobilenet_v3_small', 'densenet'])
def test_latency_is_the_weighted_sum_of_what_the_layers_of_the_export_count(name, supernet_of):
    """Convolutions of whole channels and by channel, and of channels that are concatenated."""
    supernet, rng = supernet_of(name), random.Random(0)
    space, cost = supernet.space, supernet.cost
    cost.use_latency(table_of(supernet, noise=0.03))
    try:
        for architecture in (space.smallest, space.largest, *(space.sample(rng) for _ in range(3))):
            features = {key: int(own[0]) for key, own in cost.features(architecture).items()}
            expected = {'constant': 1, **counted(supernet, architecture)}
            assert features == expected
            weights = dict(zip(features, cost.latency_fit.weights, strict=True))
            total = sum(weights[key] * expected[key] for key in weights)
            assert cost.latency(architecture)[0] == pytest.approx(total, rel=1e-12)
    finally:
        cost.latency_fit = None


def test_accuracy_is_that_on_members_that_were_left_out(supernet):
    """Noise of 3 % on what was measured; new members without noise are closer still."""
    supernet.cost.use_latency(table_of(supernet, noise=0.03))
    accuracy = supernet.cost.latency_fit.accuracy
    assert 0.015 < accuracy.mean < 0.04
    assert accuracy.mean < accuracy.largest < 0.15
    rows = supernet.space.all_rows()
    truth, found = milliseconds(supernet, rows), supernet.cost.latency(rows)
    assert np.abs(found / truth - 1).mean() < accuracy.mean
    assert spearmanr(truth, found)[0] > 0.99 < accuracy.rank + 0.02


def test_larger_architectures_are_never_faster(supernet):
    """Whatever was measured: here numbers at random."""
    table, rng = table_of(supernet), random.Random(0)
    table.ratios = {text: rng.random() for text in table.ratios}
    supernet.cost.use_latency(table)
    for _ in range(50):
        target = supernet.space.sample(rng)
        small, large = supernet.cost.latency([target, supernet.space.expand(target, rng)])
        assert small <= large


def test_members_to_measure_reach_both_ends_and_begin_alike(supernet_of):
    supernet = supernet_of('resnet50')
    space, macs = supernet.space, supernet.cost.macs
    rows = to_measure(space, macs, 64)
    assert len({space.decode(row) for row in rows}) == 64
    assert (to_measure(space, macs, 20) == rows[:20]).all()
    low, high = macs([space.smallest, space.largest])
    assert macs(rows).min() < 1.3 * low
    assert macs(rows).max() > 0.8 * high


def test_a_table_is_read_as_it_was_written(supernet, tmp_path):
    table = table_of(supernet)
    table.write(tmp_path / 'latency.json')
    assert LatencyTable.read(tmp_path / 'latency.json') == table
    assert str(table) == '40 networks, 2026-11-26; backend none, versions.none 1.0'


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_is_a_fraction_or_milliseconds(supernet):
    supernet.cost.use_latency(table_of(supernet))
    space, cost = supernet.space, supernet.cost
    dense = float(cost.latency(space.largest)[0])
    assert dense > 2
    fraction = Budget.of(0.5, 'latency', 0.02, space, cost)
    number = Budget.of(0.5 * dense, 'latency', 0.02, space, cost)
    found, same = (feasible_rows(space, cost, budget, 10) for budget in (fraction, number))
    assert len(found)
    assert found.tolist() == same.tolist()
    assert (np.abs(milliseconds(supernet, found) / (0.5 * dense) - 1) < 0.0201).all()
    both = Budget.of({'latency': 0.5, 'params': 0.3}, 'macs', 0.02, space, cost)
    rows = feasible_rows(space, cost, both, 10)
    assert (cost.latency(rows) <= 0.5101 * dense).all()


def test_unreachable_latency_names_range_and_nearest(supernet):
    supernet.cost.use_latency(table_of(supernet))
    space, cost = supernet.space, supernet.cost
    low, high = cost.latency([space.smallest, space.largest])
    with pytest.raises(BudgetError) as error:
        feasible_rows(space, cost, Budget.of(1.01 * float(high), 'latency', 0.0, space, cost), 10)
    assert f'reaches {low:.3g} to {high:.3g} ms' in str(error.value)
    assert f'the nearest is {high:.3g} ms (100.00%)' in str(error.value)
    assert 'above 1 it is a number; 15 % is target=0.15' in str(error.value)
    with pytest.raises(BudgetError) as error:
        feasible_rows(space, cost, Budget.of(0.001, 'latency', 0.0, space, cost), 10)
    assert 'above 1 it is a number' not in str(error.value)


def test_without_a_table_there_is_no_latency(supernet):
    with pytest.raises(LatencyError, match=r'model\.latency=.*tools/latency_table\.py'):
        Budget.of(0.5, 'latency', 0.02, supernet.space, supernet.cost)
    assert 'latency' not in supernet.describe(supernet.space.smallest)


# --- tables that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(format=0), r"latency\.json' has format 0; expected 1"),
        (dict(ratios=None), r'ratios is None; expected an object'),
        (
            dict(ratios={'((1,), (1.0,))': -1}),
            r'is -1; expected a number above 0',
        ),
        (dict(dense_ms=[10**400]), 'dense_ms is 10+; expected a number above 0, below 1e'),
        (dict(dense_ms=[]), 'dense_ms is None; expected a number above 0'),
        (dict(setting='cpu'), "setting is 'cpu'; expected an object"),
    ],
)
def test_damaged_files_are_named(change, message, supernet, tmp_path):
    path = tmp_path / 'latency.json'
    table_of(supernet).write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LatencyError, match=message):
        LatencyTable.read(path)


def test_a_missing_file_and_one_that_is_no_table(tmp_path):
    with pytest.raises(LatencyError, match=r'none\.json.*No such file.*latency_table\.py'):
        LatencyTable.read(tmp_path / 'none.json')
    for content, said in {'[1, 2': 'no JSON', '[1, 2]': r'\[1, 2\]', '{"macs": 3}': 'macs'}.items():
        (tmp_path / 'other.json').write_text(content)
        with pytest.raises(LatencyError, match=rf'other\.json. is no latency table, .*{said}'):
            LatencyTable.read(tmp_path / 'other.json')


def test_a_table_of_another_network_or_space(supernet, supernet_of):
    other = supernet_of('resnet18')
    with pytest.raises(
        LatencyError, match=r'another network or space: depths and widths, .*: .* there, '
    ):
        supernet.cost.use_latency(table_of(other))
    table = table_of(supernet)
    table.space['input shapes'] = [[1, 3, 48, 48]]
    shapes = r'input shapes: \[\[1, 3, 48, 48\]\] there, \[\[1, 3, 32, 32\]\] here'
    with pytest.raises(LatencyError, match=shapes):
        supernet.cost.use_latency(table)
    table = table_of(supernet)
    table.space['macs of the largest'] += 1
    own = supernet.cost.described()['macs of the largest']
    with pytest.raises(LatencyError, match=f'macs of the largest: {own + 1} there, {own} here'):
        supernet.cost.use_latency(table)


def test_a_table_with_too_few_networks(supernet):
    with pytest.raises(LatencyError, match=f'holds {FEWEST - 1} networks; a fit needs {FEWEST}'):
        supernet.cost.use_latency(table_of(supernet, FEWEST - 1))


def test_a_network_in_two_spellings_is_one(supernet):
    table = table_of(supernet, FEWEST - 1)
    table.ratios |= {text.replace(', ', ',   '): ratio for text, ratio in table.ratios.items()}
    with pytest.raises(LatencyError, match=f'holds {FEWEST - 1} networks'):
        supernet.cost.use_latency(table)


def test_of_a_small_space_all_networks_are_enough(supernet):
    space = SearchSpace(supernet.graph, widths=(0.5, 1.0), depths=False)
    small = SimpleNamespace(space=space, cost=CostModel(supernet.graph, space))
    assert space.size < FEWEST
    table = table_of(small)
    assert len(table.ratios) == space.size
    small.cost.use_latency(table)
    found = small.cost.latency(space.all_rows())
    assert found == pytest.approx(milliseconds(small, space.all_rows()), rel=1e-6)
    del table.ratios[str(space.smallest)]
    with pytest.raises(LatencyError, match=f'holds {space.size - 1} networks; a fit needs'):
        small.cost.use_latency(table)


def test_a_table_of_other_channels_at_equal_ends(supernet):
    """Other widths between the ends, or a group that stays whole in blocks that are left out."""
    table = table_of(supernet)
    name = next(iter(table.space['units kept']))
    table.space['units kept'][name][1][0] += 1
    with pytest.raises(LatencyError, match=rf'space: units kept, {name}: \[\['):
        supernet.cost.use_latency(table)


@pytest.mark.parametrize('values', [4, 10_000])
def test_rank_correlation_is_that_of_another_library(values):
    a, b = np.random.default_rng(0).integers(values, size=(2, 50)).astype(float)
    assert rank_correlation(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)
    assert rank_correlation(np.ones(50), b) == 0


def test_a_table_of_the_network_with_other_widths(supernet):
    space = SearchSpace(supernet.graph, widths=(0.5, 1.0))
    choices = r'\[0\.3, .*\]\] there, \[\[1, 2\], \[0\.5, 1\.0\]\] here'
    with pytest.raises(LatencyError, match=rf'depths and widths, .*: .*{choices}'):
        CostModel(supernet.graph, space).use_latency(table_of(supernet))


@pytest.mark.parametrize('text', ['((9, 9, 9), (1.0, 1.0, 1.0))', '((1,), (1.0,))', 'resnet'])
def test_what_was_measured_has_to_be_in_the_space(text, supernet, tmp_path):
    path, table = tmp_path / 'latency.json', table_of(supernet)
    table.ratios[text] = 0.5
    table.write(path)
    with pytest.raises(LatencyError, match=r"latency\.json': ratios: ") as error:
        supernet.use_latency(path)
    assert 'is no member of the space' in str(error.value)
    assert text in str(error.value)


@pytest.mark.parametrize('path', [3, ['latency.json'], True, {}])
def test_a_table_is_named_by_its_path(path, supernet):
    expected = rf'^{re.escape(repr(path))} is no path: expected that of a file'
    with pytest.raises(LatencyError, match=expected):
        supernet.use_latency(path)


def test_what_speaks_against_a_table_is_said():
    good = Accuracy(0.049, 0.3, 0.981)
    assert doubts([10.0, 10.4, 10.2], good) == []
    assert doubts([10.0], good) == []
    (clock,) = doubts([10.0, 10.0, 10.6], good)
    assert '10 to 10.6 ms, which is 6.0% of the median' in clock
    for accuracy in (Accuracy(0.051, 0.3, 0.99), Accuracy(0.01, 0.02, 0.979)):
        (missed,) = doubts([10.0], accuracy)
        assert str(accuracy) in missed
        assert '5% mean error' in missed
        assert '0.98' in missed
    assert len(doubts([10.0, 11.0], Accuracy(0.1, 0.3, 0.9))) == 2
