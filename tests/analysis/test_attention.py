"""Attention and what comes with it: heads are the units, their width stays.

Written out by hand in the ways that backbones do, each run as its smallest subnet and cut out.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmstp import ChannelGraph, Supernet
from mmstp.analysis.ids import FIXED_SIZE
from mmstp.analysis.operators.products import SCALE
from mmstp.subnets.apart import DIFFERS
from tests.analysis.small import Net, analyse, conv, kept, parameter, runs_as_subnet, shapes

HEADS, WIDTH, TOKENS, INNER = 4, 6, 5, 24
SHAPE = (1, TOKENS, 10)
OTHERS = [(3, TOKENS + 2, 10)]


@pytest.fixture(autouse=True)
def seeded_layers():
    torch.manual_seed(0)


def attend(q, k, v):
    """Of the last two dimensions: tokens and the width of a head."""
    return (q @ k.transpose(-2, -1) * WIDTH**-0.5).softmax(-1) @ v


# --- from one layer for queries, keys and values --------------------------------------------------


def selected(qkv):
    b, n, c = qkv.shape
    qkv = qkv.reshape(b, n, 3, HEADS, c // 3 // HEADS).permute(2, 0, 3, 1, 4)
    return attend(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(b, n, INNER)


def unbound(qkv):
    b, n, _ = qkv.shape
    q, k, v = qkv.view(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def chunked_by_number(qkv):
    b, n, _ = qkv.shape
    qkv = qkv.reshape(b, n, 3 * HEADS, -1).transpose(1, 2)
    return attend(*qkv.chunk(3, 1)).transpose(1, 2).reshape(b, n, -1)


def chunked_then_split_into_heads(qkv):
    b, n, _ = qkv.shape
    q, k, v = (x.view(b, -1, HEADS, WIDTH).transpose(1, 2) for x in qkv.chunk(3, -1))
    return attend(q, k, v).transpose(1, 2).contiguous().view(b, n, HEADS * WIDTH)


def split_by_size(qkv):
    q, k, v = qkv.split(INNER, dim=2)
    q, k, v = (x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for x in (q, k, v))
    return attend(q, k, v).transpose(1, 2).flatten(2)


def folded_into_the_batch(qkv):
    b, n, _ = qkv.shape
    q, k, v = (
        x.view(b, n, HEADS, WIDTH).transpose(1, 2).reshape(b * HEADS, n, WIDTH)
        for x in qkv.chunk(3, -1)
    )
    out = torch.bmm((torch.bmm(q, k.transpose(1, 2)) / WIDTH**0.5).softmax(2), v)
    return out.view(b, HEADS, n, WIDTH).transpose(1, 2).reshape(b, n, INNER)


def fused(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def fused_with_scale(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2)


def einsums(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).unbind(2)
    shares = torch.einsum('bqhd,bkhd->bhqk', q, k).softmax(-1)
    return torch.einsum('bhqk,bkhd->bqhd', shares, v).flatten(2)


def einsums_with_ellipsis(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    shares = torch.einsum('...qd,...kd->...qk', q, k).softmax(-1)
    return torch.einsum('...qk,...kd->...qd', shares, v).transpose(1, 2).flatten(2)


def with_normalised_heads(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = F.layer_norm(q, (WIDTH,)), k / (k.norm(dim=-1, keepdim=True) + 1e-3)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def with_unit_heads(qkv):
    """Swin V2's cosine attention."""
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    return attend(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v).transpose(1, 2).flatten(2)


def masked(qkv):
    q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    n = q.shape[2]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-2, -1)).masked_fill(~seen, float('-inf'))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def over_channels_of_a_head(qkv):
    """XCiT: contracted over the tokens."""
    b, n, _ = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 4, 1).unbind(0)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return out.permute(0, 3, 1, 2).reshape(b, n, INNER)


JOINT = [
    *[selected, unbound, chunked_by_number, chunked_then_split_into_heads, split_by_size],
    *[folded_into_the_batch, fused, fused_with_scale, einsums, einsums_with_ellipsis],
    *[with_normalised_heads, with_unit_heads, masked, over_channels_of_a_head],
]


@pytest.mark.parametrize('attention', JOINT, ids=lambda f: f.__name__)
def test_heads_of_a_joint_layer(attention):
    layers = dict(qkv=nn.Linear(10, 3 * INNER), proj=nn.Linear(INNER, 5))
    function = lambda m, x: m.proj(attention(m.qkv(x)))  # noqa: E731
    graph = analyse(layers, function, SHAPE)
    assert graph.unknown == {}
    assert shapes(graph) == {'qkv': (HEADS, 3 * WIDTH)}
    own = [*range(2 * WIDTH)]
    assert kept(graph, 'proj.weight', 1, 'qkv', 2) == own
    for key in ('qkv.weight', 'qkv.bias'):
        rows = kept(graph, key, 0, 'qkv', 2)
        assert rows == [i + part * INNER for part in range(3) for i in own]
    supernet = runs_as_subnet(layers, function, SHAPE, OTHERS)
    assert supernet.export(supernet.space.smallest).proj.in_features == 2 * WIDTH  # of 1.2 heads


def test_slices_with_sizes_in_the_code_are_found():
    """Their bounds are not supplied: the check finds that they are wrong in a subnet."""

    def function(m, x):
        qkv = m.qkv(x)
        q, k, v = qkv[..., :INNER], qkv[..., INNER : 2 * INNER], qkv[..., 2 * INNER :]
        q, k, v = (x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for x in (q, k, v))
        return m.proj(m.mlp(attend(q, k, v).transpose(1, 2).flatten(2)))

    layers = dict(qkv=nn.Linear(10, 3 * INNER), mlp=nn.Linear(INNER, 16), proj=nn.Linear(16, 5))
    supernet = Supernet(Net(layers, function).eval(), torch.randn(SHAPE), stem=True, divisor=1)
    assert 'fails when narrowed' in supernet.graph.fixed['qkv']
    assert shapes(supernet.graph) == {'mlp': (16, 1)}


# --- from layers of their own ---------------------------------------------------------------------


def heads(x, count=HEADS, width=WIDTH):
    return x.view(x.shape[0], x.shape[1], count, width).transpose(1, 2)


def separate(values=INNER):
    layers = dict(q=nn.Linear(10, INNER), k=nn.Linear(10, INNER), v=nn.Linear(10, values))
    return layers | dict(proj=nn.Linear(values, 5))


def test_separate_layers_share_heads():
    layers = separate()

    def function(m, x):
        out = attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))
        return m.proj(out.transpose(1, 2).reshape(len(x), -1, INNER))

    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'q': (HEADS, WIDTH)}
    assert graph.groups[0].makers == ('q', 'k', 'v')
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_values_of_another_width():
    """LeViT, EdgeNeXt: queries and keys of one width, values of another."""
    layers = separate(values=2 * INNER)

    def function(m, x):
        out = attend(heads(m.q(x)), heads(m.k(x)), heads(m.v(x), width=2 * WIDTH))
        return m.proj(out.transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'v': (HEADS, 2 * WIDTH)}
    assert kept(graph, 'v.weight', 0, 'v', 1) == list(range(2 * WIDTH))
    assert kept(graph, 'q.weight', 0, 'v', 1) == list(range(WIDTH))
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_fewer_keys_than_queries():
    """PVT: keys and values from fewer tokens."""
    layers = separate()

    def function(m, x):
        fewer = x[:, ::2]
        out = attend(heads(m.q(x)), heads(m.k(fewer)), heads(m.v(fewer)))
        return m.proj(out.transpose(1, 2).flatten(2))

    assert shapes(analyse(layers, function, SHAPE)) == {'q': (HEADS, WIDTH)}
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_a_single_head_keeps_what_it_sums_over():
    """Without a dimension of heads: queries and keys go together, values on their own."""
    layers = separate(values=16)
    function = lambda m, x: m.proj(attend(m.q(x), m.k(x), m.v(x)))  # noqa: E731
    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'q': (INNER, 1), 'v': (16, 1)}
    assert graph.groups[0].makers == ('q', 'k')
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_the_scale_of_a_single_fused_head_stays():
    layers = separate(values=16)

    def function(m, x):
        return m.proj(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))

    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'v': (16, 1)}
    assert graph.fixed['q'] == graph.fixed['k'] == SCALE
    runs_as_subnet(layers, function, SHAPE, OTHERS)

    def with_scale(m, x):
        return m.proj(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), scale=0.2))

    assert shapes(analyse(layers, with_scale, SHAPE)) == {'q': (INNER, 1), 'v': (16, 1)}
    runs_as_subnet(layers, with_scale, SHAPE, OTHERS)


def test_a_scale_worked_out_from_the_width_is_found():
    layers = separate(values=16)

    def function(m, x):
        q = m.q(x)
        return m.proj((q @ m.k(x).transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ m.v(x))

    supernet = Supernet(Net(layers, function).eval(), torch.randn(SHAPE), stem=True, divisor=1)
    assert DIFFERS in supernet.graph.fixed['q']
    assert shapes(supernet.graph) == {'v': (16, 1)}


def test_attention_of_channels():
    """XCA without heads, as in DANet: as many scores as pairs of channels."""
    layers = dict(q=conv(3, 16), k=conv(3, 24), v=conv(3, 24), proj=conv(16, 5))

    def function(m, x):
        b, _, h, w = x.shape
        q, k, v = m.q(x).flatten(2), m.k(x).flatten(2), m.v(x).flatten(2)
        out = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return m.proj(out.view(b, 16, h, w))

    graph = analyse(layers, function)
    assert {g.makers: g.units for g in graph.groups} == {('q',): 16, ('k', 'v'): 24}
    assert len(graph.traced[0].reductions) == 1  # the softmax goes over what k makes
    runs_as_subnet(layers, function, others=[(1, 3, 6, 5)])


def test_groups_of_queries_share_keys():
    """Two keys and values for four heads: two queries go with each."""
    layers = separate() | dict(k=nn.Linear(10, INNER // 2), v=nn.Linear(10, INNER // 2))

    def function(m, x):
        q, k, v = heads(m.q(x)), heads(m.k(x), 2), heads(m.v(x), 2)
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        return m.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'q': (2, 2 * WIDTH)}
    assert kept(graph, 'q.weight', 0, 'q', 1) == list(range(2 * WIDTH))
    assert kept(graph, 'k.weight', 0, 'q', 1) == list(range(WIDTH))
    runs_as_subnet(layers, function, SHAPE, OTHERS)


# --- around attention -----------------------------------------------------------------------------


def scores(qkv):
    b, n, _ = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    return q @ k.transpose(-2, -1), v


def test_table_of_relative_positions():
    """One bias per distance and head, as in Swin: (distances, heads)."""
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None] + TOKENS - 1
    layers = dict(qkv=nn.Linear(10, 3 * INNER), proj=nn.Linear(INNER, 5))
    layers |= dict(table=parameter(2 * TOKENS - 1, HEADS), index=distance)

    def function(m, x):
        shares, v = scores(m.qkv(x))
        bias = m.table[m.index.view(-1)].view(TOKENS, TOKENS, -1).permute(2, 0, 1)
        out = (shares + bias[None].contiguous()).softmax(-1) @ v
        return m.proj(out.transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert graph.unknown == {}
    assert shapes(graph) == {'qkv': (HEADS, 3 * WIDTH)}
    assert set(graph.dims['table']) == {1}
    assert kept(graph, 'table', 1, 'qkv', 3) == [0, 1, 2]
    assert 'index' not in graph.dims
    supernet = runs_as_subnet(layers, function, SHAPE)
    assert supernet.export(supernet.space.smallest).table.shape == (2 * TOKENS - 1, 2)


def test_temperature_of_every_head():
    layers = dict(qkv=nn.Linear(10, 3 * INNER), proj=nn.Linear(INNER, 5))
    layers |= dict(temperature=parameter(HEADS, 1, 1))

    def function(m, x):
        shares, v = scores(m.qkv(x))
        out = (shares * m.temperature.exp()).softmax(-1) @ v
        return m.proj(out.transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert kept(graph, 'temperature', 0, 'qkv', 1) == [0]
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_talking_heads():
    """CaiT: a layer mixes the scores of all heads; its rows go with the values."""
    layers = dict(qkv=nn.Linear(10, 3 * INNER), mix=nn.Linear(HEADS, HEADS))
    layers['proj'] = nn.Linear(INNER, 5)

    def function(m, x):
        shares, v = scores(m.qkv(x))
        shares = m.mix(shares.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return m.proj((shares.softmax(-1) @ v).transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert graph.unknown == {}
    (group,) = graph.groups
    assert (group.makers, group.units) == (('qkv', 'mix'), HEADS)
    for dim in (0, 1):
        assert kept(graph, 'mix.weight', dim, 'qkv', 2) == [0, 1]
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def test_norm_of_every_head():
    """ViT with qk-norm: parameters of the width of a head."""
    layers = dict(qkv=nn.Linear(10, 3 * INNER), proj=nn.Linear(INNER, 5), norm=nn.LayerNorm(WIDTH))

    def function(m, x):
        q, k, v = m.qkv(x).unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        return m.proj(attend(m.norm(q), m.norm(k), v).transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert shapes(graph) == {'qkv': (HEADS, 3 * WIDTH)}
    assert 'norm.weight' not in graph.dims
    assert graph.traced[0].reductions == ()  # every head is normalised on its own
    runs_as_subnet(layers, function, SHAPE, OTHERS)


def rotated_pairs(x, cos, sin):
    left, right = x.unflatten(-1, (WIDTH // 2, 2)).unbind(-1)
    return x * cos + torch.stack([-right, left], -1).flatten(-2) * sin


def rotated_halves(x, cos, sin):
    return x * cos + torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1) * sin


@pytest.mark.parametrize('rotated', [rotated_pairs, rotated_halves], ids=lambda f: f.__name__)
def test_rotary_positions(rotated):
    """Constants of (tokens, width of a head)."""
    angle = torch.outer(torch.arange(TOKENS), torch.arange(1, WIDTH // 2 + 1).double()).float()
    angle = angle.repeat_interleave(2, dim=1)
    layers = dict(qkv=nn.Linear(10, 3 * INNER), proj=nn.Linear(INNER, 5))
    cos, sin = angle.cos(), angle.sin()

    def function(m, x):
        q, k, v = m.qkv(x).unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(rotated(q, cos, sin), rotated(k, cos, sin), v)
        return m.proj(out.transpose(1, 2).flatten(2))

    graph = analyse(layers, function, SHAPE)
    assert graph.unknown == {}
    assert shapes(graph) == {'qkv': (HEADS, 3 * WIDTH)}
    runs_as_subnet(layers, function, SHAPE)


def embedded(m, x):
    """A class token and positions, as ViT has them; attention on top."""
    x = m.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.cls.expand(len(x), -1, -1), x], 1) + m.position
    return x


def test_class_token_and_positions():
    layers = dict(patch=nn.Conv2d(3, 16, 2, 2), cls=parameter(1, 1, 16), head=nn.Linear(16, 5))
    layers['position'] = parameter(1, 5, 16)
    function = lambda m, x: m.head(embedded(m, x)[:, 0])  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'patch': (16, 1)}
    assert kept(graph, 'cls', 2, 'patch', 2) == kept(graph, 'position', 2, 'patch', 2) == [0, 1]
    assert set(graph.dims['position']) == {2}  # all places stay
    runs_as_subnet(layers, function)


def test_a_token_that_is_copied_by_number():
    """`expand` and `repeat` with every size written out."""
    layers = dict(patch=nn.Conv2d(3, 16, 2, 2), cls=parameter(16), head=nn.Linear(16, 5))

    def function(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        first = m.cls.expand(len(x), 1, 16)
        second = m.cls.repeat(len(x), 1, 1)
        return m.head(torch.cat([first, x, second], 1).mean(1))

    graph = analyse(layers, function)
    assert kept(graph, 'cls', 0, 'patch', 2) == [0, 1]
    runs_as_subnet(layers, function, others=[(3, 3, 6, 8)])


class Attention(nn.Module):
    """Pre-norm attention with layer scale."""

    def __init__(self, channels=16):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * INNER)
        self.proj = nn.Linear(INNER, channels)
        self.gamma = parameter(channels)

    def forward(self, x):
        return x + self.gamma * self.proj(selected(self.qkv(self.norm(x))))


def test_embedding_with_layer_scale():
    """The stream is narrowed on demand alone: layers normalise over it."""
    layers = dict(patch=nn.Conv2d(3, 16, 2, 2), body=nn.Sequential(Attention(), Attention()))
    layers['head'] = nn.Linear(16, 5)

    def function(m, x):
        return m.head(m.body(m.patch(x).flatten(2).transpose(1, 2)).mean(1))

    graph = analyse(layers, function)
    stream, *attentions = graph.groups
    assert stream.makers == ('patch', 'body.0.proj', 'body.1.proj')
    assert stream.embedding
    assert [g.name for g in attentions] == ['body.0.qkv', 'body.1.qkv']
    assert not any(g.embedding for g in attentions)
    for key in ('gamma', 'norm.weight', 'norm.bias'):
        assert kept(graph, f'body.0.{key}', 0, 'patch', 3) == [0, 1, 2]
    assert [path for chain in graph.chains for path in chain.paths] == ['body.0', 'body.1']

    other = [(2, 3, 6, 8)]
    supernet = runs_as_subnet(layers, function, others=other)
    assert supernet.space.fixed['patch'].startswith('the embedding stays whole')
    small = supernet.export(supernet.space.smallest)
    assert (small.patch.out_channels, small.body[0].proj.in_features) == (16, 2 * WIDTH)
    supernet = runs_as_subnet(layers, function, others=other, embedding=True)
    small = supernet.export(supernet.space.smallest)
    assert (small.patch.out_channels, small.body[0].proj.in_features) == (5, 2 * WIDTH)
    assert small.body[0].norm.normalized_shape == (5,)


# --- instead of attention ------------------------------------------------------------------------


def test_tokens_are_mixed():
    """MLP-Mixer: layers over the tokens, whose number stays."""
    layers = dict(patch=nn.Conv2d(3, 16, 2, 2), up=nn.Linear(4, 12), down=nn.Linear(12, 4))
    layers['head'] = nn.Linear(16, 5)

    def function(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = x + m.down(F.gelu(m.up(x.transpose(1, 2)))).transpose(1, 2)
        return m.head(x.mean(1))

    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'patch': (16, 1), 'up': (12, 1)}
    assert graph.fixed['down'] == FIXED_SIZE
    assert set(graph.dims['up.weight']) == {0}
    runs_as_subnet(layers, function)


def test_outputs_that_are_not_fixed_have_their_heads():
    """An output of heads and their width: whole heads can be left out of it."""

    def function(m, x):
        q, k = (layer(x).unflatten(2, (4, 8)).transpose(1, 2) for layer in (m.q, m.k))
        return (q @ k.transpose(-1, -2)).softmax(-1) @ q

    net = Net(dict(q=nn.Linear(8, 32), k=nn.Linear(8, 32)), function).eval()
    graph = ChannelGraph.from_model(net, [torch.randn(2, 5, 8)], fix_outputs=False)
    assert [(group.name, group.units) for group in graph.groups] == [('q', 4)]
    (output,) = graph.traced[0].outputs
    assert {dim: dim_map.unit.tolist() for dim, dim_map in output.items()} == {1: [0, 1, 2, 3]}
