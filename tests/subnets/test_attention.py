"""Forwards that replace a module's own while it is narrow."""

import copy

import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.subnets.attention import FORWARDS, forward_of, multihead_attention, register_forward
from mmstp.subnets.attributes import ATTRIBUTE_RULES, register_sizes
from mmstp.subnets.check import FAILS
from tests.analysis.small import Net, analyse, conv, kept, runs_as_subnet
from tests.relations import in_double

HEADS, WIDTH, KEPT = 4, 6, 3
INNER = HEADS * WIDTH


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def attention(**options):
    module = nn.MultiheadAttention(INNER, HEADS, **options).eval()
    for parameter in module.parameters():
        parameter.normal_(std=0.3)
    return module


def first_heads(module):
    """A module with the first heads alone, and the dense one with the others' weights at zero."""
    masked, narrow = copy.deepcopy(module), copy.deepcopy(module)
    left = KEPT * WIDTH
    rows = torch.arange(3 * INNER) % INNER < left
    if module.in_proj_weight is None:
        for name in ('q_proj_weight', 'k_proj_weight', 'v_proj_weight'):
            getattr(masked, name)[left:] = 0
            setattr(narrow, name, nn.Parameter(getattr(module, name)[:left]))
    else:
        masked.in_proj_weight[~rows] = 0
        narrow.in_proj_weight = nn.Parameter(module.in_proj_weight[rows])
    if module.in_proj_bias is not None:
        masked.in_proj_bias[~rows] = 0
        narrow.in_proj_bias = nn.Parameter(module.in_proj_bias[rows])
    narrow.out_proj.weight = nn.Parameter(module.out_proj.weight[:, :left])
    narrow.num_heads = KEPT
    return narrow, masked


def inputs(batch_first=True, kdim=None, vdim=None, batched=True):
    """Two samples of 5 queries and 7 keys."""
    sizes = ((5, INNER), (7, kdim or INNER), (7, vdim or INNER))
    x = [torch.randn(2, *size) for size in sizes]
    if not batched:
        return [one[0] for one in x]
    return x if batch_first else [one.transpose(0, 1) for one in x]


def agree(module, args, **options):
    """The narrow module gives what the dense one gives with the other heads at zero."""
    narrow, masked = (one.double() for one in first_heads(module))
    args, options = in_double((args, options))
    out, shares = multihead_attention(narrow, *args, **options)
    expected, all_shares = masked(*args, **options)
    torch.testing.assert_close(out, expected)
    if not options.get('need_weights', True):
        assert shares is None
    elif options.get('average_attn_weights', True):
        assert shares.shape == all_shares.shape
    else:
        torch.testing.assert_close(shares, all_shares[..., :KEPT, :, :])


MASKS = {
    'none': {},
    'bool': dict(attn_mask=torch.ones(5, 7, dtype=torch.bool).triu(3)),
    'float': dict(attn_mask=torch.linspace(-2, 2, 35).reshape(5, 7)),
    'padding': dict(key_padding_mask=torch.arange(7)[None] > torch.tensor([[4], [6]])),
    'float padding': dict(key_padding_mask=torch.linspace(-3, 3, 14).reshape(2, 7)),
    'both': dict(
        attn_mask=torch.ones(5, 7, dtype=torch.bool).triu(5),
        key_padding_mask=torch.arange(7)[None] > torch.tensor([[4], [6]]),
    ),
    'of every head': dict(attn_mask=torch.linspace(-2, 2, 280).cos().reshape(2 * HEADS, 5, 7)),
    'bool of every head': dict(
        attn_mask=torch.linspace(0, 90, 280).sin().reshape(2 * HEADS, 5, 7) > 0.8
    ),
}


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('need_weights', [True, False])
def test_narrow_equals_masked(mask, batch_first, need_weights):
    module = attention(batch_first=batch_first)
    agree(module, inputs(batch_first), need_weights=need_weights, **MASKS[mask])


@pytest.mark.parametrize(
    'options',
    [dict(kdim=9, vdim=11), dict(bias=False), dict(kdim=9, vdim=11, bias=False)],
    ids=['widths', 'no bias', 'both'],
)
def test_other_layers(options):
    args = inputs(kdim=options.get('kdim'), vdim=options.get('vdim'))
    module = attention(batch_first=True, **options)
    agree(module, args)
    agree(module, args, need_weights=False)


def test_weights_of_every_head():
    module = attention(batch_first=True)
    agree(module, inputs(), average_attn_weights=False, **MASKS['bool'])
    narrow, _ = first_heads(module)
    narrow.double()
    x = in_double(inputs())
    _, average = multihead_attention(narrow, *x)
    _, single = multihead_attention(narrow, *x, average_attn_weights=False)
    torch.testing.assert_close(average, single.mean(1))  # of the heads that are left


@pytest.mark.parametrize('batch_first', [True, False])
def test_without_a_batch(batch_first):
    module = attention(batch_first=batch_first)
    args = inputs(batched=False)
    agree(module, args, **MASKS['float'])
    agree(module, args, need_weights=False)
    agree(module, args, average_attn_weights=False)


def test_causal():
    module = attention(batch_first=True)
    x = torch.randn(2, 5, INNER)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    agree(module, [x, x, x], attn_mask=mask, is_causal=True, need_weights=False)


@pytest.mark.parametrize('need_weights', [True, False])
def test_dropout_follows_the_mode_and_the_seed(need_weights):
    narrow, _ = first_heads(attention(batch_first=True, dropout=0.5))
    x = inputs()

    def run(seed):
        torch.manual_seed(seed)
        return multihead_attention(narrow, *x, need_weights=need_weights)[0]

    assert torch.equal(run(0), run(1))  # in eval mode
    narrow.train()
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize('option', ['add_bias_kv', 'add_zero_attn'])
def test_what_no_backbone_uses_is_refused(option):
    module = attention(**{option: True})
    with pytest.raises(NotImplementedError, match='add_bias_kv or add_zero_attn cannot be narrow'):
        multihead_attention(module, *inputs())


# --- in a network ---------------------------------------------------------------------------------


@pytest.mark.parametrize('need_weights', [True, False])
@pytest.mark.parametrize('batch_first', [True, False])
def test_heads_of_the_module(batch_first, need_weights):
    layers = dict(att=attention(batch_first=batch_first), out=nn.Linear(INNER, 5))

    def function(m, x):
        return m.out(m.att(x, x, x, need_weights=need_weights)[0])

    graph = analyse(layers, function, (1, 5, INNER))
    heads = next(g for g in graph.groups if 'att' in g.makers)
    assert heads.units == HEADS
    # what the module puts out is a group of its own, which the next layer reads
    assert kept(graph, 'out.weight', 1, 'att.out_proj', 2) == [0, 1]
    supernet = runs_as_subnet(layers, function, (1, 5, INNER), others=[(3, 4, INNER)])
    small = supernet.export(supernet.space.smallest).att
    assert (small.num_heads, small.head_dim) == (2, WIDTH)
    assert small.in_proj_weight.shape == (3 * 2 * WIDTH, INNER)


def test_inside_torch_s_own_layer():
    layer = nn.TransformerEncoderLayer(INNER, HEADS, 32, dropout=0.0)
    layers = dict(layer=layer, out=nn.Linear(INNER, 5))
    function = lambda m, x: m.out(m.layer(x).mean(1))  # noqa: E731
    supernet = runs_as_subnet(layers, function, (1, 5, INNER), others=[(3, 4, INNER)])
    small = supernet.export(supernet.space.smallest).layer
    assert (small.self_attn.num_heads, small.linear1.out_features) == (2, 10)


class Halves(nn.Module):
    """Hands the number of its channels to a function that checks it."""

    def __init__(self):
        super().__init__()
        self.channels = 16
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        assert x.shape[1] == 16
        return x.relu() * self.weight[:, None, None]


@pytest.fixture
def registries(monkeypatch):
    """As they were, when the test is over."""
    monkeypatch.setattr('mmstp.subnets.attention.FORWARDS', dict(FORWARDS))
    monkeypatch.setattr('mmstp.subnets.attributes.ATTRIBUTE_RULES', dict(ATTRIBUTE_RULES))


def test_a_registered_forward_runs_while_the_module_is_narrow(registries):
    layers = dict(a=conv(3, 16), odd=Halves(), b=conv(16, 20), c=conv(20, 5))
    function = lambda m, x: m.c(m.b(m.odd(m.a(x))))  # noqa: E731
    x = torch.randn(1, 3, 4, 4)
    fixed = Supernet(Net(copy.deepcopy(layers), function).eval(), x, stem=True).graph.fixed
    assert f'{FAILS}: AssertionError' in fixed['a']
    assert forward_of(layers['odd']) is None
    runs = []

    @register_sizes(Halves)
    def attributes(module, shapes):
        return {'channels': shapes['weight'][0]}

    @register_forward(Halves)
    def forward(module, x):
        runs.append(module.channels)
        return x.relu() * module.weight[:, None, None]

    assert forward_of(layers['odd']) is forward
    supernet = runs_as_subnet(layers, function, divisor=8)
    assert set(runs) == {8}
    runs.clear()
    supernet.model(x)
    supernet.export(supernet.space.largest)(x)
    assert not runs  # its own does at full width
