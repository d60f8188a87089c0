"""Random networks from `tests.fuzz`: each is refused with a reason, or its subnets are right.

A hundred seeds are tried, half of them by `make test-slow` alone. More, and others, by name:

    MMSTP_FUZZ=2000 pytest tests/test_fuzz.py        # seeds 0 to 1999
    MMSTP_FUZZ=5000:6000 pytest tests/test_fuzz.py   # seeds 5000 to 5999
    python -m tests.test_fuzz 17                     # one seed, with the network, made smaller

A seed that fails is reported with its recipe, made as small as still fails, and with the network.
"""

import copy
import os
import sys
import traceback
from dataclasses import dataclass

import pytest
import torch

from mmstp import Supernet
from mmstp.errors import MmstpError
from mmstp.subnets.cut import count_parameters
from tests import fuzz, relations
from tests.networks import equal, tensors
from tests.relations import Case, counted, run, some

DEFAULT = (0, 100)
FIRST, LAST = DEFAULT
if seeds := os.environ.get('MMSTP_FUZZ'):
    first, _, last = seeds.rpartition(':')
    FIRST, LAST = int(first or 0), int(last)
TESTS = max(1, (LAST - FIRST) // 10)  # of ten seeds each: enough for every process, and few lines
FREE = 0.7  # of the networks at least so many have something to choose

PLAIN = ('pool', 'none', 'one')  # head, second input, outputs
# What failed once, made small, by what it showed. Recipes stay when the choice of pieces changes.
FOUND: dict[str, fuzz.Recipe] = {
    # a TransformerEncoderLayer by itself took torch's fused operator, with layers narrow inside
    'fused encoder layer': fuzz.Recipe(28, (('tokens', 'torch_encoder', 1),), *PLAIN),
    # `reshape(b, n, c)` of all heads: half of the heads are as wide as half of the embedding, so
    # supplying sizes looked needless
    'needless sizes': fuzz.Recipe(31, (('tokens', 'class_token', 2),), *PLAIN),
    # what a call of a plan holds beside its numbers was lost in its text
    'text of plans': fuzz.Recipe(57, (('map', 'constant', 0),), *PLAIN),
}

ALWAYS = (
    relations.wrapping_leaves_keys_and_weights,
    relations.largest_is_the_dense_network,
    relations.slicing_equals_masking,
    relations.export_is_static_and_holds_copies,
    relations.attributes_of_the_export_are_its_weights_shapes,
    relations.rebuilt_from_its_spec_it_equals_the_export,
    relations.larger_architectures_keep_what_smaller_ones_keep,
    relations.stages_follow_the_forward,
)


@dataclass
class Outcome:
    """Of one network.

    Attributes:
        refused: The message, where there is no supernet of it.
        free: Whether a width or a depth can be chosen.
        narrowed: Layers that the analysis took for free and the check found to fail, with reasons.
    """

    refused: str | None = None
    free: bool = False
    narrowed: tuple[str, ...] = ()


def checked(recipe: fuzz.Recipe) -> Outcome:
    """Everything that holds of the network; raises what does not."""
    made = fuzz.make(recipe)
    model, inputs = made.model, made.inputs
    dense = copy.deepcopy(model)
    try:
        supernet = Supernet(model, inputs, **made.options)
    except MmstpError as error:
        refused = f'{type(error).__name__}: {error}'
        assert says_why(refused, model), refused
        relations.assert_same_state(model, dense)
        relations.assert_same_modules(model, dense)
        with torch.no_grad():
            assert equal(run(model, inputs), run(dense, inputs))
        return Outcome(refused)
    stays = (*supernet.graph.fixed.items(), *supernet.graph.unskippable.items())
    narrowed = tuple(f'{path}: {why}' for path, why in stays if 'narrowed' in why)
    batches = [len(inputs[0])] if supernet.one_batch else [1, 2, 5]
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    case = Case(
        supernet,
        [
            tuple(torch.randn(batch, *x.shape[1:], generator=generator) for x in inputs)
            for batch in batches
        ],
        some(supernet.space, seed=recipe.seed),
        lambda: copy.deepcopy(dense),
    )
    for relation in ALWAYS:
        relation(case)
    subnets_are_their_exports(case)
    costs_are_counted(case)
    gradients_are_those_of_the_export(case)
    relations.assert_same_state(model, dense)  # nothing of the above has changed it
    return Outcome(free=supernet.space.size > 1, narrowed=narrowed)


def says_why(message: str, model: torch.nn.Module) -> bool:
    """Whether a module is named, or the option, or what has to stay."""
    names = [name for name, _ in model.named_modules() if name]
    return any(name in message for name in (*names, 'space.', type(model).__name__))


def subnets_are_their_exports(case: Case) -> None:
    """To the bit; else in float64, which tells another order of summation from another number."""
    try:
        relations.subnet_equals_its_export(case)
    except AssertionError:
        relations.subnet_agrees_with_its_export(case)


def costs_are_counted(case: Case) -> None:
    """By a counter that runs the exports, and from their parameters."""
    supernet = case.supernet
    # without parameters that are trained: torch's counter cannot follow a view of one into a module
    networks = [copy.deepcopy(network).requires_grad_(False) for _, network in case.exports]
    macs = [counted(network, *supernet.inputs) for network in networks]
    params = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert supernet.cost.macs(case.architectures).tolist() == macs
    assert supernet.cost.params(case.architectures).tolist() == params
    assert [count_parameters(network) for network in networks] == params


def gradients_are_those_of_the_export(case: Case) -> None:
    """In eval mode and in train mode, for the largest batch: norms over samples need several."""
    for training in (False, True):
        supernet = copy.deepcopy(case.supernet)
        supernet.model.train(training)
        own = Case(supernet, case.inputs[-1:], case.architectures[:1])
        relations.gradient_is_that_of_the_export(own)


def failing(recipe: fuzz.Recipe) -> Exception | None:
    """What is raised where something does not hold."""
    try:
        checked(recipe)
    except Exception as error:
        return error
    return None


def shrunk(recipe: fuzz.Recipe, error: Exception) -> tuple[fuzz.Recipe, Exception]:
    """The smallest recipe found that raises an error of the same type, and that error."""
    for one in fuzz.smaller(recipe):
        found = failing(one)
        if type(found) is type(error):
            return shrunk(one, found)
    return recipe, error


def tried(recipe: fuzz.Recipe) -> tuple[Outcome | None, str]:
    """What comes of a network, or the report of how it fails."""
    try:
        return checked(recipe), ''
    except Exception as error:
        small, found = shrunk(recipe, error)
        made, text = fuzz.make(small), ''.join(traceback.format_exception(found))
        return None, f'\nseed {recipe.seed}: {small}\n{made.options}\n{made.model}\n{text}'


@pytest.mark.parametrize(
    'first',
    [
        pytest.param(n, marks=[pytest.mark.slow] if n % 2 and (FIRST, LAST) == DEFAULT else [])
        for n in range(FIRST, min(FIRST + TESTS, LAST))
    ],
)
def test_random_networks_are_refused_or_right(first):
    seeds = range(first, LAST, TESTS)  # pieces take turns: neighbours are alike in what they lack
    outcomes, reports = zip(*(tried(fuzz.recipe_of(seed)) for seed in seeds), strict=True)
    failed = [report for report in reports if report]
    assert not failed, f'{len(failed)} seeds fail:' + '\n'.join(failed)
    # others may be drawn badly once
    assert (FIRST, LAST) != DEFAULT or sum(one.free for one in outcomes) >= FREE * len(seeds)


@pytest.mark.parametrize('what', FOUND)
def test_what_was_found_stays_repaired(what):
    outcome, report = tried(FOUND[what])
    assert outcome is not None, report


def test_every_piece_is_drawn_and_nearly_every_variant():
    networks = [fuzz.make(fuzz.recipe_of(seed)) for seed in range(*DEFAULT)]
    found = set().union(*(one.found for one in networks))
    possible = set().union(*(one.possible for one in networks))
    assert {f'{layout} {name}' for layout, name in fuzz.NAMES} <= found
    assert len(possible - found) < 0.15 * len(possible), sorted(possible - found)


@pytest.mark.parametrize('batch', [1, 2, 5])
@torch.no_grad()
def test_networks_are_valid_dense_ones(batch):
    """What fails above is no fault of the network: it runs, and its outputs are finite."""
    for seed in range(*DEFAULT):
        made = fuzz.make(fuzz.recipe_of(seed))
        x = tuple(torch.randn(batch, *one.shape[1:]) for one in made.inputs)
        assert all(output.isfinite().all() for output in tensors(run(made.model, x))), seed


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        print(*tried(fuzz.recipe_of(int(name))))
