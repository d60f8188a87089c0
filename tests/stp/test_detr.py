"""STP around transformers for detection: queries, padding, attention that looks at places."""

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from mmstp.errors import TraceError
from mmstp.registry import build_model
from mmstp.stp.tasks import warn_of_unlearned
from mmstp.subnets.cut import count_macs
from tests.networks import assert_within, randomize

pytest.importorskip('mmdet')
from tests.detr import FILES, detector, images, samples

SHAPE = (64, 96)
PADDED = [(64, 96), (40, 96), (64, 50)]
QUICK = ['detr', 'dino']
CHOSEN = {'dino', 'refined'}  # whose queries are the best of all positions


def stp_of(name, **options):
    given = dict(target=0.6, tolerance=0.2, input_shape=(3, *SHAPE), pool=dict(size=4, seed=0))
    stp = build_model(dict(type='mmstp.STP', model=detector(name), **given | options), 'mmdet')
    randomize(stp.model)
    return stp


@pytest.fixture(
    scope='module',
    params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FILES],
)
def stp(request):
    found = stp_of(request.param, target_ce=2.0, beta1=0.5, beta2=3.0)
    found.name = request.param
    return found


def test_encoder_and_decoder_have_entries_of_their_own(stp):
    """Hidden widths of both; heads of attention, but for those that hold their numbers twice."""
    stages = {stage.name: stage for stage in stp.supernet.space.stages}
    groups = stp.supernet.graph.groups
    attention = {'detr': 'attn', 'dino': 'self_attn', 'deformable': 'self_attn'}
    for name in ('encoder', 'decoder'):
        makers = {maker for index in stages[name].groups for maker in groups[index].makers}
        assert all(maker.startswith(f'{name}.') for maker in makers)
        for layer in range(2):
            assert f'{name}.layers.{layer}.ffn.layers.0.0' in makers
            assert any(attention.get(stp.name, 'ffn') in m for m in makers if f'.{layer}.' in m)
    assert {stp.supernet.one_batch, stp.supernet.one_size} == {None}


def test_what_is_compared(stp):
    """The numbers of all queries; where those are chosen, what they are chosen by."""
    last = ['bbox_head.cls_branches.2', 'bbox_head.reg_branches.2']
    assert list(stp.task.compared) == (last if stp.name in CHOSEN else ['bbox_head'])
    with patch.object(MMLogger.get_instance('mmstp'), 'warning') as warning:
        warn_of_unlearned(stp.task, 1.0)
        assert not warning.called
        warn_of_unlearned(stp.task, 0.0)
        assert warning.called == (stp.name in CHOSEN)
    stp.eval()
    found = samples(*PADDED)
    with torch.no_grad():
        classes, boxes = stp.task.outputs(stp.model, images(found), found)
    layers, positions = (1, 96 + 24 + 6 + 2) if stp.name in CHOSEN else (2, 12)
    numbers = 11 if stp.name == 'detr' else 10  # one for no object
    assert classes.shape == (layers * numbers, 3 * positions)
    assert boxes.shape == (layers * 4, 3 * positions)


def test_distance_is_that_of_each_layer_and_number():
    stp = stp_of('detr').eval()
    found = samples(*PADDED)
    inputs, subnet = images(found), stp.export(stp.supernet.space.smallest).eval()
    with torch.no_grad():
        distance = stp.task.distance(
            *(stp.task.outputs(net, inputs, found) for net in (subnet, stp.model))
        )
        kinds = zip(
            *(net(inputs, found, mode='tensor') for net in (subnet, stp.model)), strict=True
        )
    expected = np.mean([
        np.mean([
            1 - np.corrcoef(own[layer, ..., k].flatten(), other[layer, ..., k].flatten())[0, 1]
            for layer in range(own.shape[0]) for k in range(own.shape[-1])
        ])
        for own, other in kinds
    ])  # fmt: skip
    assert_within(distance, torch.tensor(expected).float(), 1e-4)


def test_a_step_is_the_detectors_losses_and_the_distances(stp):
    """Each pass knows what is padding; queries that only training has come with the losses."""
    stp.train()
    found = samples(*PADDED)
    before = copy.deepcopy(found)
    torch.manual_seed(0)
    losses = stp(images(found), found, mode='loss')
    (target,) = [a for a, visits in stp.pool.visits.items() if visits]
    torch.manual_seed(0)
    own = copy.deepcopy(stp.model).loss(images(found), found)
    assert set(own) < set(losses)
    for name, loss in own.items():
        assert_within(losses[name].sum(), loss.sum(), 1e-4)
    with torch.no_grad():
        main = stp.task.outputs(stp.model, images(found), found)
        with stp.supernet.activate(target):
            outputs = stp.task.outputs(stp.model, images(found), found)
    assert_within(losses['loss_target'], 0.5 * stp.task.distance(outputs, main), 1e-3)
    total = sum(loss.sum() for name, loss in losses.items() if 'loss' in name)
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in stp.model.parameters() if p.requires_grad)
    for own, other in zip(found, before, strict=True):
        assert own.keys() == other.keys()
        assert torch.equal(own.gt_instances.bboxes, other.gt_instances.bboxes)
    stp.zero_grad()


def test_gradients_reach_through_a_subnets_own_loss(stp):
    """Of all that the subnet is made of, those of encoder and decoder among them."""
    stp.train()
    found = samples(*PADDED)
    smallest = stp.supernet.space.smallest
    with stp.supernet.activate(smallest):
        losses = stp.model(images(found), found, mode='loss')
        sum(loss.sum() for name, loss in losses.items() if 'loss' in name).backward()
    for name in ('encoder', 'decoder'):
        weight = stp.model.get_parameter(f'{name}.layers.0.ffn.layers.0.0.weight')
        kept = stp.supernet.compact_spec(smallest).shapes[f'{name}.layers.0.ffn.layers.0.0.weight']
        # hidden channels may be at zero for every query
        assert weight.grad[: kept[0]].any(dim=1).float().mean() > 0.25
        assert not weight.grad[kept[0] :].any()
    stp.zero_grad()


def test_a_batch_without_objects(stp):
    stp.train()
    empty = samples(*PADDED, objects=0)
    losses = stp(images(empty), empty, mode='loss')
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    sum(loss.sum() for name, loss in losses.items() if 'loss' in name).backward()
    stp.zero_grad()


@pytest.mark.parametrize('shapes', [[SHAPE], [(96, 64)] * 3, PADDED], ids=str)
def test_subnets_are_their_exports_to_the_bit(stp, shapes):
    stp.eval()
    known = samples(*shapes)
    inputs = images(known)
    for architecture in [*list(stp.pool.scores)[:1], stp.supernet.space.smallest]:
        network = stp.export(architecture).eval()
        with torch.no_grad():
            with stp.supernet.activate(architecture):
                own = stp.model(inputs, known, mode='tensor')
                found = stp.model(inputs, copy.deepcopy(known), mode='predict')
            for x, y in zip(own, network(inputs, known, mode='tensor'), strict=True):
                assert torch.equal(x, y)
            expected = network(inputs, copy.deepcopy(known), mode='predict')
        for one, other in zip(found, expected, strict=True):
            for name in list(one.pred_instances.keys()):
                assert torch.equal(one.pred_instances[name], other.pred_instances[name]), name


def test_padding_is_masked(stp):
    """What lies there changes nothing, and images alone are whole ones."""
    stp.eval()
    padded, whole = samples((64, 96), (64, 64)), samples((64, 96), (64, 96))
    inputs = images(padded)
    with torch.no_grad(), stp.supernet.activate(stp.supernet.space.smallest):
        masked, *_ = stp.model(inputs, padded, mode='tensor')
        unmasked, *_ = stp.model(inputs, whole, mode='tensor')
        alone, *_ = stp.model(inputs, mode='tensor')
    assert torch.equal(unmasked, alone)
    assert not torch.equal(unmasked, masked)


def test_costs_are_the_counters(stp):
    space, cost = stp.supernet.space, stp.supernet.cost
    for architecture in (space.largest, space.smallest):
        network = stp.export(architecture)
        assert cost.macs([architecture])[0] == count_macs(network, stp.supernet.inputs)
        assert cost.params([architecture])[0] == sum(p.numel() for p in network.parameters())


def test_more_queries_than_positions():
    few = detector('dino') | {'num_queries': 300}
    with pytest.raises(TraceError, match=r'num_queries among the positions .*enlarge input_shape'):
        build_model(dict(type='mmstp.STP', model=few, target=0.6, input_shape=(3, *SHAPE)), 'mmdet')
