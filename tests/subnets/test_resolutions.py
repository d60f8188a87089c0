"""Subnets and exports of a network with windows, at other sizes than it was traced with."""

import copy
import functools

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from mmstp import Architecture, Supernet
from mmstp.subnets.convert import NO_OTHER_SIZE
from mmstp.subnets.cut import compact
from tests.networks import equal
from tests.relations import RELATIONS, Case, some, subnet_equals_its_export
from tests.relations import rebuilt_from_its_spec_it_equals_the_export as rebuilt_equals_the_export

WINDOW, HEADS, WIDTH, CHANNELS = 2, 4, 4, 16


class WindowAttention(nn.Module):
    """Swin's in short: windows in the batch, a table of biases, a shift with its mask."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.num_heads = HEADS
        self.qkv = nn.Linear(CHANNELS, 3 * HEADS * WIDTH)
        self.proj = nn.Linear(HEADS * WIDTH, CHANNELS)
        self.table = nn.Parameter(torch.randn((2 * WINDOW - 1) ** 2, HEADS))
        y, x = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing='ij')
        place = torch.stack([y.flatten(), x.flatten()])
        apart = place[:, :, None] - place[:, None] + WINDOW - 1
        self.register_buffer('index', apart[0] * (2 * WINDOW - 1) + apart[1], persistent=False)

    def mask(self, h, w):
        """Which pairs of a window were no neighbours before the shift."""
        region = torch.zeros(1, h, w, 1)
        cuts = (slice(0, -WINDOW), slice(-WINDOW, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                region[:, rows, columns] = 3 * i + j
        region = windows(region).squeeze(-1)
        return (region[:, None] != region[:, :, None]) * -100.0

    def forward(self, x):
        b, h, w, c = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = windows(x)
        n = WINDOW * WINDOW
        qkv = self.qkv(x).reshape(x.shape[0], n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q * WIDTH**-0.5 @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if self.shift:
            mask = self.mask(h, w)
            count = mask.shape[0]
            scores = scores.view(b, count, self.num_heads, n, n) + mask[:, None]
            scores = scores.view(-1, self.num_heads, n, n)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, c)
        x = self.proj(x).view(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


def windows(x):
    """(batch, h, w, channels) to (batch * windows, places, channels)."""
    b, h, w, c = x.shape
    x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, c)


class Block(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.attention = WindowAttention(shift)
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 24), nn.GELU(), nn.Linear(24, CHANNELS))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours become one."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4 * CHANNELS)
        self.reduction = nn.Linear(4 * CHANNELS, CHANNELS, bias=False)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Windows(nn.Module):
    """Two stages, of three blocks and of two."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, CHANNELS, 2, 2)
        self.stage1 = nn.Sequential(Block(0), Block(1), Block(0))
        self.merging = Merging()
        self.stage2 = nn.Sequential(Block(0), Block(1))
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        x = self.stage2(self.merging(self.stage1(x)))
        return self.head(self.norm(x).mean((1, 2)))


def build():
    torch.manual_seed(0)
    return Windows().eval()


@functools.cache
def made(embedding):
    return Supernet(build(), torch.zeros(1, 3, 16, 16), divisor=4, embedding=embedding)


@pytest.fixture(params=[False, True], ids=['stream whole', 'embedding'])
def supernet(request):
    return made(request.param)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


SHAPES = [(1, 3, 16, 16), (3, 3, 16, 16), (1, 3, 24, 16), (2, 3, 8, 32)]


def test_nothing_fails_when_narrow(supernet):
    assert not [reason for reason in supernet.graph.fixed.values() if 'narrowed' in reason]
    assert {chain.paths for chain in supernet.graph.chains} == {
        ('stage1.0', 'stage1.1', 'stage1.2'),
        ('stage2.0', 'stage2.1'),
    }
    heads = [g for g in supernet.graph.groups if g.name.endswith('qkv')]
    assert [(g.units, g.unit_size) for g in heads] == [(HEADS, 3 * WIDTH)] * 5


@pytest.mark.parametrize('relation', RELATIONS, ids=lambda relation: relation.__name__)
def test_holds(relation, supernet):
    """Every relation, at all sizes."""
    inputs = [torch.randn(shape) for shape in SHAPES]
    with torch.enable_grad():
        relation(Case(supernet, inputs, some(supernet.space, 3), build))


def test_slicing_equals_masking_by_hand():
    """By hand: weights of the dropped heads and hidden channels at zero."""
    supernet = made(embedding=False)
    largest = supernet.space.largest
    architecture = Architecture(largest.depths, (0.5,) * len(largest.widths))
    masked = build()
    for name, module in masked.named_modules():
        if isinstance(module, WindowAttention):
            rows = torch.arange(3 * HEADS * WIDTH) % (HEADS * WIDTH) >= 2 * WIDTH
            module.qkv.weight[rows] = 0
            module.qkv.bias[rows] = 0
            module.proj.weight[:, 2 * WIDTH :] = 0
        elif name.endswith('mlp'):
            module[0].weight[12:] = 0
            module[0].bias[12:] = 0
    network = supernet.export(architecture)
    assert network.stage1[0].attention.table.shape[1] == 2
    network.double(), masked.double()
    for shape in SHAPES:
        x = torch.randn(shape).double()
        torch.testing.assert_close(network(x), masked(x))


def test_a_part_is_described_on_its_own(supernet):
    architecture = supernet.space.smallest
    spec, export = supernet.compact_spec(architecture), supernet.export(architecture)
    part = build().stage1
    compact(part, spec.within('stage1'))
    part.load_state_dict(export.stage1.state_dict())
    width = export.patch.out_channels
    for shape in ((1, 8, 8, width), (2, 4, 6, width)):
        x = torch.randn(shape)
        assert torch.equal(part(x), export.stage1(x))


def test_copies_of_exports_run(supernet):
    x = torch.randn(2, 3, 16, 16)
    network = supernet.export(supernet.space.smallest)
    assert torch.equal(copy.deepcopy(network)(x), network(x))


# --- paths that depend on the size ----------------------------------------------------------------


def swin(kind):
    """The last of two stages is one window at 32 pixels, and several at others."""
    arch = dict(embed_dims=32, depths=[2, 2], num_heads=[2, 4])
    if kind == 'SwinTransformerV2':
        arch['extra_norm_every_n_blocks'] = 0
    options = dict(arch=arch, img_size=32, patch_size=4, window_size=4, out_indices=(1,))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type=kind, **options))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.eval()
    return model


@functools.cache
def made_swin(kind):
    return Supernet(swin(kind), torch.zeros(1, 3, 32, 32), fix_outputs=False)


@pytest.mark.parametrize(
    'size',
    [(48, 80), *(pytest.param(s, marks=pytest.mark.slow) for s in [(32, 32), (64, 64), (128, 36)])],
    ids=str,
)
@pytest.mark.parametrize('kind', ['SwinTransformer', 'SwinTransformerV2'])
def test_windows_are_shifted_where_there_are_several(kind, size):
    """The trace has one window, without a mask; a supernet traced at the size itself agrees."""
    supernet = made_swin(kind)
    assert supernet.one_size is None
    x = torch.randn(2, 3, *size)
    there = Supernet(swin(kind), torch.zeros(1, 3, *size), fix_outputs=False)
    largest, smallest = supernet.space.largest, supernet.space.smallest
    architectures = [smallest, Architecture(largest.depths, smallest.widths)]
    case = Case(supernet, [x], architectures, functools.partial(swin, kind))
    subnet_equals_its_export(case)
    rebuilt_equals_the_export(case)
    for architecture, network in case.exports:
        assert equal(network(x), there.export(architecture)(x))


def test_a_model_of_one_size_says_so():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = WindowAttention(0)
            self.positions = nn.Parameter(torch.randn(4, 4, CHANNELS))

        def forward(self, x):
            return self.attention(x.permute(0, 2, 3, 1) + self.positions)

    supernet = Supernet(Fixed().eval(), torch.zeros(1, CHANNELS, 4, 4), divisor=1, stem=True)
    assert supernet.one_size.startswith(f'{NO_OTHER_SIZE}: Fixed cannot be')
