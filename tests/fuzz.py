"""Small random networks, each from a seed: what people write, put together as nobody has.

A network is a stem, pieces one behind the other, and a head. Pieces are functions in `PIECES`, by
the layout that they take: maps (n, c, h, w), lines (n, c, l), tokens (n, l, c) and vectors (n, c).
Each draws its own variant from a seed of its own, so that a network stays valid, and the other
pieces stay what they are, when one is taken out (`smaller`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

CHANNELS = (16, 20, 24, 32)
CLASSES = 5


# --- how a network is drawn -----------------------------------------------------------------------


@dataclass
class Draw:
    """Random choices that remember what was chosen, and what might have been."""

    seed: str
    found: set[str] = field(default_factory=set)
    possible: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.name = self.seed.partition('/')[2].rpartition('/')[0] or 'network'

    def pick(self, what: str, options: Sequence[Any]) -> Any:
        chosen = self.random.choice(options)
        self.found.add(f'{self.name}: {what}={chosen}')
        self.possible.update(f'{self.name}: {what}={option}' for option in options)
        return chosen

    def flag(self, what: str) -> bool:
        return self.pick(what, (False, True))

    def channels(self) -> int:
        return self.random.choice(CHANNELS)


@dataclass
class Place:
    """What a piece is given, and what it gives: pieces change it."""

    channels: int
    size: int
    layout: str = 'map'


Builder = Callable[[Draw, Place], nn.Module]
PIECES: dict[str, dict[str, Builder]] = {'map': {}, 'line': {}, 'tokens': {}, 'vector': {}}


def piece(*layouts: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        for layout in layouts:
            PIECES[layout][build.__name__] = build
        return build

    return register


class Piece(nn.Module):
    """Layers and parameters by name, and a function of them and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


# --- norms and activations ------------------------------------------------------------------------


class ChannelsLast(nn.Module):
    """Of maps and lines: a norm over the last dimension, applied to channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class WhitenedLayerNorm(nn.Module):
    """Written by hand: over channels, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), parameter(channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


NORMS = (
    'batch', 'layer', 'by hand', 'one group', 'groups', 'many groups', 'instance', 'RMS', 'none',
)  # fmt: skip


def norm(draw: Draw, channels: int, dims: int = 2) -> nn.Module:
    kind = draw.pick('norm', NORMS if dims == 2 else [n for n in NORMS if n != 'by hand'])
    return {
        'batch': lambda: (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](channels),
        'layer': lambda: ChannelsLast(nn.LayerNorm(channels)),
        'by hand': lambda: WhitenedLayerNorm(channels),
        'one group': lambda: nn.GroupNorm(1, channels),
        'groups': lambda: nn.GroupNorm(4, channels),
        'many groups': lambda: nn.GroupNorm(channels // 2, channels),
        'instance': lambda: (nn.InstanceNorm1d, nn.InstanceNorm2d)[dims - 1](channels, affine=True),
        'RMS': lambda: ChannelsLast(nn.RMSNorm(channels)),
        'none': nn.Identity,
    }[kind]()


def token_norm(draw: Draw, channels: int) -> nn.Module:
    return getattr(nn, draw.pick('norm', ('LayerNorm', 'RMSNorm')))(channels)


def activation(draw: Draw) -> nn.Module:
    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.PReLU)
    return draw.random.choice(kinds)()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2)


# --- pieces over maps -----------------------------------------------------------------------------


@piece('map')
def convolution(draw: Draw, at: Place) -> nn.Module:
    inner, groups = at.channels, draw.pick('groups', (1, 2, 4, 'depthwise'))
    outer = inner if groups == 'depthwise' else draw.channels()
    stride = draw.pick('stride', (1, 2)) if at.size > 4 else 1
    layer = nn.Conv2d(
        inner, outer, 3, stride, 1, bias=draw.flag('bias'),
        groups=inner if groups == 'depthwise' else groups,
    )  # fmt: skip
    at.channels, at.size = outer, at.size // stride
    return nn.Sequential(layer, norm(draw, outer), activation(draw))


@piece('map')
def transposed_convolution(draw: Draw, at: Place) -> nn.Module:
    inner, groups = at.channels, draw.pick('groups', (1, 2, 4, 'depthwise'))
    outer = inner if groups == 'depthwise' else draw.channels()
    stride = 2 if at.size <= 8 else 1
    groups = inner if groups == 'depthwise' else groups
    layer = nn.ConvTranspose2d(inner, outer, 2 + stride, stride, 1, groups=groups)
    at.channels, at.size = outer, at.size * 2 if stride == 2 else at.size
    return nn.Sequential(layer, norm(draw, outer), activation(draw))


class Residual(nn.Module):
    """A branch and a way around it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.last = branch, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.branch(x) + self.shortcut(x))


class OneTuple(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class WithSize(Residual):
    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        return super().forward(x), size


class InDict(Residual):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {'x': super().forward(x), 'kind': 'block'}


class WithIdentity(Residual):
    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        identity = x if identity is None else identity
        return self.last(self.branch(x) + self.shortcut(identity))


class Scaled(Residual):
    """With layer scale, in place."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__(branch, shortcut, last)
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x) * self.gamma
        out += self.shortcut(x)
        return self.last(out)


BLOCKS = {
    'plain': Residual, 'scaled': Scaled, 'tuple': OneTuple, 'size': WithSize, 'dict': InDict,
    'identity': WithIdentity,
}  # fmt: skip


class Stage(nn.Module):
    """Blocks one behind the other, called as their kind is."""

    def __init__(self, returns: str, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.returns, self.blocks = returns, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        for block in self.blocks:
            if self.returns == 'tuple':
                x = block(x)[0]
            elif self.returns == 'size':
                x, size = block(x, size)
            elif self.returns == 'dict':
                x = block(x)['x']
            elif self.returns == 'identity':
                x = block(x, identity=x)
            else:
                x = block(x)
        return x


def branch(draw: Draw, inner: int, outer: int, stride: int, before: bool) -> nn.Module:
    """The layers of a block between two norms or activations."""
    kind, hidden = draw.pick('branch', ('basic', 'bottleneck', 'inverted')), draw.channels()
    first = [norm(draw, inner), activation(draw)] if before else []
    final = [] if before else [norm(draw, outer)]
    if kind == 'basic':
        layers = [
            nn.Conv2d(inner, hidden, 3, stride, 1), norm(draw, hidden), activation(draw),
            nn.Conv2d(hidden, outer, 3, padding=1),
        ]  # fmt: skip
    else:
        groups = hidden if kind == 'inverted' else draw.pick('groups', (1, 4))
        layers = [
            nn.Conv2d(inner, hidden, 1), norm(draw, hidden), activation(draw),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=groups), activation(draw),
            nn.Conv2d(hidden, outer, 1),
        ]  # fmt: skip
    return nn.Sequential(*first, *layers, *final)


@piece('map')
def residual_stage(draw: Draw, at: Place) -> nn.Module:
    returns = draw.pick('returns', tuple(BLOCKS))
    before, mixed = draw.flag('norm first'), draw.flag('mixed')
    downsample = draw.flag('downsample')
    inner, outer = at.channels, draw.channels() if downsample else at.channels
    stride = 2 if downsample and at.size > 4 else 1
    blocks = []
    for place in range(draw.pick('blocks', (2, 3))):
        kind = draw.pick('kind', ('plain', 'scaled')) if mixed and returns == 'plain' else returns
        first = place == 0 and downsample
        shortcut = nn.Conv2d(inner, outer, 1, stride) if first else nn.Identity()
        layers = branch(draw, inner if first else outer, outer, stride if first else 1, before)
        blocks.append(BLOCKS[kind](layers, shortcut, nn.Identity() if before else nn.ReLU()))
    at.channels, at.size = outer, at.size // stride
    return Stage(returns, blocks)


class DenseBlock(nn.Module):
    """Every layer is given what all before it gave."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


@piece('map')
def dense_block(draw: Draw, at: Place) -> nn.Module:
    inner, growth = at.channels, 8
    at.channels, outer = at.channels + 2 * growth, draw.channels()
    layers = [
        nn.Sequential(norm(draw, channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1))
        for channels in (inner, inner + growth)
    ]
    transition = nn.Conv2d(at.channels, outer, 1)
    at.channels = outer
    return nn.Sequential(DenseBlock(layers), transition)


@piece('map')
def split(draw: Draw, at: Place) -> nn.Module:
    channels, way = at.channels, draw.pick('way', ('chunk', 'equal', 'unequal', 'slices'))
    first = channels // 4 if way == 'unequal' else channels // 2
    second = channels - first
    joins = ('cat', 'swapped') if way == 'unequal' else ('cat', 'swapped', 'sum', 'product')
    join = draw.pick('join', joins)
    layer = nn.Conv2d(second, second, 3, padding=1)

    def forward(self: Any, x: Tensor) -> Tensor:
        if way == 'chunk':
            a, b = x.chunk(2, dim=1)
        elif way == 'slices':
            a, b = x[:, :first], x[:, first:]
        else:
            a, b = x.split([first, second] if way == 'unequal' else first, dim=1)
        b = self.layer(b)
        if join == 'sum':
            return a + b
        if join == 'product':
            return a * b.sigmoid()
        return torch.cat([b, a] if join == 'swapped' else [a, b], 1)

    outer = draw.channels()
    last = nn.Conv2d(second if join in ('sum', 'product') else channels, outer, 1)
    at.channels = outer
    return nn.Sequential(nn.Conv2d(channels, channels, 1), Piece(forward, layer=layer), last)


@piece('map')
def map_attention(draw: Draw, at: Place) -> nn.Module:
    """A non-local block with torch's attention."""
    normed = norm(draw, at.channels)
    attention = nn.MultiheadAttention(
        at.channels, draw.pick('heads', (1, 4)), batch_first=True, bias=draw.flag('bias')
    )

    def forward(self: Any, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        out = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return x + out.transpose(1, 2).reshape(x.shape)

    return Piece(forward, norm=normed, attention=attention)


@piece('map')
def squeeze_excite(draw: Draw, at: Place) -> nn.Module:
    channels, gate = at.channels, getattr(F, draw.pick('gate', ('sigmoid', 'hardsigmoid')))
    if draw.flag('linear'):
        gates = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Linear(8, channels))
        return Piece(lambda self, x: x * gate(self.gates(x.mean((2, 3))))[..., None, None],
                     gates=gates)  # fmt: skip
    gates = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, channels, 1)
    )
    return Piece(lambda self, x: x * gate(self.gates(x)), gates=gates)


@piece('map', 'line')
def gated_linear_unit(draw: Draw, at: Place) -> nn.Module:
    convolve = nn.Conv2d if at.layout == 'map' else nn.Conv1d
    layer, outer = convolve(at.channels, 2 * at.channels, 1), convolve(at.channels, at.channels, 1)
    way = draw.pick('way', ('F.glu', 'chunk', 'nn.GLU', 'simple gate'))

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.layer(x)
        if way == 'chunk':
            a, b = x.chunk(2, 1)
            x = a * b.sigmoid()
        elif way == 'simple gate':
            a, b = torch.tensor_split(x, 2, dim=1)
            x = a * b
        else:
            x = self.glu(x) if way == 'nn.GLU' else F.glu(x, 1)
        return self.outer(x)

    return Piece(forward, layer=layer, outer=outer, glu=nn.GLU(1))


@piece('map')
def channel_shuffle(draw: Draw, at: Place) -> nn.Module:
    groups, way = draw.pick('groups', (2, 4)), draw.pick('way', ('view', 'module', 'flatten'))
    first, second = (nn.Conv2d(at.channels, at.channels, 1, groups=groups) for _ in range(2))

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        if way == 'view':
            x = x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        elif way == 'flatten':
            x = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
        else:
            x = self.shuffle(x)
        return self.second(x)

    return Piece(forward, first=first, second=second, shuffle=nn.ChannelShuffle(groups))


@piece('map')
def pixel_shuffle(draw: Draw, at: Place) -> nn.Module:
    outer = draw.channels()
    if at.size <= 8 and draw.flag('up'):
        layers = (nn.Conv2d(at.channels, 4 * outer, 1), nn.PixelShuffle(2))
        at.size *= 2
    elif at.size > 4:
        layers = (nn.PixelUnshuffle(2), nn.Conv2d(4 * at.channels, outer, 1))
        at.size //= 2
    else:
        layers = (nn.Conv2d(at.channels, outer, 1),)
    at.channels = outer
    return nn.Sequential(*layers)


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation, as in Big Transfer."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(deviation + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


@piece('map')
def computed_weight(draw: Draw, at: Place) -> nn.Module:
    kind, groups = (
        draw.pick('kind', ('standardised', 'weight_norm', 'gain')),
        draw.pick('g', (1, 4)),
    )
    inner, outer = at.channels, draw.channels()
    at.channels = outer
    if kind == 'standardised':
        return nn.Sequential(StandardisedConv2d(inner, outer, 3, padding=1, groups=groups))
    layer = nn.Conv2d(inner, outer, 3, padding=1, groups=groups)
    if kind == 'weight_norm':
        return nn.Sequential(weight_norm(layer))
    return Piece(
        lambda self, x: F.conv2d(x, self.layer.weight * self.gain, padding=1, groups=groups),
        layer=layer, gain=parameter(outer, 1, 1, 1),
    )  # fmt: skip


@piece('map')
def shared_layer(draw: Draw, at: Place) -> nn.Module:
    layer, other = (nn.Conv2d(at.channels, at.channels, 3, padding=1) for _ in range(2))
    way = draw.pick('way', ('layer', 'weight', 'block'))
    if way == 'weight':
        other.weight = layer.weight
        return Piece(lambda self, x: self.other(self.layer(x).relu()), layer=layer, other=other)
    if way == 'block':
        block = Residual(nn.Sequential(layer, nn.ReLU(), other), nn.Identity(), nn.ReLU())
        return nn.Sequential(block, block)
    return Piece(lambda self, x: self.layer(self.layer(x).relu()), layer=layer)


REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    'mean': lambda x, dim: x - x.mean(dim, keepdim=True),
    'sum': lambda x, dim: x + 0.1 * x.sum(dim, keepdim=True),
    'amax': lambda x, dim: x - x.amax(dim, keepdim=True),
    'max': lambda x, dim: x - x.max(dim, keepdim=True)[0],
    'std': lambda x, dim: x / (x.std(dim, keepdim=True) + 1),
    'var_mean': lambda x, dim: x - torch.var_mean(x, dim, keepdim=True)[1],
    'softmax': lambda x, dim: x * x.softmax(dim),
    'log_softmax': lambda x, dim: x.log_softmax(dim),
    'cumsum': lambda x, dim: x.cumsum(dim) / 8,
    'norm': lambda x, dim: F.normalize(x + 0.1, dim=dim),
    'logsumexp': lambda x, dim: x - x.logsumexp(dim, keepdim=True),
    'median': lambda x, dim: x - x.median(dim, keepdim=True)[0],
    'sort': lambda x, dim: x + x.sort(dim)[0],
    'topk': lambda x, dim: x - x.topk(3, dim)[0].mean(dim, keepdim=True),
    'prod': lambda x, dim: x + x.sigmoid().prod(dim, keepdim=True),
    'size': lambda x, dim: x / math.sqrt(x.shape[dim]),
    'flip': lambda x, dim: x + x.flip(dim),
    'roll': lambda x, dim: x + x.roll(1, dim),
    'difference': lambda x, dim: x + F.pad(x.diff(dim=dim).transpose(dim, -1), (0, 1)).transpose(
        dim, -1
    ),
    'batch': lambda x, dim: x + x.movedim(dim, -1).flatten(1).mean(1).reshape(
        -1, *[1] * (x.dim() - 1)
    ),
}  # fmt: skip


@piece('map', 'line', 'tokens', 'vector')
def reduction(draw: Draw, at: Place) -> nn.Module:
    """What looks at all channels at once, behind a layer whose channels it sees."""
    function = REDUCTIONS[draw.pick('kind', tuple(REDUCTIONS))]
    outer, dim = draw.channels(), -1 if at.layout in ('tokens', 'vector') else 1
    make = {'map': nn.Conv2d, 'line': nn.Conv1d}.get(at.layout)
    layer = make(at.channels, outer, 1) if make else nn.Linear(at.channels, outer)
    at.channels = outer
    return Piece(lambda self, x: function(self.layer(x), dim), layer=layer)


@piece('map')
def spatial_gate(draw: Draw, at: Place) -> nn.Module:
    layer, keep = nn.Conv2d(2, 1, 3, padding=1), draw.flag('keepdim')

    def forward(self: Any, x: Tensor) -> Tensor:
        if keep:
            seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        else:
            seen = torch.stack([x.mean(1), x.amax(1)], 1)
        return x * self.layer(seen).sigmoid()

    return Piece(forward, layer=layer)


@piece('map')
def constant(draw: Draw, at: Place) -> nn.Module:
    """Tensors that the code makes, of as many channels as there are or as it was told."""
    kind = draw.pick(
        'kind', ('zeros', 'ones', 'linspace', 'arange', 'like', 'cat', 'told', 'buffer', 'eye')
    )
    channels = at.channels
    layer = nn.Conv2d(channels, channels, 1)
    if kind == 'cat':
        at.channels += 8

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.layer(x)
        n, c, h, w = x.shape
        if kind == 'zeros':
            return x + torch.zeros(1, c, 1, 1, device=x.device)
        if kind == 'ones':
            return x * x.new_ones(c, 1, 1)
        if kind == 'linspace':
            return x + torch.linspace(0, 1, c, device=x.device)[:, None, None]
        if kind == 'arange':
            return x + torch.arange(c, device=x.device).reshape(1, c, 1, 1) / 8
        if kind == 'like':
            return x + torch.full_like(x, 0.5)
        if kind == 'cat':
            return torch.cat([x, x.new_zeros(n, 8, h, w)], 1)
        if kind == 'told':
            return x + torch.zeros(channels, h, w, device=x.device)
        if kind == 'eye':
            return x + (torch.eye(c, device=x.device, dtype=x.dtype) @ x.flatten(2)).view_as(x)
        return x * self.scale

    return Piece(forward, layer=layer, scale=nn.Buffer(torch.rand(channels, 1, 1)))


@piece('map')
def branches(draw: Draw, at: Place) -> nn.Module:
    inner, join = at.channels, draw.pick('join', ('cat', 'sum', 'stack', 'selective'))
    widths = (8, 16, 8) if join == 'cat' else (16,) * 3
    layers = nn.ModuleList(
        nn.Sequential(nn.Conv2d(inner, width, size, padding=size // 2), norm(draw, width))
        for width, size in zip(widths, (1, 3, 3), strict=True)
    )
    at.channels = sum(widths) if join == 'cat' else 16

    def forward(self: Any, x: Tensor) -> Tensor:
        found = [layer(x) for layer in self.layers]
        if join == 'cat':
            return torch.cat(found, 1)
        if join == 'stack':
            return torch.stack(found, 1).mean(1)
        if join == 'selective':
            stacked = torch.stack(found, 1)
            seen = self.squeeze(stacked.sum(1).mean((2, 3))).unflatten(1, (3, -1))
            return (stacked * seen.softmax(1)[..., None, None]).sum(1)
        return found[0] + found[1] * found[2].sigmoid()

    squeeze = nn.Linear(16, 48) if join == 'selective' else nn.Identity()
    return Piece(forward, layers=layers, squeeze=squeeze)


@piece('map')
def pooling(draw: Draw, at: Place) -> nn.Module:
    if at.size <= 4:
        at.size *= 2
        return nn.Upsample(scale_factor=2, mode=draw.pick('up', ('nearest', 'bilinear')))
    at.size //= 2
    return getattr(nn, draw.pick('pool', ('MaxPool2d', 'AvgPool2d')))(2)


@piece('map')
def chosen_channels(draw: Draw, at: Place) -> nn.Module:
    """Channels taken by place, which is the code's, or padded."""
    channels, way = at.channels, draw.pick('way', ('half', 'every other', 'index', 'pad', 'repeat'))
    layer = nn.Conv2d(channels, channels, 1)
    places = nn.Buffer(torch.randperm(channels)[: channels // 2])
    at.channels = {'pad': channels + 8, 'repeat': 2 * channels}.get(way, channels // 2)

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.layer(x)
        if way == 'half':
            return x[:, : channels // 2]
        if way == 'every other':
            return x[:, ::2]
        if way == 'index':
            return x[:, self.places]
        if way == 'pad':
            return F.pad(x, (0, 0, 0, 0, 4, 4))
        return x.repeat(1, 2, 1, 1)

    outer = nn.Conv2d(at.channels, channels, 1)
    at.channels = channels
    return nn.Sequential(Piece(forward, layer=layer, places=places), outer)


@piece('map')
def product(draw: Draw, at: Place) -> nn.Module:
    """Matrix products over channels: a layer, a Gram matrix, attention over channels."""
    inner, outer = at.channels, draw.channels()
    way = draw.pick('way', ('einsum', 'matmul', 'gram', 'channel attention'))
    layer, weight = nn.Conv2d(inner, outer, 1), parameter(outer, outer)
    at.channels = outer

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.layer(x)
        flat = x.flatten(2)
        if way == 'einsum':
            return torch.einsum('nchw,dc->ndhw', x, self.weight)
        if way == 'matmul':
            return (self.weight @ flat).reshape(x.shape)
        gram = flat @ flat.transpose(1, 2) / 64
        if way == 'channel attention':
            gram = gram.softmax(-1)
        return x + (gram @ flat).view_as(x) / 8

    return Piece(forward, layer=layer, weight=weight)


@piece('map')
def ghost(draw: Draw, at: Place) -> nn.Module:
    """Half of the channels by a convolution, the rest by a cheap one of these; cut to length."""
    outer = draw.channels()
    half = outer // 2 + draw.pick('more', (0, 1))
    first, cheap = nn.Conv2d(at.channels, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half)
    at.channels = outer

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return torch.cat([x, self.cheap(x)], 1)[:, :outer]

    return Piece(forward, first=first, cheap=cheap)


@piece('map')
def kernel_per_sample(draw: Draw, at: Place) -> nn.Module:
    """A depthwise convolution whose kernels the input makes, with samples beside channels."""
    make = nn.Linear(at.channels, 9 * at.channels)

    def forward(self: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.make(x.mean((2, 3))).reshape(n * c, 1, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n * c).view(n, c, h, w)

    return Piece(forward, make=make)


@piece('map')
def refined(draw: Draw, at: Place) -> nn.Module:
    """A small U: down, up, and joined with what came in."""
    inner, outer = at.channels, draw.channels()
    down, up = nn.Conv2d(inner, outer, 3, 2, 1), nn.ConvTranspose2d(outer, inner, 2, 2)
    join = draw.pick('join', ('cat', 'sum'))
    last = nn.Conv2d(2 * inner if join == 'cat' else inner, outer, 1)
    at.channels = outer

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(self.down(x).relu())
        return self.last(torch.cat([x, y], 1) if join == 'cat' else x + y)

    return Piece(forward, down=down, up=up, last=last)


# --- pieces over lines ----------------------------------------------------------------------------


@piece('line')
def line_convolution(draw: Draw, at: Place) -> nn.Module:
    inner, groups = at.channels, draw.pick('groups', (1, 4, 'depthwise'))
    outer = inner if groups == 'depthwise' else draw.channels()
    groups = inner if groups == 'depthwise' else groups
    if draw.flag('transposed'):
        layer: nn.Module = nn.ConvTranspose1d(inner, outer, 3, 1, 1, groups=groups)
    else:
        layer = nn.Conv1d(inner, outer, 3, 1, 1, groups=groups)
    at.channels = outer
    return nn.Sequential(layer, norm(draw, outer, 1), activation(draw))


@piece('line')
def line_stage(draw: Draw, at: Place) -> nn.Module:
    channels, blocks = at.channels, []
    for _ in range(2):
        hidden = draw.channels()
        layers = nn.Sequential(
            nn.Conv1d(channels, hidden, 3, padding=2, dilation=2), norm(draw, hidden, 1),
            activation(draw), nn.Conv1d(hidden, channels, 1),
        )  # fmt: skip
        blocks.append(Residual(layers, nn.Identity(), nn.Identity()))
    return nn.Sequential(*blocks)


# --- pieces over tokens ---------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention written by hand, in the ways in which it is."""

    def __init__(self, channels: int, heads: int, way: str, scores: str, bias: str) -> None:
        super().__init__()
        self.heads, self.way, self.scores, self.bias = heads, way, scores, bias
        self.head_dim = channels // heads
        self.scale = self.head_dim**-0.5
        if way == 'separate':
            self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        elif way == 'grouped':  # one key and value for all heads
            self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * self.head_dim)
        else:
            self.qkv = nn.Linear(channels, 3 * channels)
        self.table, self.temperature = parameter(heads, 1, 1), nn.Parameter(torch.ones(heads, 1, 1))
        self.query_norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.way == 'reshape':
            q, k, v = (
                self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            )
        elif self.way == 'chunk':
            q, k, v = (
                t.view(b, n, self.heads, self.head_dim).transpose(1, 2)
                for t in self.qkv(x).chunk(3, dim=-1)
            )
        elif self.way == 'unflatten':  # the three lie within each head
            parts = self.qkv(x).unflatten(-1, (self.heads, 3 * self.head_dim)).transpose(1, 2)
            q, k, v = parts.split(self.head_dim, -1)
        elif self.way == 'separate':
            q, k, v = (
                layer(x).view(b, n, -1, self.head_dim).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        else:
            q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = (t.unsqueeze(1).expand(-1, self.heads, -1, -1) for t in self.kv(x).chunk(2, -1))
        if self.bias == 'norm':
            q, k = self.query_norm(q), self.query_norm(k)
        if self.bias == 'temperature':
            q = q * self.temperature
        if self.scores == 'fused':
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            found = q @ k.transpose(-2, -1) * self.scale
            if self.bias == 'table':
                found = found + self.table
            out = found.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


def attention(draw: Draw, channels: int) -> nn.Module:
    way = draw.pick('way', ('reshape', 'chunk', 'unflatten', 'separate', 'grouped', 'torch'))
    heads = draw.pick('heads', (2, 4))
    if way == 'torch':
        layer = nn.MultiheadAttention(channels, heads, batch_first=True)
        return Piece(lambda self, x: self.layer(x, x, x)[0], layer=layer)
    scores = draw.pick('scores', ('fused', 'by hand'))
    bias = draw.pick('bias', ('none', 'norm', 'temperature', 'table'))
    return Attention(channels, heads, way, scores, bias)


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, channels: int, hidden: int, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.first = nn.Linear(channels, 2 * hidden if joined else hidden)
        self.gate = nn.Identity() if joined else nn.Linear(channels, hidden)
        self.last = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, -1) if self.joined else (self.first(x), self.gate(x))
        return self.last(F.silu(a) * b)


def perceptron(draw: Draw, channels: int) -> nn.Module:
    hidden, kind = 2 * channels, draw.pick('mlp', ('plain', 'gated', 'joined'))
    if kind == 'plain':
        return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
    return Gated(channels, hidden, kind == 'joined')


class TransformerBlock(nn.Module):
    """Attention and perceptron, each with a way around."""

    def __init__(self, parts: Sequence[nn.Module], norms: Sequence[nn.Module], form: str) -> None:
        super().__init__()
        self.attention, self.perceptron = parts
        self.norm1, self.norm2 = norms
        self.form = form

    def forward(self, x: Tensor) -> Any:
        if self.form == 'post':
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.perceptron(x))
        if self.form == 'parallel':
            seen = self.norm1(x)
            return x + self.attention(seen) + self.perceptron(seen)
        x = x + self.attention(self.norm1(x))
        x = x + self.perceptron(self.norm2(x))
        return (x,) if self.form == 'tuple' else x


@piece('tokens')
def transformer(draw: Draw, at: Place) -> nn.Module:
    form, channels = draw.pick('form', ('pre', 'post', 'parallel', 'tuple')), at.channels
    blocks = [
        TransformerBlock(
            [attention(draw, channels), perceptron(draw, channels)],
            [token_norm(draw, channels), token_norm(draw, channels)],
            form,
        )
        for _ in range(2)
    ]
    return Stage('tuple' if form == 'tuple' else 'plain', blocks)


@piece('tokens')
def torch_encoder(draw: Draw, at: Place) -> nn.Module:
    layers = [
        nn.TransformerEncoderLayer(
            at.channels, 4, 2 * at.channels, 0.0, batch_first=True,
            norm_first=draw.flag('norm first'), activation=draw.pick('f', ('relu', 'gelu')),
        )
        for _ in range(2)
    ]  # fmt: skip
    return nn.Sequential(*layers)


@piece('tokens')
def mixer(draw: Draw, at: Place) -> nn.Module:
    channels, length = at.channels, at.size**2
    mix = nn.Sequential(nn.Linear(length, 24), nn.GELU(), nn.Linear(24, length))
    normed = token_norm(draw, channels)
    return Piece(
        lambda self, x: x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2),
        mix=mix, norm=normed,
    )  # fmt: skip


@piece('tokens')
def positions(draw: Draw, at: Place) -> nn.Module:
    kind, channels, length = draw.pick('kind', ('learned', 'sine')), at.channels, at.size**2
    if kind == 'learned':
        return Piece(lambda self, x: x + self.table, table=parameter(1, length, channels))

    def forward(self: Any, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)[:, None]
        rates = torch.exp(torch.arange(0, channels, 2, device=x.device) / -channels)
        return x + torch.cat([(steps * rates).sin(), (steps * rates).cos()], -1)

    return Piece(forward)


@piece('tokens')
def queries(draw: Draw, at: Place) -> nn.Module:
    """Learned queries look at the tokens; as many as these come out."""
    outer = draw.channels()
    layer = nn.MultiheadAttention(
        outer, draw.pick('heads', (2, 4)), kdim=at.channels, vdim=at.channels, batch_first=True
    )
    table = parameter(1, at.size**2, outer)
    at.channels = outer

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.layer(self.table.expand(len(x), -1, -1), x, x)[0]

    return Piece(forward, layer=layer, table=table)


@piece('tokens')
def class_token(draw: Draw, at: Place) -> nn.Module:
    """Beside the tokens for one block, and then added to them."""
    block = TransformerBlock(
        [attention(draw, at.channels), perceptron(draw, at.channels)],
        [nn.LayerNorm(at.channels), nn.LayerNorm(at.channels)],
        'pre',
    )

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.block(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return x[:, 1:] + x[:, :1]

    return Piece(forward, block=block, token=parameter(1, 1, at.channels))


# --- pieces over vectors --------------------------------------------------------------------------


@piece('vector', 'tokens')
def linear(draw: Draw, at: Place) -> nn.Module:
    outer = draw.channels()
    layer = nn.Linear(at.channels, outer, bias=draw.flag('bias'))
    last = nn.BatchNorm1d(outer) if at.layout == 'vector' else nn.LayerNorm(outer)
    at.channels = outer
    return nn.Sequential(layer, last, activation(draw) if at.layout == 'tokens' else nn.SiLU())


@piece('vector')
def vector_stage(draw: Draw, at: Place) -> nn.Module:
    blocks = [
        Residual(perceptron(draw, at.channels), nn.Identity(), nn.Identity()) for _ in range(2)
    ]
    return nn.Sequential(*blocks)


@piece('vector')
def bilinear(draw: Draw, at: Place) -> nn.Module:
    first, second = nn.Linear(at.channels, 16), nn.Linear(at.channels, 16)
    way = draw.pick('way', ('outer', 'module'))
    at.channels = 256 if way == 'outer' else 24
    join = nn.Bilinear(16, 16, 24) if way == 'module' else nn.Identity()
    last = nn.Linear(at.channels, 16)
    at.channels = 16

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        seen = self.join(a, b) if way == 'module' else (a[:, :, None] * b[:, None]).flatten(1)
        return self.last(seen)

    return Piece(forward, first=first, second=second, join=join, last=last)


@piece('vector')
def experts(draw: Draw, at: Place) -> nn.Module:
    """A soft mixture; how much of each, a softmax over them says."""
    outer = draw.channels()
    layers = nn.ModuleList(nn.Linear(at.channels, outer) for _ in range(3))
    router = nn.Linear(at.channels, 3)
    at.channels = outer

    def forward(self: Any, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return sum(weights[:, i, None] * layer(x) for i, layer in enumerate(self.layers))

    return Piece(forward, layers=layers, router=router)


# --- networks -------------------------------------------------------------------------------------

TO_OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    'map': lambda x: x,
    'line': lambda x: x.flatten(2),
    'tokens': lambda x: x.flatten(2).transpose(1, 2),
    'vector': lambda x: x.mean((2, 3)),
}
SPATIAL = {'map': (2, 3), 'line': (2,), 'tokens': (1,)}


@dataclass(frozen=True)
class Recipe:
    """What a network is made of: of each piece the layout, the name and its place in the seed."""

    seed: int
    pieces: tuple[tuple[str, str, int], ...]
    head: str
    second: str
    outputs: str


@dataclass(frozen=True)
class Made:
    """A network with what a supernet of it is given, and what was drawn for it.

    Attributes:
        found: Names of pieces and of their variants.
        possible: All that might have been drawn in their places.
    """

    recipe: Recipe
    model: nn.Module
    inputs: tuple[Tensor, ...]
    options: dict[str, Any]
    found: set[str]
    possible: set[str]


class Network(nn.Module):
    """A stem, pieces and a head; a second input may be joined behind the stem."""

    def __init__(
        self,
        stem: nn.Module,
        second: nn.Module | None,
        maps: Sequence[nn.Module],
        others: Sequence[nn.Module],
        head: nn.Module,
        change: Callable[[Tensor], Tensor],
        recipe: Recipe,
    ) -> None:
        super().__init__()
        self.stem, self.maps, self.others = stem, nn.Sequential(*maps), nn.Sequential(*others)
        self.second, self.head, self.change, self.recipe = second, head, change, recipe

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.second is not None:
            y = self.second(y)
            if self.recipe.second == 'sum':
                x = x + y
            elif self.recipe.second == 'gate':
                x = x * y.sigmoid()
            else:
                x = torch.cat([x, y], 1)
        features = self.maps(x)
        x = self.head(self.others(self.change(features)))
        if self.recipe.outputs == 'tuple':
            return features, x
        if self.recipe.outputs == 'dict':
            return {'logits': x, 'features': [features]}
        return x


class Head(nn.Module):
    """Pools over places, or makes one vector of all of them; or a layer at each place."""

    def __init__(self, kind: str, at: Place) -> None:
        super().__init__()
        self.kind, self.spatial = kind, SPATIAL.get(at.layout, ())
        places = at.size ** (0 if at.layout == 'vector' else 2)
        channels_first = at.layout in ('map', 'line')
        if kind == 'each' and channels_first:
            self.layer = (nn.Conv2d if at.layout == 'map' else nn.Conv1d)(at.channels, CLASSES, 1)
        elif kind == 'flatten':
            self.layer = nn.Linear(at.channels * places, CLASSES)
        else:
            self.layer = nn.Linear(at.channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 'pool' and self.spatial:
            x = x.mean(self.spatial)
        elif self.kind == 'flatten':
            x = x.flatten(1)
        return self.layer(x)


NAMES = [(layout, name) for layout, builders in PIECES.items() for name in builders]
RECIPE = {
    'head': ('pool', 'pool', 'flatten', 'each'),
    'second': ('none', 'none', 'none', 'sum', 'gate', 'cat'),
    'outputs': ('one', 'one', 'tuple', 'dict'),
}


def recipe_of(seed: int) -> Recipe:
    """Two to six pieces; one of them is of the kind whose turn it is, so that none is left out."""
    draw = Draw(f'{seed}/recipe/')
    layout, name = NAMES[seed % len(NAMES)]
    if layout == 'map':
        layout = draw.random.choice(('map', 'line', 'tokens', 'vector'))
        maps = [('map', name)]
    else:
        maps = []
    others = [] if layout == 'map' or maps else [(layout, name)]
    builders = list(PIECES[layout])
    for _ in range(draw.random.randint(1, 4)):
        if layout != 'map' and draw.random.random() < 0.5:
            others.append((layout, draw.random.choice(builders)))
        else:
            maps.append(('map', draw.random.choice(list(PIECES['map']))))
    draw.random.shuffle(maps)
    draw.random.shuffle(others)
    pieces = [(layout, name, place) for place, (layout, name) in enumerate([*maps, *others])]
    chosen = {what: draw.random.choice(options) for what, options in RECIPE.items()}
    return Recipe(seed, tuple(pieces), **chosen)


def smaller(recipe: Recipe) -> Iterator[Recipe]:
    """With one piece fewer, or a plainer form."""
    for place in range(len(recipe.pieces)):
        yield replace(recipe, pieces=recipe.pieces[:place] + recipe.pieces[place + 1 :])
    for what, (plain, *_) in RECIPE.items():
        if getattr(recipe, what) != plain:
            yield replace(recipe, **{what: plain})


def make(recipe: Recipe) -> Made:
    """The network, in eval mode, with weights, inputs and options from its seed."""
    draw = Draw(f'{recipe.seed}/network/')
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        at = Place(draw.channels(), 8)
        stem = nn.Sequential(nn.Conv2d(3, at.channels, 3, padding=1), activation(draw))
        second = None
        if recipe.second != 'none':
            extra = 8 if recipe.second == 'cat' else at.channels
            second = nn.Conv2d(3, extra, 1)
            at.channels += extra if recipe.second == 'cat' else 0
        layers: dict[bool, list[nn.Module]] = {False: [], True: []}
        draws, change = [draw], TO_OTHER['map']
        for layout, name, place in recipe.pieces:
            if layout != at.layout:
                at.layout, change = layout, TO_OTHER[layout]
            own = Draw(f'{recipe.seed}/{name}/{place}')
            own.found.add(f'{layout} {name}')
            draws.append(own)
            layers[layout != 'map'].append(PIECES[layout][name](own, at))
        kind = recipe.head
        if recipe.outputs != 'one' and kind == 'flatten':
            kind = 'pool'
        head = Head(kind, at)
        model = Network(stem, second, layers[False], layers[True], head, change, recipe).eval()
        _spread(model)
    options = dict(
        divisor=draw.pick('divisor', (1, 4, 8)),
        stem=draw.flag('stem'),
        embedding=draw.flag('embedding'),
        fix_outputs=draw.pick('fix_outputs', (True, True, False)),
    )
    mixes = any(name == 'kernel_per_sample' for _, name, _ in recipe.pieces)
    # of one sample all these networks are refused, rightly: it looks like channels
    batch = draw.pick('batch', (1, 2, 2, 2) if mixes else (1, 2))
    inputs = tuple(
        torch.randn(batch, 3, 8, 8, generator=generator) for _ in range(1 + (second is not None))
    )
    for what in RECIPE:
        draw.found.add(f'network: {what}={getattr(recipe, what)}')
        draw.possible.update(f'network: {what}={option}' for option in RECIPE[what])
    found = set().union(*(one.found for one in draws))
    possible = set().union(*(one.possible for one in draws))
    return Made(recipe, model, inputs, options, found, possible)


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Scales, shifts and statistics of norms that tell channels apart."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if 'Norm' in type(module).__name__ and getattr(module, 'weight', None) is not None:
            module.weight.uniform_(0.5, 1.5)
            if getattr(module, 'bias', None) is not None:
                module.bias.normal_(0, 0.2)
