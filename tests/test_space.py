"""Search spaces: what the paper counts, what a member keeps, and every option."""

import random
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from mmstp import Architecture, ArchitectureError, ChannelGraph, SearchSpace
from mmstp.stages import SpaceError
from tests.networks import NETWORKS, TINY_INPUT, Residual, build, images, names, tiny


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


@pytest.mark.parametrize('name', names())
def test_enumeration_and_rows_agree(name, supernet_of):
    space = supernet_of(name).space
    rng = random.Random(0)
    rows = [[rng.randrange(n) for n in space.sizes] for _ in range(50)]
    for row in rows:
        architecture = space.decode(row)
        space.check(architecture)
        assert space.encode(architecture).tolist() == row
        assert Architecture.parse(str(architecture)) == architecture
    assert len({space.decode(row) for row in rows}) == len({tuple(row) for row in rows})
    if space.size < 20_000:
        every = list(space.enumerate())
        assert len(set(every)) == space.size
        assert every == [space.decode(row) for row in space.all_rows()]
        assert every[0] == space.smallest
        assert every[-1] == space.largest


@pytest.mark.parametrize('name', names())
def test_support_contains_its_target(name, supernet_of):
    space = supernet_of(name).space
    rng = random.Random(0)
    for _ in range(100):
        target = space.sample(rng)
        support = space.expand(target, rng)
        space.check(support)
        assert support.contains(target)
        assert space.largest.contains(support)
    assert space.expand(space.largest, rng) == space.largest


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


@pytest.mark.parametrize('name', names())
def test_a_larger_architecture_keeps_what_a_smaller_one_keeps(name, supernet_of):
    space = supernet_of(name).space
    rng = random.Random(0)
    for _ in range(20):
        target = space.sample(rng)
        support = space.expand(target, rng)
        units = space.group_units(np.stack([space.encode(target), space.encode(support)]))
        assert (units[0] <= units[1]).all()
        assert (units[0] >= 1).all()
        assert set(space.skipped(support)) <= set(space.skipped(target))


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
    assert without.fixed['backbone.conv1'] == 'the stem stays whole (space.stem=False)'
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
    assert SearchSpace(resnet50).fixed['head.fc'] == 'an output of the model'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'divisor': 0}, r'space\.divisor=0: expected a whole number of at least 1'),
        ({'divisor': 2.5}, r'space\.divisor=2\.5'),
        ({'widths': ()}, r'space\.widths=\(\): expected a list of fractions in \(0, 1\]'),
        ({'widths': (0.5, 1.2)}, r'space\.widths=\(0\.5, 1\.2\)'),
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


@pytest.mark.parametrize('name', names())
def test_stages_follow_the_forward(name, supernet_of):
    """Their names tell them apart; their blocks run one stage after the other."""
    supernet = supernet_of(name)
    stages = supernet.space.stages
    assert len({stage.name for stage in stages}) == len(stages)
    starts = [
        min(run.order for run in supernet.graph.runs if run.paths in stage.runs)
        for stage in stages
        if stage.runs
    ]
    assert starts == sorted(starts)


def test_expanding_a_stranger_is_an_error(small):
    with pytest.raises(ArchitectureError, match=r'choices: \(1, 2, 3\)'):
        SearchSpace(small).expand(Architecture((4, 1), (1.0, 1.0)), random.Random(0))


def test_every_network_has_widths_and_mostly_depths(supernet_of):
    """VGG and DenseNet have no block around which a way leads."""
    without = {'vgg', 'vgg_bn', 'densenet'}
    for name, network in NETWORKS.items():
        if not network.slow:
            stages = supernet_of(name).space.stages
            assert all(len(stage.widths) > 1 for stage in stages), name
            assert any(len(stage.depths) > 1 for stage in stages) == (name not in without), name
