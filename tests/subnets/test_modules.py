"""Dynamic modules: the static module with a narrower view of its own weights, and nothing more."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from mmstp import Architecture, Supernet
from mmstp.subnets import plan
from mmstp.subnets.attributes import ATTRIBUTE_RULES, register_sizes
from mmstp.subnets.check import FAILS
from mmstp.subnets.modules import DynamicMixin
from mmstp.subnets.plan import Selection
from mmstp.subnets.swap import unswap
from tests.networks import TINY_INPUT, tiny
from tests.relations import Case, gradient_is_that_of_the_export, subnet_equals_its_export

SMALL = Architecture((1, 1), (0.5, 0.3))
LARGER = Architecture((2, 2), (0.5, 1.0))


@pytest.fixture
def supernet():
    return Supernet(tiny(), TINY_INPUT)


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8)


def outputs(supernet, x):
    """What the dense network and two subnets compute."""
    results = [supernet.model(x)]
    for architecture in (SMALL, LARGER):
        with supernet.activate(architecture):
            results.append(supernet.model(x))
    return results


def all_equal(first, second):
    return all(map(torch.equal, first, second))


# --- what stays -----------------------------------------------------------------------------------


def test_keys_parameters_and_classes_stay():
    model = tiny()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    modules, attributes = dict(model.named_modules()), list(vars(model.stage2[1].conv1))
    supernet = Supernet(model, TINY_INPUT)
    assert dict(model.named_modules()) == modules
    for name, module in modules.items():
        assert isinstance(module, type(dict(tiny().named_modules())[name])), name
    for _ in range(2):
        assert {k: id(v) for k, v in model.named_parameters()} == {
            k: id(v) for k, v in parameters.items()
        }
        assert {k: id(v) for k, v in model.named_buffers()} == {
            k: id(v) for k, v in buffers.items()
        }
        supernet.activate(SMALL).__enter__()  # and while a subnet is active
    assert set(vars(model.stage2[1].conv1)) == {*attributes, '_mmstp_subnet', '_mmstp_path'}


def test_optimizer_and_checkpoint_see_the_whole_network(supernet):
    with supernet.activate(SMALL):
        state = supernet.model.state_dict()
        assert state['stage2.1.conv1.weight'].shape == (48, 40, 3, 3)
        assert all(
            p.shape == q.shape
            for p, q in zip(supernet.model.parameters(), tiny().parameters(), strict=True)
        )
        other = tiny()
        nn.init.ones_(other.head.bias)
        supernet.model.load_state_dict(other.state_dict())
    assert (supernet.model.head.bias == 1).all()


def test_layers_tell_their_narrow_size_while_active(supernet):
    conv = supernet.model.stage2[1].conv1
    whole = conv.in_channels, conv.out_channels, tuple(conv.weight.shape)
    with supernet.activate(Architecture((2, 2), (1.0, 0.3))):
        assert (conv.in_channels, conv.out_channels) == (16, 16)  # 12 and 14.4, rounded up
        assert conv.weight.shape == (16, 16, 3, 3)
        assert conv.weight.data_ptr() == conv._parameters['weight'].data_ptr()  # a view
    assert (conv.in_channels, conv.out_channels, tuple(conv.weight.shape)) == whole
    assert whole == (40, 48, (48, 40, 3, 3))


def test_model_can_be_cast_while_active(supernet, x):
    with supernet.activate(SMALL):
        supernet.model(x)
        supernet.model.double()
        after = supernet.model(x.double())
    assert supernet.model.head.weight.dtype == torch.float64
    cast_before = Supernet(tiny().double(), TINY_INPUT)
    with cast_before.activate(SMALL):
        assert torch.equal(after, cast_before.model(x.double()))


# --- the scope of a subnet ------------------------------------------------------------------------


def test_nested_subnets_restore_what_was_before(supernet, x):
    dense, small, larger = outputs(supernet, x)
    model = supernet.model
    with supernet.activate(SMALL):
        with supernet.activate(LARGER):
            assert torch.equal(model(x), larger)
            with supernet.activate(SMALL):
                assert torch.equal(model(x), small)
            assert torch.equal(model(x), larger)
        assert torch.equal(model(x), small)
    assert torch.equal(model(x), dense)
    assert not torch.equal(dense, small)
    assert not torch.equal(small, larger)


def test_exceptions_restore_what_was_before(supernet, x):
    dense, small, _ = outputs(supernet, x)
    with supernet.activate(SMALL):
        with pytest.raises(ZeroDivisionError), supernet.activate(LARGER):
            raise ZeroDivisionError
        assert torch.equal(supernet.model(x), small)
        with pytest.raises(RuntimeError), supernet.activate(LARGER):
            supernet.model(x[:, :2])
        assert torch.equal(supernet.model(x), small)
    assert torch.equal(supernet.model(x), dense)


def test_copy_made_while_active_is_dense(supernet, x):
    dense, small, _ = outputs(supernet, x)
    with supernet.activate(SMALL):
        twin = copy.deepcopy(supernet.model)
        assert torch.equal(twin(x), dense)
        assert torch.equal(supernet.model(x), small)
    assert torch.equal(twin(x), dense)


def test_shallow_copies_of_modules_run(supernet, x):
    """As `torch.nn.parallel.replicate` and functional calls make them."""
    twin = copy.copy(supernet.model.stem[0])
    assert torch.equal(twin(x), supernet.model.stem[0](x))


def test_functional_call_runs_the_subnet(supernet, x):
    doubled = {key: 2 * value for key, value in supernet.model.named_parameters()}
    reference = Supernet(tiny(), TINY_INPUT)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(2)
    with supernet.activate(SMALL):
        actual = torch.func.functional_call(supernet.model, doubled, (x,))
    with reference.activate(SMALL):
        assert torch.equal(actual, reference.model(x))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize('architecture', [SMALL, LARGER])
def test_subnet_in_training_leaves_the_norm_statistics(architecture, supernet, x):
    supernet.model.train()
    before = copy.deepcopy(dict(supernet.model.named_buffers()))
    with supernet.activate(architecture):
        supernet.model(x).sum().backward()
    after = dict(supernet.model.named_buffers())
    assert any(key.endswith('num_batches_tracked') for key in after)
    assert all(torch.equal(before[key], value) for key, value in after.items())
    supernet.model(x)
    for key, value in supernet.model.named_buffers():  # the main network does update them
        assert not torch.equal(before[key], value), key


@pytest.mark.parametrize('architecture', [SMALL, LARGER])
def test_gradients_are_those_of_the_export_in_train_mode(architecture, supernet, x):
    supernet.model.train()
    gradient_is_that_of_the_export(Case(supernet, [x], [architecture]))


def test_one_backward_of_several_passes_sums_their_gradients(supernet, x):
    """As a training step takes them: the main network and two subnets, one backward."""
    supernet.model.double().train()
    x = x.double()
    parts = []
    for architecture in (None, SMALL, LARGER):
        supernet.model.zero_grad()
        with supernet.activate(architecture or supernet.space.largest):
            supernet.model(x).square().mean().backward()
        parts.append([0 if p.grad is None else p.grad for p in supernet.model.parameters()])
    supernet.model.zero_grad()
    loss = supernet.model(x).square().mean()
    for architecture in (SMALL, LARGER):
        with supernet.activate(architecture):
            loss = loss + supernet.model(x).square().mean()
    loss.backward()
    for parameter, *grads in zip(supernet.model.parameters(), *parts, strict=True):
        torch.testing.assert_close(parameter.grad, sum(grads))


def test_optimizer_step_changes_the_next_subnet(supernet, x):
    optimizer = torch.optim.SGD(supernet.model.parameters(), lr=0.01)
    with supernet.activate(SMALL):
        first = supernet.model(x)
        first.square().mean().backward()
        optimizer.step()
        assert supernet.model(x).square().mean() < first.square().mean()
    frozen = dict(tiny().named_parameters())
    for key, parameter in supernet.model.named_parameters():
        if key.startswith('stage2.1.'):  # left out
            assert torch.equal(parameter, frozen[key])


# --- back to static -------------------------------------------------------------------------------


def test_static_again(supernet, x):
    dense, *_ = outputs(supernet, x)
    for module in supernet.model.modules():
        unswap(module)
    for (name, module), (_, expected) in zip(
        supernet.model.named_modules(), tiny().named_modules(), strict=True
    ):
        assert type(module) is type(expected), name
        assert set(vars(module)) == set(vars(expected)), name
    assert torch.equal(supernet.model(x), dense)


@pytest.mark.parametrize('architecture', [SMALL, LARGER])
def test_exports_hold_no_dynamic_class(architecture, supernet, x):
    network = supernet.export(architecture)
    assert not any(isinstance(module, DynamicMixin) for module in network.modules())
    with supernet.activate(SMALL):  # nor do they follow the supernet
        narrow = network(x)
    assert torch.equal(network(x), narrow)


def test_exports_of_an_active_supernet_are_as_asked(supernet, x):
    _, _, larger = outputs(supernet, x)
    with supernet.activate(SMALL):
        network = supernet.export(LARGER)
    assert torch.equal(network(x), larger)


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('positions', [[0, 1, 2], [1, 3], [0, 2, 4], [4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize('dim', [0, 1])
def test_selection_is_numpy_s_take(dim, positions):
    tensor = torch.randn(5, 5, 2)
    expected = np.take(tensor.numpy(), positions, axis=dim)
    selected = Selection(dim, np.array(positions))(tensor)
    assert np.array_equal(selected.numpy(), expected)
    prefix = positions == list(range(len(positions)))
    assert (selected.data_ptr() == tensor.data_ptr()) == prefix  # a view where it can be one


def test_positions_are_uploaded_once(monkeypatch):
    """To any device but the CPU, where they are; what a trace makes of them is not kept."""
    seen = []
    own = torch.from_numpy
    monkeypatch.setattr(torch, 'from_numpy', lambda array: seen.append(len(array)) or own(array))
    plan._uploaded.cache_clear()
    weight = torch.empty(5, 4, device='meta')

    def selected(tensor, positions=(0, 2, 4)):
        return Selection(0, np.array(positions))(tensor)

    with torch.inference_mode():
        assert selected(weight).shape == (3, 4)
    assert selected(nn.Parameter(weight)).requires_grad
    assert seen == [3]
    assert not plan._uploaded(np.array([0, 2, 4]).tobytes(), weight.device).is_inference()
    selected(weight, (0, 3))
    assert seen == [3, 2]
    with FakeTensorMode() as fake:
        for _ in range(2):
            assert isinstance(selected(fake.from_tensor(weight)), FakeTensor)
    assert seen == [3, 2, 3, 3]


class Slopes(nn.Module):
    """Holds the number of its channels under a name of its own."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.full([count], 0.1))

    def forward(self, x):
        assert len(self.weight) == self.count
        return nn.functional.prelu(x, self.weight)


class WithSlopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.inner = nn.Conv2d(16, 32, 1)
        self.slopes = Slopes(32)
        self.outer = nn.Conv2d(32, 32, 1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x):
        return self.last(self.outer(self.slopes(self.inner(self.stem(x)))))


def test_registered_rule_keeps_an_attribute_in_step(monkeypatch, x):
    monkeypatch.setattr('mmstp.subnets.attributes.ATTRIBUTE_RULES', dict(ATTRIBUTE_RULES))
    fixed = Supernet(WithSlopes(), x).space.fixed
    assert FAILS in fixed['inner']

    @register_sizes(Slopes)
    def slopes(module, shapes):
        return {'count': shapes['weight'][0]}

    model = WithSlopes()
    supernet = Supernet(model, x)
    assert 'inner' not in supernet.space.fixed
    network = supernet.export(supernet.space.smallest)
    assert network.slopes.count == len(network.slopes.weight) == 16
    subnet_equals_its_export(Case(supernet, [x]))
