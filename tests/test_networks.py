"""What holds for every network and every architecture: two ways to the same number.

`test_supernet.py`, `test_cost.py` and `test_compact.py` do it for convolutional networks with batch
norm, whose layers can be masked one by one; here are all others, and the relations of both kinds.
"""

import json
import random

import pytest
import torch
from torch import nn

from mmstp import CompactSpec
from mmstp.analysis.eval_state import eval_mode
from mmstp.subnets.check import Verifier
from mmstp.subnets.cut import compact, count_macs, count_parameters
from mmstp.subnets.modules import DynamicMixin
from tests.networks import ALL, OTHERS, build, equal, images, names, tensors

EVERY = pytest.mark.parametrize('name', names(OTHERS))
AND_CONVOLUTIONAL = pytest.mark.parametrize('name', names(ALL))
RESIZED = pytest.mark.parametrize('name', names(name for name in ALL if ALL[name].other))


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope='session')
def exports_of(supernet_of):
    """Subnets of a network by name, the smallest and one at random, with their exports."""
    made = {}

    def exports(name):
        if name not in made:
            supernet = supernet_of(name)
            space = supernet.space
            architectures = [space.smallest, space.sample(random.Random(0))]
            made[name] = [(one, supernet.export(one)) for one in architectures]
        return made[name]

    return exports


# --- the dense network ----------------------------------------------------------------------------


@EVERY
def test_largest_is_the_dense_network(name, supernet_of, dense_of, no_grad):
    supernet, dense, x = supernet_of(name), dense_of(name), images(name)
    expected, state = dense(x), dense.state_dict()
    found = supernet.model.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert equal(supernet.model(x), expected)
    with supernet.activate(supernet.space.largest):
        assert equal(supernet.model(x), expected)
    assert equal(supernet.export(supernet.space.largest)(x), expected)


# --- its subnets ----------------------------------------------------------------------------------


@EVERY
def test_subnet_equals_its_export_to_the_bit(name, supernet_of, exports_of, no_grad):
    model = supernet_of(name).model
    for architecture, network in exports_of(name):
        assert not any(isinstance(module, DynamicMixin) for module in network.modules())
        for x in (images(name, batch=1), images(name)):
            with supernet_of(name).activate(architecture):
                dynamic = model(x)
            assert equal(dynamic, network(x)), architecture


@RESIZED
def test_subnet_equals_its_export_at_another_size(name, supernet_of, dense_of, exports_of, no_grad):
    supernet, x = supernet_of(name), images(name, size=ALL[name].other)
    assert equal(supernet.model(x), dense_of(name)(x))
    for architecture, network in exports_of(name):
        with supernet.activate(architecture):
            dynamic = supernet.model(x)
        assert equal(dynamic, network(x)), architecture


@EVERY
def test_slicing_equals_masking(name, supernet_of):
    """The trace of the dense network with what is dropped at zero; norms see what is kept."""
    supernet = supernet_of(name)
    space = supernet.space
    verifier = Verifier(supernet.model, supernet.graph, supernet.inputs)
    rng = random.Random(1)
    for architecture in (space.smallest, space.sample(rng), space.sample(rng)):
        units = space.group_units(space.encode(architecture)[None])[0]
        assert verifier.difference(supernet._plan(architecture), units) is None, architecture


@EVERY
def test_every_choice_matters(name, supernet_of, no_grad):
    """One depth or one width as low as it gets changes the output, each in its own way."""
    supernet, x = supernet_of(name), images(name, batch=1)
    space = supernet.space

    def run():
        return torch.cat([output.flatten() for output in tensors(supernet.model(x))])

    outputs = [run()]
    for place, choices in enumerate(space.sizes):
        if choices > 1:
            row = space.encode(space.largest)
            row[place] = 0
            with supernet.activate(space.decode(row)):
                outputs.append(run())
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


@AND_CONVOLUTIONAL
def test_least_depth_is_the_dense_network_without_those_blocks(
    name, supernet_of, dense_of, no_grad
):
    supernet, dense, x = supernet_of(name), dense_of(name), images(name)
    space = supernet.space
    row = space.encode(space.largest)
    row[: len(space.stages)] = 0
    architecture = space.decode(row)
    for path in space.skipped(architecture):
        dense.get_submodule(path).forward = lambda x, *others, **options: x
    with supernet.activate(architecture):
        assert equal(supernet.model(x), dense(x))


@AND_CONVOLUTIONAL
def test_gradient_is_that_of_the_export_and_zero_outside(name, supernet_of, exports_of):
    """Kept positions stay in order, so what is not zero comes in the order of the export."""
    supernet, x = supernet_of(name), images(name)
    architecture, network = exports_of(name)[1]
    with supernet.activate(architecture):
        dynamic = gradients(supernet.model, x)
    modules = dict(network.named_modules())
    live = [modules[path] for path in supernet.graph.traced[0].trace.live if path in modules]
    with eval_mode(network, live):  # they would keep constants in eval mode
        static = gradients(network, x)
    assert set(static) <= set(dynamic)
    for key, gradient in dynamic.items():
        if key not in static:  # in a block that is left out
            assert gradient is None, key
        elif gradient is None:
            assert static[key] is None, key
        else:
            inside = static[key]
            torch.testing.assert_close(gradient[gradient != 0], inside[inside != 0], msg=key)


def gradients(model, x):
    """Those of all parameters; the model is left without."""
    loss = sum(output.square().mean() for output in tensors(model(x)))
    loss.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


# --- what is known of them ------------------------------------------------------------------------


@EVERY
def test_table_equals_what_a_counter_finds_in_the_export(name, supernet_of, exports_of):
    supernet, x = supernet_of(name), images(name, batch=1)
    subnets = [*exports_of(name), (supernet.space.largest, build(name))]
    architectures = [architecture for architecture, _ in subnets]
    macs = [count_macs(network, (x,)) for _, network in subnets]
    params = [count_parameters(network) for _, network in subnets]
    assert supernet.cost.macs(architectures).tolist() == macs
    assert supernet.cost.params(architectures).tolist() == params
    assert len(set(macs)) == len(set(params)) == len(architectures)


@EVERY
def test_rebuilt_from_json_equals_the_export(name, supernet_of, exports_of, no_grad):
    supernet, x = supernet_of(name), images(name)
    for architecture, export in exports_of(name):
        plan = supernet.compact_spec(architecture)
        read = CompactSpec.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert read == plan
        network = build(name)
        compact(network, read)
        state, expected = network.state_dict(), export.state_dict()
        assert list(state) == list(expected)
        for key, tensor in state.items():
            tensor.copy_(expected[key])
        network.train(), network.eval()  # some keep in eval mode what their weights gave
        assert equal(network(x), export(x))
        for (path, module), (other, expected) in zip(
            network.named_modules(), export.named_modules(), strict=True
        ):
            assert (path, type(module)) == (other, type(expected))


@EVERY
def test_layers_of_the_export_say_their_sizes(name, exports_of):
    for _, network in exports_of(name):
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                said = (module.out_channels, module.in_channels // module.groups)
                assert said == module.weight.shape[:2], path
            elif isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == module.weight.shape, path
            elif isinstance(module, nn.LayerNorm):
                assert module.normalized_shape == module.weight.shape, path
            elif isinstance(module, nn.GroupNorm):
                assert module.num_channels == len(module.weight), path
                assert module.num_channels % module.num_groups == 0, path
