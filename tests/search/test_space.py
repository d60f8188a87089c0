"""Search spaces: what the paper counts, what a member keeps, and every option."""

import random
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from mmstp import Architecture, ArchitectureError, ChannelGraph, SearchSpace
from mmstp.analysis.walk import OUTPUT
from mmstp.errors import SpaceError
from mmstp.search.stages import EMBEDDING_STAYS, STEM_STAYS
from tests.networks import TINY_INPUT, Residual, build, images, tiny


@pytest.fixture(scope='module')
def resnet50():
    return ChannelGraph.from_model(build('resnet50'), [images('resnet50', batch=1)])


@pytest.fixture(scope='module')
def small():
    return ChannelGraph.from_model(tiny(), [TINY_INPUT])


# --- members --------------------------------------------------------------------------------------


def test_resnet50_has_the_paper_s_space(resnet50):
    space = SearchSpace(resnet50)
    assert space.size == 3 * 4 * 6 * 3 * 5**4 == 135_000
    assert [stage.name for stage in space.stages] == [f'backbone.layer{i}' for i in range(1, 5)]
    assert space.largest == Architecture((3, 4, 6, 3), (1.0,) * 4)
    assert space.smallest == Architecture((1,) * 4, (0.3,) * 4)


def test_draws_are_uniform_over_the_choices(small):
    space = SearchSpace(small)
    rng = random.Random(0)
    target = Architecture((2, 1), (0.7, 1.0))
    draws = [space.encode(space.sample(rng)) for _ in range(3000)]
    supports = [space.encode(space.expand(target, rng)) for _ in range(3000)]
    for drawn, lowest in ((draws, [0] * 4), (supports, space.encode(target))):
        columns = np.array(drawn).T
        for column, low, choices in zip(columns, lowest, space.sizes, strict=True):
            counts = np.bincount(column, minlength=choices)
            assert not counts[:low].any()
            expected = 3000 / (choices - low)
            assert (np.abs(counts[low:] - expected) <= 5 * np.sqrt(expected)).all()


# --- what a member keeps --------------------------------------------------------------------------


@pytest.mark.parametrize('divisor', [1, 4, 8, 32])
def test_channels_round_up_to_a_multiple(divisor, resnet50):
    """In exact arithmetic, where 0.35 is not a little more than 7/20."""
    widths = ('0.1', '0.3', '0.35', '0.5', '0.7', '0.9', '1.0')
    space = SearchSpace(resnet50, widths=[float(width) for width in widths], divisor=divisor)
    for group in space.graph.groups:
        for width in widths:
            exact = Fraction(width) * group.channels
            multiple = -(-exact // divisor) * divisor
            assert space.units(group, float(width)) == min(multiple, group.channels)


def test_fractions_that_floats_miss():
    assert 0.55 * 800 > 440
    model = nn.Sequential(nn.Conv2d(3, 800, 1), nn.Conv2d(800, 160, 1), nn.Conv2d(160, 5, 1))
    graph = ChannelGraph.from_model(model, [torch.zeros(1, 3, 2, 2)])
    space = SearchSpace(graph, stem=True)
    first, second = graph.groups
    assert (space.units(first, 0.55), space.units(second, 0.7)) == (440, 112)


def test_resnext_drops_whole_groups(supernet_of):
    supernet = supernet_of('resnext')
    for width in supernet.space.stages[0].widths:
        architecture = Architecture(supernet.space.largest.depths, (width,) * 4)
        for stage, channels in enumerate((128, 256, 512, 1024), start=1):
            layer = supernet.export(architecture).backbone.get_submodule(f'layer{stage}')
            size = channels // 32
            kept = -(-Fraction(str(width)) * channels // max(size, 8)) * max(size, 8)
            for block in layer:
                assert block.conv2.groups == kept // size
                assert block.conv2.weight.shape[:2] == (kept, size)
                assert len(block.conv1.weight) == kept


@pytest.mark.parametrize('name', ['resnet50', 'resnext', 'seresnet', 'wrn16_2'])
def test_first_blocks_stay(name, supernet_of):
    supernet = supernet_of(name)
    space = supernet.space
    rng = random.Random(0)
    for _ in range(10):
        architecture = space.sample(rng)
        expected = [
            f'{stage.name}.{block}'
            for stage, depth in zip(space.stages, architecture.depths, strict=True)
            for block in range(depth, stage.depths[-1])
        ]
        assert list(space.skipped(architecture)) == expected
    for path, (index, depth) in space.min_depth().items():
        at = Architecture(
            tuple(depth if i == index else 1 for i in range(len(space.stages))),
            space.largest.widths,
        )
        assert path not in space.skipped(at)
        below = Architecture(
            tuple(depth - 1 if i == index else 1 for i in range(len(space.stages))),
            space.largest.widths,
        )
        assert path in space.skipped(below)


def test_width_covers_the_residual_stream(supernet_of):
    """As the paper counts: all convolutions of the stage and what they add up to."""
    network = supernet_of('resnet50').export(Architecture((3, 4, 6, 3), (0.5, 0.3, 0.7, 0.9)))
    backbone = network.backbone
    assert len(backbone.conv1.weight) == 64
    for index, width in enumerate((0.5, 0.3, 0.7, 0.9)):
        inner = -(-Fraction(str(width)) * 64 * 2**index // 8) * 8
        stream = -(-Fraction(str(width)) * 256 * 2**index // 8) * 8
        layer = backbone.get_submodule(f'layer{index + 1}')
        assert len(layer[0].downsample[0].weight) == stream
        for block in layer:
            sizes = [len(conv.weight) for conv in (block.conv1, block.conv2, block.conv3)]
            assert sizes == [inner, inner, stream]
    assert network.head.fc.weight.shape == (10, stream)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'multiple'), [('cpu', 16), ('gpu', 32)])
def test_named_widths_are_quarters_of_whole_vectors(name, multiple, resnet50):
    space = SearchSpace(resnet50, widths=name)
    assert all(stage.widths == (0.25, 0.5, 0.75, 1.0) for stage in space.stages)
    for stage in space.stages:
        for group in (resnet50.groups[index] for index in stage.groups):
            kept = [space.units(group, width) for width in stage.widths]
            assert all(units % multiple == 0 for units in kept)
            quarters = [Fraction(i, 4) * group.channels for i in range(1, 5)]
            assert all(
                0 <= own - quarter < multiple for own, quarter in zip(kept, quarters, strict=True)
            )
    by_hand = SearchSpace(resnet50, widths=(0.25, 0.5, 0.75), divisor=multiple)
    rows = space.all_rows()[::1000]
    assert (space.group_units(rows) == by_hand.group_units(rows)).all()


@pytest.mark.parametrize(('divisor', 'expected'), [(8, 32), (64, 64), (24, 96)])
def test_named_widths_and_a_divisor_of_one_s_own_both_hold(divisor, expected, small):
    assert SearchSpace(small, widths='gpu', divisor=divisor).divisor == expected


def test_widths_and_divisor(small):
    space = SearchSpace(small, widths=(0.5, 0.25), divisor=1)
    assert all(stage.widths == (0.25, 0.5, 1.0) for stage in space.stages)
    hidden = next(g for g in small.groups if g.name == 'stage2.1.conv1')
    assert space.units(hidden, 0.25) == 12


def test_without_depths_all_blocks_stay(small):
    space = SearchSpace(small, depths=False)
    assert {stage.depths for stage in space.stages} == {(3,), (2,)}
    assert space.size == 5**2
    assert not any(space.skipped(architecture) for architecture in space.enumerate())


def test_other_choices_for_one_stage(small):
    space = SearchSpace(small, stages=dict(stage1=dict(widths=(0.5,), depths=(2,))))
    first, second = space.stages
    assert (first.depths, first.widths) == ((2, 3), (0.5, 1.0))
    assert (second.depths, second.widths) == ((1, 2), (0.3, 0.5, 0.7, 0.9, 1.0))


def test_stem_stays_unless_asked_for(resnet50):
    without, with_ = SearchSpace(resnet50), SearchSpace(resnet50, stem=True)
    assert without.fixed['backbone.conv1'] == STEM_STAYS
    assert 'backbone.conv1' not in with_.fixed
    chosen = [{g for stage in space.stages for g in stage.groups} for space in (without, with_)]
    (added,) = chosen[1] - chosen[0]
    assert resnet50.groups[added].makers == ('backbone.conv1',)


def test_fixed_layers_stay_whole(resnet50):
    space = SearchSpace(resnet50, fix=(r'layer2\.\d\.conv1', r'layer4\.0\.conv3$'))
    units = space.group_units(space.encode(space.smallest)[None])[0]
    for group, count in zip(resnet50.groups, units, strict=True):
        stays = any(
            re.search(r'layer2\.\d\.conv1|layer4\.0\.conv3$|backbone\.conv1$', maker)
            for maker in group.makers
        )
        assert (count == group.units) == stays, group
    # one of the makers is enough: the whole residual stream of layer4 goes with it
    assert space.fixed['backbone.layer4.2.conv3'] == "space.fix='layer4\\\\.0\\\\.conv3$'"


def test_outputs_stay_and_say_why(resnet50):
    assert SearchSpace(resnet50).fixed['head.fc'] == OUTPUT


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'divisor': 0}, r'space\.divisor=0: expected a whole number of at least 1'),
        ({'divisor': 2.5}, r'space\.divisor=2\.5'),
        ({'cut': 0}, r'space\.cut=0: expected a whole number of at least 1'),
        ({'cut': 1.5}, r'space\.cut=1\.5'),
        ({'widths': ()}, r'space\.widths=\(\): expected a list of fractions in \(0, 1\]'),
        ({'widths': (0.5, 1.2)}, r'space\.widths=\(0\.5, 1\.2\)'),
        ({'widths': 'npu'}, r"space\.widths='npu': expected a list .* or one of 'cpu', 'gpu'"),
        ({'widths': (0,)}, r'space\.widths=\(0,\)'),
        ({'widths': (True,)}, r'space\.widths=\(True,\)'),
        ({'widths': 0.5}, r'space\.widths=0\.5: expected a list'),
        ({'stages': {'stage1': {'depths': 2}}}, r'depths=2: expected a list of whole numbers'),
        ({'fix': 'stem'}, r"space\.fix='stem': expected a list of regular expressions"),
        ({'fix': ('stem', '(')}, r"space\.fix: '\(' is no regular expression: missing \)"),
        ({'widths': ('half',)}, r"space\.widths=\('half',\)"),
        (
            {'stages': {'layer1': {}}},
            r"space\.stages\['layer1'\]: no such stage; found: \['stage1', 'stage2'\]",
        ),
        (
            {'stages': {'stage1': {'depth': (1,)}}},
            r"space\.stages\['stage1'\]: unknown \['depth'\]; accepted: widths, depths",
        ),
        (
            {'stages': {'stage1': {'widths': (2,)}}},
            r"space\.stages\['stage1'\]\.widths=\(2,\): expected a list of fractions",
        ),
        (
            {'stages': {'stage1': {'depths': (0, 2)}}},
            r"space\.stages\['stage1'\]\.depths=\(0, 2\): expected a list of whole .* 1 to 3",
        ),
        ({'stages': {'stage2': {'depths': (3,)}}}, r'a list of whole numbers from 1 to 2'),
        ({'stages': {'stage2': {'depths': (1.0,)}}}, r'a list of whole numbers from 1 to 2'),
        (
            {'widths': (1.0,), 'depths': False},
            'nothing in this model can be pruned: what was found has to stay .*head: an output',
        ),
        ({'fix': ('.',), 'depths': False}, r"nothing .* has to stay .*space\.fix='\.'"),
    ],
)
def test_options_out_of_range(options, message, small):
    with pytest.raises(SpaceError, match=message):
        SearchSpace(small, **options)


class Layer(nn.Module):
    """Attention of 3 heads and hidden channels, both around a norm over the stream."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.qkv, self.proj = nn.Linear(24, 9 * width), nn.Linear(3 * width, 24)
        self.up, self.down = nn.Linear(24, 32), nn.Linear(32, 24)

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, 3, self.width)).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu())


class Transformer(nn.Module):
    def __init__(self, layers, width=8):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 2, 2)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.layers(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def transformer(layers, width=8):
    return ChannelGraph.from_model(Transformer(layers, width).eval(), [torch.randn(1, 3, 4, 4)])


@pytest.fixture(scope='module')
def seven():
    return transformer(7)


@pytest.mark.parametrize(
    ('cut', 'lengths'), [(3, [3, 2, 2]), (1, [7]), (2, [4, 3]), (4, [7]), (5, [7])]
)
def test_a_single_chain_becomes_several_stages(cut, lengths, seven):
    """Of two blocks each at least."""
    space = SearchSpace(seven, cut=cut)
    assert [len(path) for stage in space.stages for path in stage.chains] == lengths
    assert [path for stage in space.stages for chain in stage.chains for path in chain] == [
        f'layers.{i}' for i in range(7)
    ]
    for stage in space.stages:
        assert stage.depths == tuple(range(1, len(stage.chains[0]) + 1))
        owners = {seven.groups[g].name.rpartition('.')[0] for g in stage.groups}
        assert owners == set(stage.chains[0])
    assert len({stage.name for stage in space.stages}) == len(lengths)


def test_a_short_chain_is_one_stage():
    (stage,) = SearchSpace(transformer(5)).stages
    assert stage.depths == (1, 2, 3, 4, 5)


def test_the_first_block_of_every_part_stays(seven):
    space = SearchSpace(seven)
    assert space.skipped(space.smallest) == tuple(f'layers.{i}' for i in (1, 2, 4, 6))


def test_several_chains_are_not_divided(small):
    assert SearchSpace(small, cut=1).stages == SearchSpace(small).stages


def test_embedding_stays_unless_asked_for(seven):
    without, with_ = SearchSpace(seven), SearchSpace(seven, embedding=True)
    makers = ('patch', *(f'layers.{i}.{name}' for i in range(7) for name in ('proj', 'down')))
    (stream,) = (i for i, group in enumerate(seven.groups) if group.embedding)
    assert seven.groups[stream].makers == makers
    for maker in makers:
        assert without.fixed[maker] == EMBEDDING_STAYS
        assert maker not in with_.fixed
    chosen = [{g for stage in space.stages for g in stage.groups} for space in (without, with_)]
    assert chosen[1] - chosen[0] == {stream}
    assert without.group_units(without.encode(without.smallest)[None])[0, stream] == 24


def test_streams_that_nothing_normalises_over_are_no_embedding(small):
    assert not any(group.embedding for group in small.groups)


@pytest.mark.parametrize(
    ('width', 'fraction', 'heads'),
    [
        (8, 0.3, 1),  # 7.2 of 24 channels
        (8, 0.5, 2),
        (8, 0.7, 3),
        (6, 0.3, 1),  # 5.4 of 18 channels: the divisor is no multiple of a head
        (6, 0.5, 2),
        (6, 0.9, 3),
    ],
)
def test_heads_are_rounded_up_to_whole_ones(width, fraction, heads):
    graph = transformer(1, width)
    group = next(g for g in graph.groups if g.name.endswith('qkv'))
    assert (group.units, group.unit_size) == (3, 3 * width)
    assert SearchSpace(graph).units(group, fraction) == heads


def test_small_heads_are_rounded_up_to_the_divisor():
    """Of 3 channels with their queries and keys: 9 go at once, and 18 or 27 are kept for 18."""
    graph = transformer(1, width=3)
    group = next(g for g in graph.groups if g.name.endswith('qkv'))
    assert [SearchSpace(graph, divisor=18).units(group, w) for w in (0.3, 0.7, 1.0)] == [2, 3, 3]


class TwoStreams(nn.Module):
    """Blocks of two streams side by side in one container."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.blocks = nn.Sequential(
            *(Residual(16, 16) for _ in range(2)),
            nn.Conv2d(16, 24, 1),
            *(Residual(24, 16) for _ in range(3)),
            nn.Conv2d(24, 4, 1),
        )

    def forward(self, x):
        return self.blocks(self.stem(x))


def test_stages_have_names_of_their_own():
    graph = ChannelGraph.from_model(TwoStreams(), [TINY_INPUT])
    choices = {'blocks.2': {'depths': (2,)}}
    first, second = SearchSpace(graph, stages=choices).stages
    assert (first.name, first.depths) == ('blocks.0', (1, 2))
    assert (second.name, second.depths) == ('blocks.2', (2, 4))


def test_expanding_a_stranger_is_an_error(small):
    with pytest.raises(ArchitectureError, match=r'choices: \(1, 2, 3\)'):
        SearchSpace(small).expand(Architecture((4, 1), (1.0, 1.0)), random.Random(0))
