"""What released models do that small ones do not, each in the smallest network that does it."""

import functools

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mmstp import Architecture, Supernet
from tests.networks import equal
from tests.relations import (
    Case,
    costs_are_those_of_the_export,
    rebuilt_from_its_spec_it_equals_the_export,
    slicing_equals_masking,
    some,
    subnet_equals_its_export,
)


@pytest.fixture(autouse=True)
def seeded_layers():
    torch.manual_seed(0)


def holds(model, x, others=(), **options):
    """Several architectures, another batch: subnet, export, masked trace and costs are one."""
    supernet = Supernet(model.eval(), x, **options)
    larger = torch.cat([x, x, x]) + (0.1 if x.is_floating_point() else 0)
    case = Case(supernet, [x, larger, *others], some(supernet.space))
    for relation in (
        subnet_equals_its_export,
        slicing_equals_masking,
        rebuilt_from_its_spec_it_equals_the_export,
        costs_are_those_of_the_export,
    ):
        relation(case)
    return supernet


class Layer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self, layers, width=32):
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(layers)

    def between(self, i, x):
        return x

    def forward(self, x):
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            x = self.between(i, layer(x))
        return self.head(x)


# --- einops ---------------------------------------------------------------------------------------


class Rearranged(nn.Module):
    """The number of heads is in the text's variables, which einops checks."""

    def __init__(self, heads=6, width=32, inner=16):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * heads * inner), nn.Linear(heads * inner, width)

    def forward(self, x):
        h = self.heads
        q, k, v = (rearrange(t, 'b n (h d) -> b h n d', h=h) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(y, 'b h n d -> b n (h d)', h=h))


class Folded(Rearranged):
    """Heads in the batch, and a map in place of the tokens."""

    def forward(self, x):
        q, k, v = (
            rearrange(t, 'b n (h d) -> (b h) n d', h=self.heads) for t in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(y, '(b h) n d -> b n (h d)', h=self.heads))


@pytest.mark.parametrize('attention', [Rearranged, Folded])
def test_heads_that_einops_counts_can_go(attention):
    model = Net([attention(), attention()])
    supernet = holds(model, torch.randn(2, 5, 8))
    heads = [g for g in supernet.graph.groups if g.unit_size == 48]
    assert [group.units for group in heads] == [6, 6]
    for width in supernet.space.stages[-1].widths:  # also where what is left divides by 6
        depths = tuple(stage.depths[-1] for stage in supernet.space.stages)
        with supernet.activate(Architecture(depths, (width,) * len(depths))):
            model(torch.randn(1, 5, 8))


def test_einops_checks_what_it_checked_elsewhere():
    holds(Net([Rearranged()]), torch.randn(2, 5, 8))
    with pytest.raises(Exception, match='Shape mismatch'):
        rearrange(torch.zeros(2, 5), 'a (b c) -> a b c', b=3)


# --- hooks, forwards that are set, blocks' classes ------------------------------------------------


class Watched(Net):
    """Its blocks' outputs are collected by hooks."""

    def __init__(self):
        super().__init__([Layer() for _ in range(3)])
        self.seen = []
        for layer in self.layers:
            layer.register_forward_hook(functools.partial(keep, self.seen))

    def forward(self, x):
        self.seen.clear()
        super().forward(x)
        return self.head(sum(self.seen))


def keep(seen, module, args, output):
    seen.append(output)


def test_hooks_of_blocks_that_are_left_out_run_in_exports():
    supernet = Supernet(Watched().eval(), torch.randn(2, 5, 8))
    x = torch.randn(3, 5, 8)
    assert supernet.space.skipped(supernet.space.smallest)
    with supernet.activate(supernet.space.smallest):
        expected = supernet.model(x)
    network = supernet.export(supernet.space.smallest)
    for layer in network.layers:  # a copy has the hooks, and each its own list
        (hook,) = layer._forward_hooks.values()
        assert hook.func is keep
    assert equal(network(x), expected)


class AsksForClasses(Net):
    """It counts blocks by their class."""

    def forward(self, x):
        return super().forward(x) / sum(isinstance(m, Layer) for m in self.modules())


def test_blocks_that_a_forward_counts_stay_with_the_reason():
    supernet = Supernet(AsksForClasses([Layer() for _ in range(3)]).eval(), torch.randn(2, 5, 8))
    assert not supernet.graph.chains
    assert all('cut out, ' in reason for reason in supernet.graph.unskippable.values())
    assert set(supernet.graph.unskippable) == {'layers.1', 'layers.2'}


class Chooses(nn.Module):
    """Its forward is set when it is made, as timm's FasterNet does."""

    def __init__(self, width=32):
        super().__init__()
        self.part, self.rest = width // 4, width - width // 4
        self.conv, self.up, self.down = (
            nn.Linear(self.part, self.part),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )
        self.forward = self.forward_in_parts

    def forward_in_parts(self, x, scale=1.0):
        first, rest = torch.split(x, [self.part, self.rest], -1)
        return x + self.down(self.up(torch.cat([self.conv(first), rest], -1)).relu()) * scale


def test_a_forward_that_was_set_on_a_module_is_its_forward():
    model = Net([Chooses() for _ in range(3)])
    supernet = holds(model, torch.randn(2, 5, 8))
    assert supernet.space.skipped(supernet.space.smallest) == ('layers.1', 'layers.2')
    export = supernet.export(supernet.space.largest)
    assert all('forward' in vars(layer) for layer in export.layers)


# --- what tracing meets ---------------------------------------------------------------------------


class Asks(Net):
    """Runs other operators while it is exported."""

    def between(self, i, x):
        if torch.compiler.is_compiling():
            return F.layer_norm(x.reshape(len(x), -1, 32), [32])
        return F.layer_norm(x, [32])


def test_models_that_ask_are_traced_as_they_run():
    supernet = holds(Asks([Layer() for _ in range(2)]), torch.randn(2, 5, 8))
    assert len(supernet.graph.groups) >= 2
    assert not torch.compiler.is_compiling()


@functools.lru_cache
def grid(length):
    return torch.arange(length)


class OutsideCache(Net):
    def __init__(self):
        super().__init__([Layer() for _ in range(2)])
        self.positions = nn.Parameter(torch.randn(16, 32))

    def between(self, i, x):
        return x + self.positions[grid(x.shape[1])]


def test_caches_outside_a_model_hold_values_afterwards():
    grid.cache_clear()
    Supernet(OutsideCache().eval(), torch.randn(2, 5, 8))
    assert type(grid(5)) is torch.Tensor
    assert grid(5).tolist() == [0, 1, 2, 3, 4]


class Positions(Net):
    """Something is added to the stream between its blocks."""

    def __init__(self):
        super().__init__([Layer() for _ in range(3)])
        self.positions = nn.Parameter(torch.randn(3, 32))

    def between(self, i, x):
        return x + self.positions[i]


def test_additions_between_blocks_do_not_part_them():
    supernet = holds(Positions(), torch.randn(2, 5, 8))
    assert supernet.space.skipped(supernet.space.smallest) == ('layers.1', 'layers.2')


class Conv1D(nn.Module):
    """GPT-2's linear layer, with the weight the other way round."""

    def __init__(self, inner, outer):
        super().__init__()
        self.outer = outer
        self.weight = nn.Parameter(torch.randn(inner, outer) / 6)
        self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, x):
        shape = (*x.shape[:-1], self.outer)
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(shape)


def test_gpt_s_linear_layer_makes_channels():
    model = nn.Sequential(nn.Linear(8, 16), Conv1D(16, 48), nn.ReLU(), Conv1D(48, 4))
    supernet = holds(model, torch.randn(2, 5, 8))
    assert [group.name for group in supernet.graph.groups] == ['0', '1']


def test_parameters_without_elements_are_all_right():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 4))
    model.register_parameter('none', nn.Parameter(torch.zeros(1, 0, 32)))
    assert holds(model, torch.randn(2, 8)).graph.groups
