"""Supernets of unusual models, their order of channels, and what is refused."""

import copy
import random

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import ResNet
from torch import nn

from mmstp import Architecture, ArchitectureError, Supernet, WideResNet
from mmstp.errors import SpaceError, SupernetError, TraceError, VerificationError
from mmstp.subnets.apart import DIFFERS
from mmstp.subnets.modules import DynamicMixin
from tests.networks import TINY_INPUT, build, images, tiny
from tests.relations import Case, subnet_equals_its_export


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# --- other models ---------------------------------------------------------------------------------


def test_backbone_with_free_outputs():
    """As a detector would take it: the features themselves are narrower."""
    model = WideResNet(depth=16, widen_factor=2)
    model.eval()
    supernet = Supernet(model, torch.zeros(1, 3, 8, 8), fix_outputs=False)
    x = torch.randn(2, 3, 8, 8)
    architecture = Architecture((1, 2, 1), (1.0, 0.5, 0.3))
    subnet_equals_its_export(Case(supernet, [x], [architecture]))
    (out,) = supernet.export(architecture)(x)
    assert out.shape[1] == 40  # 0.3 * 128, rounded up to a multiple of 8


class TwoInputs(nn.Module):
    """Takes two tensors and returns a dict."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 16, 1)
        self.right = nn.Conv2d(2, 16, 1)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x, y):
        return {'out': self.out((self.left(x) + self.right(y)).relu())}


def test_several_inputs():
    model = TwoInputs().eval()
    inputs = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4)
    supernet = Supernet(model, inputs, stem=True)
    (stage,) = supernet.space.stages
    (group,) = (supernet.graph.groups[g] for g in stage.groups)
    assert group.makers == ('left', 'right')
    subnet_equals_its_export(Case(supernet, [inputs]))


class Tied(nn.Module):
    """Two layers with one weight, or one layer under two names."""

    def __init__(self, whole):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.first = nn.Conv2d(16, 16, 1)
        self.second = self.first if whole else nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.out(self.second(self.first(self.stem(x)).relu()).relu())


@pytest.mark.parametrize('whole', [False, True])
def test_shared_weights_stay_shared(whole):
    model = Tied(whole).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    supernet = Supernet(model, x, stem=True)
    subnet_equals_its_export(Case(supernet, [x]))
    assert torch.equal(model(x), expected)
    architecture = supernet.space.smallest
    network = supernet.export(architecture)
    assert network.first.weight.shape == (8, 8, 1, 1)
    assert network.first.weight is network.second.weight
    assert sum(p.numel() for p in network.parameters()) == supernet.cost.params([architecture])


# --- sizes in Python code -------------------------------------------------------------------------


class Baked(nn.Module):
    """`forward` needs to know how many channels ``inner`` has."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 64, 1)
        self.last = nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(32, 5)

    def flat(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.inner(self.stem(x).relu())
        x = self.flat(x).relu().unflatten(2, x.shape[2:])
        return self.head(self.last(x).relu().mean((2, 3)))


class Literal(Baked):
    def flat(self, x):
        return x.view(len(x), 64, -1)


class Attribute(Baked):
    channels = None

    def __init__(self):
        super().__init__()
        self.channels = 64

    def flat(self, x):
        return x.view(len(x), self.channels, -1)


class Ambiguous(Attribute):
    """One number for two things: the channels and, at 8 x 8, the positions."""

    def flat(self, x):
        return x.view(len(x), self.channels, self.channels)


@pytest.mark.parametrize('cls', [Literal, Attribute, Ambiguous])
def test_sizes_in_the_code_are_supplied(cls):
    """Whether a number stands in the code or in an attribute, and whatever else it counts."""
    model, x = cls().eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    supernet = Supernet(model, x)
    assert set(supernet.space.fixed) == {'stem', 'head'}
    assert supernet.export(supernet.space.smallest).last.weight.shape[:2] == (16, 24)
    subnet_equals_its_export(Case(supernet, [x]))
    assert torch.equal(model(x), expected)


def test_attributes_of_the_code_stay():
    """They may mean anything; the calls get their sizes without them."""
    model = Attribute().eval()
    supernet = Supernet(model, torch.randn(2, 3, 8, 8))
    architecture = supernet.space.smallest
    assert supernet.export(architecture).channels == 64
    with supernet.activate(architecture):
        assert model.channels == 64


def test_only_modules_that_hold_sizes_are_supplied_with_them():
    """Where the code works them out from its input, nothing has to be supplied."""

    class Inferred(Baked):
        def flat(self, x):
            return x.flatten(2)

    x = torch.randn(2, 3, 8, 8)
    for cls, supplied in ((Literal, {''}), (Inferred, set())):
        supernet = Supernet(cls().eval(), x)
        assert supernet.compact_spec(supernet.space.smallest).calls.keys() == supplied


def test_a_forward_that_makes_other_calls_is_refused():
    class Varying(Literal):
        """In train mode it takes a detour."""

        def flat(self, x):
            return x.view(len(x), 64, 8, 8).view(len(x), 64, -1) if self.training else (
                super().flat(x)
            )  # fmt: skip

    model, x = Varying().eval(), torch.randn(2, 3, 8, 8)
    dense = model.train()(x)
    with pytest.raises(
        SpaceError, match=r'inner: in train mode: .*the model reshapes .* where its trace has'
    ):
        Supernet(model.eval(), x)
    assert torch.equal(model.train()(x), dense)


class Shared(nn.Module):
    """Holds a size, and is called twice, with something else in between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.inner = nn.Conv2d(16, 64, 1)
        self.mix = Mix()
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x):
        x = self.inner(self.stem(x))
        x = self.mix(x).reshape(x.shape[0], 64, -1).view(x.shape)
        return self.head(self.mix(x))


class Mix(nn.Module):
    def forward(self, x):
        b, _, h, w = x.shape
        return x.view(b, 64, h * w).softmax(2).view(b, 64, h, w)


def test_a_module_that_is_called_twice_makes_its_calls_each_time():
    model = Shared().eval()
    supernet = Supernet(model, torch.randn(1, 3, 4, 4))
    assert 'inner' not in supernet.space.fixed
    subnet_equals_its_export(Case(supernet, [torch.randn(2, 3, 5, 6)]))
    calls = supernet.compact_spec(supernet.space.smallest).calls
    lengths = {path: [len(way) for way in ways] for path, ways in calls.items()}
    assert lengths == {'': [6], 'mix': [2]}


class WholeBatch(Baked):
    """Each layer can be narrow; the size that is left over is one of the batch."""

    def flat(self, x):
        return x.reshape(-1, 64, x.shape[2] * x.shape[3])


def test_sizes_between_others_are_the_code_s():
    supernet = Supernet(WholeBatch().eval(), torch.randn(1, 3, 8, 8))
    inputs = [torch.randn(shape) for shape in ((3, 3, 8, 8), (2, 3, 5, 7))]
    subnet_equals_its_export(Case(supernet, inputs))


class WrongWhenNarrow(Baked):
    """Runs at any size, but computes something else than its layers say."""

    def flat(self, x):
        return x.flatten(2) * (1 if x.shape[1] == 64 else 2)


def test_silent_difference_is_found():
    supernet = Supernet(WrongWhenNarrow().eval(), torch.zeros(1, 3, 8, 8))
    assert DIFFERS in supernet.space.fixed['inner']


class Conspiracy(Baked):
    """Each layer can be narrow, but not both."""

    def flat(self, x):
        assert x.shape[1] == 64 or len(self.last.weight) == 32
        return x.flatten(2)


def test_layers_that_only_fail_together_are_refused():
    model = Conspiracy().eval()
    with pytest.raises(SupernetError, match='each kind of channels can be narrowed alone'):
        Supernet(model, torch.zeros(1, 3, 8, 8))
    assert type(model.last) is nn.Conv2d


# --- order of channels ----------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['resnet18', 'densenet', 'regnet', 'wrn16_2'])
def test_ordering_channels_leaves_the_function(name, supernet_of):
    model, x = build(name), images(name).double()
    supernet = Supernet(model, images(name, batch=1))
    model.double()
    before = model(x)
    first = [p.clone() for p in model.parameters()]
    supernet.order_channels()
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-10 * before.abs().max().item())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), first, strict=True))
    subnet_equals_its_export(Case(supernet, [x]))


def test_channels_are_ordered_by_other_weights_than_their_own(supernet_of):
    model = build('resnet18')
    by = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trained = Supernet(copy.deepcopy(model), images('resnet18', batch=1))
    trained.order_channels()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 10  # hardly any order of its own
    supernet = Supernet(model, images('resnet18', batch=1))
    supernet.order_channels(by=by)
    for parameter, expected in zip(model.parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(parameter - 10, expected, rtol=0, atol=1e-5)


def test_channels_are_ordered_by_what_makes_and_reads_them():
    """The groups of a ResNet-18's second stage, written out."""
    model = build('resnet18')
    supernet = Supernet(model, images('resnet18', batch=1))
    supernet.order_channels()
    layer = model.backbone.layer2
    inner = [(layer[0].conv1, 0), (layer[0].conv2, 1)]
    stream = [
        *[(layer[0].conv2, 0), (layer[0].downsample[0], 0), (layer[1].conv1, 1)],
        *[(layer[1].conv2, 0), (model.backbone.layer3[0].conv1, 1)],
        (model.backbone.layer3[0].downsample[0], 1),
    ]
    for group in (inner, stream):
        importance = 0
        for conv, dim in group:
            energy = conv.weight.double().square().sum([d for d in range(4) if d != dim])
            importance = importance + energy / energy.mean()
        assert (importance.diff() <= 0).all()


# --- refused, restored ----------------------------------------------------------------------------


def test_recomputing_blocks_is_refused():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = ResNet(18, with_cp=True)
    with pytest.raises(SupernetError, match=r'the model \(ResNet\) has with_cp=True'):
        Supernet(model, torch.zeros(1, 3, 32, 32))


def test_wrapping_twice_is_refused(supernet_of):
    model = supernet_of('wrn16_2').model
    with pytest.raises(SupernetError, match='part of a supernet already'):
        Supernet(model, images('wrn16_2'))
    with pytest.raises(SupernetError, match='part of a supernet already'):
        Supernet(nn.Sequential(model), images('wrn16_2'))


def test_replaced_layers_are_found():
    model = tiny()
    supernet = Supernet(model, TINY_INPUT)
    supernet.check_intact()
    model.stage2[1].norm1 = nn.SyncBatchNorm(48)
    with pytest.raises(SupernetError, match=r'stage2\.1\.norm1 was replaced by SyncBatchNorm'):
        supernet.check_intact()


def test_modes_stay_as_they_were():
    model = tiny()
    model.stage1.train()
    model.stage1[1].norm1.eval()
    modes = [module.training for module in model.modules()]
    Supernet(model, TINY_INPUT)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_copies_do_not_share_weights_or_state():
    supernet, x = Supernet(tiny(), TINY_INPUT), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(supernet)
    dense = supernet.model(x)
    with twin.activate(twin.space.smallest):
        narrow = twin.model(x)
        assert torch.equal(supernet.model(x), dense)
    with supernet.activate(supernet.space.smallest):
        assert torch.equal(supernet.model(x), narrow)
    twin.model.head.weight.zero_()
    assert torch.equal(supernet.model(x), dense)


def test_norm_statistics_and_gradients_are_not_touched():
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    Supernet(model, TINY_INPUT)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ('architecture', 'message'),
    [
        (Architecture((1,), (1.0,)), r'has 1 stages, this space has 2 \(stage1, stage2\)'),
        (Architecture((4, 1), (1.0, 1.0)), "stage 'stage1' cannot keep 4 blocks"),
        (Architecture((1, 1), (0.4, 1.0)), "stage 'stage1' cannot keep 0.4 of its channels"),
    ],
)
def test_other_spaces_architectures_are_refused(architecture, message):
    supernet = Supernet(tiny(), TINY_INPUT)
    for use in (supernet.export, supernet.compact_spec, lambda a: supernet.activate(a).__enter__()):
        with pytest.raises(ArchitectureError, match=message):
            use(architecture)


class Forgetful(Baked):
    """Its output depends on how often it was called."""

    calls = 0

    def flat(self, x):
        self.calls += 1
        return x.flatten(2) * self.calls


class Deciding(Baked):
    """Its path depends on its input."""

    def flat(self, x):
        return x.flatten(2) if x.sum() > 0 else -x.flatten(2)


@pytest.mark.parametrize(
    ('model', 'error', 'message'),
    [
        (nn.Linear(3, 5), SpaceError, 'nothing in this model can be pruned: .*an output'),
        (nn.ReLU(), SpaceError, 'nothing in this model can be pruned: it has no layer'),
        (Forgetful(), VerificationError, 'Forgetful gives another output each time'),
        (Deciding(), TraceError, r'Deciding cannot be traced with inputs of shape \[\(1, 3, 8, 3'),
    ],
)
def test_impossible_models_are_left_as_they_were(model, error, message):
    model.train()
    with pytest.raises(error, match=message):
        Supernet(model, torch.randn(1, 3, 8, 3))
    assert all(module.training for module in model.modules())
    assert not any(isinstance(module, DynamicMixin) for module in model.modules())


def test_a_subnet_first_activated_inside_another_has_its_own_attributes():
    """Its plan is worked out from the dense attributes, not from those of the outer subnet."""
    alone, nested = Supernet(tiny(), TINY_INPUT), Supernet(tiny(), TINY_INPUT)
    inner = alone.space.sample(random.Random(1))
    with nested.activate(nested.space.smallest), nested.activate(inner):
        pass
    assert nested.compact_spec(inner) == alone.compact_spec(inner)
    assert nested._plan(inner).attributes == alone._plan(inner).attributes
