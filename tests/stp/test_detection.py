"""STP around whole detectors: the space, a step, subnets and their exports."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmstp import Supernet
from mmstp.errors import BudgetError, FieldError, TraceError
from mmstp.registry import MODELS, build_model
from mmstp.stp.detection import caught, correlation_distance, heads_of
from mmstp.stp.pools import Pools
from mmstp.subnets.cut import count_macs
from tests import tiny
from tests.networks import assert_within, randomize
from tests.runs import free_port, one_of_two

pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

SIZE = 96
CONFIGS = {
    'retinanet': tiny.ROOT / 'configs/retinanet/retinanet_r50-slim_fpn_digits.py',
    'mask_rcnn': tiny.ROOT / 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py',
}


def detector(name):
    """A slim ResNet-18 with the neck and heads of the digits' detectors, on few regions."""
    config = Config.fromfile(CONFIGS[name]).model
    config.backbone.depth = 18
    config.neck.in_channels = [16, 32, 64, 128]
    if name == 'mask_rcnn':
        config.test_cfg.rpn.max_per_img = 4
        config.test_cfg.rcnn.max_per_img = 2
    return config


def stp_of(name, **options):
    given = dict(target=0.5, input_shape=(3, SIZE, SIZE), pool=dict(size=4, seed=0)) | options
    stp = build_model(dict(type='mmstp.STP', model=detector(name), **given), 'mmdet')
    randomize(stp.model)
    return stp


@pytest.fixture(scope='module', params=CONFIGS)
def stp(request):
    return stp_of(request.param, target_ce=2.0, beta1=0.5, beta2=3.0)


def samples(number=2, shape=(SIZE, SIZE)):
    """One object each."""
    found = []
    for index in range(number):
        sample = DetDataSample(
            metainfo=dict(img_shape=shape, batch_input_shape=shape, pad_shape=shape, img_id=index,
                          ori_shape=shape, scale_factor=(1, 1))
        )  # fmt: skip
        masks = np.zeros((1, *shape), np.uint8)
        masks[0, 8:40, 8:40] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([index]),
            masks=BitmapMasks(masks, *shape),
        )  # fmt: skip
        found.append(sample)
    return found


def images(number=2, shape=(SIZE, SIZE)):
    return torch.randn(number, 3, *shape, generator=torch.Generator().manual_seed(number))


def test_neck_and_heads_have_entries_of_their_own(stp):
    heads = ['bbox_head'] if hasattr(stp.model, 'bbox_head') else ['rpn_head', 'roi_head']
    backbone = [f'backbone.layer{i}' for i in range(1, 5)]
    stages = {stage.name: stage for stage in stp.supernet.space.stages}
    assert list(stages) == [*backbone, 'neck', *heads]
    groups = stp.supernet.graph.groups
    for name, stage in stages.items():
        makers = {maker for index in stage.groups for maker in groups[index].makers}
        inside = 'backbone' if name in backbone else name
        assert all(maker.startswith(f'{inside}.') for maker in makers), name


def test_a_step_is_the_detectors_losses_and_the_distances(stp):
    stp.train()
    torch.manual_seed(0)
    losses = stp(images(), samples(), mode='loss')
    (target,) = [a for a, visits in stp.pool.visits.items() if visits]
    torch.manual_seed(0)
    own = copy.deepcopy(stp.model).loss(images(), samples())
    for name, loss in own.items():
        expected = sum(x.mean() for x in loss) if isinstance(loss, list) else loss
        assert_within(losses[name].sum(), expected.sum(), 1e-4)
    with torch.no_grad():
        main = stp.task.outputs(stp.model, images(), samples())
        with stp.supernet.activate(target):
            distance = stp.task.distance(stp.task.outputs(stp.model, images(), samples()), main)
    assert_within(losses['loss_target'], 0.5 * distance, 1e-3)
    assert_within(torch.tensor(stp.pool.scores[target]), distance, 1e-3)
    assert {'loss_target_ce', 'loss_support'} <= set(losses)
    sum(loss.sum() for name, loss in losses.items() if 'loss' in name).backward()
    assert all(p.grad is not None for p in stp.model.parameters() if p.requires_grad)
    stp.zero_grad()


def test_a_batch_without_objects(stp):
    stp.train()
    empty = samples()
    for sample in empty:
        sample.gt_instances = sample.gt_instances[torch.zeros(1, dtype=torch.bool)]
    before = copy.deepcopy(empty)
    losses = stp(images(), empty, mode='loss')
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert [len(s.gt_instances) for s in empty] == [len(s.gt_instances) for s in before] == [0, 0]
    sum(loss.sum() for name, loss in losses.items() if 'loss' in name).backward()
    stp.zero_grad()


@pytest.mark.parametrize(('number', 'shape'), [(1, (SIZE, SIZE)), (3, (128, 64))])
def test_subnets_are_their_exports_to_the_bit(stp, number, shape):
    stp.eval()
    inputs = images(number, shape)
    for architecture in list(stp.pool.scores)[:2]:
        network = stp.export(architecture).eval()
        with torch.no_grad():
            with stp.supernet.activate(architecture):
                maps = stp.task.tensors(stp.model, inputs)
                found = stp.model(inputs, samples(number, shape), mode='predict')
            expected = network(inputs, samples(number, shape), mode='predict')
            for x, y in zip(*map(leaves, (maps, stp.task.tensors(network, inputs))), strict=True):
                assert torch.equal(x, y)
        for one, other in zip(found, expected, strict=True):
            for name in list(one.pred_instances.keys()):
                assert torch.equal(one.pred_instances[name], other.pred_instances[name]), name


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def test_costs_are_the_counters(stp):
    """Those of a head of the second stage as often as a test has regions for it."""
    space, cost = stp.supernet.space, stp.supernet.cost
    times = {'roi_head.bbox_head': (4, 7), 'roi_head.mask_head': (2, 14)}
    for architecture in (space.largest, space.smallest):
        network = stp.export(architecture)
        expected = count_macs(network, stp.supernet.inputs)
        for path, (number, side) in times.items() if hasattr(network, 'roi_head') else ():
            head = network.get_submodule(path)
            channels = network.neck.fpn_convs[0].conv.out_channels
            once = count_macs(head, (torch.zeros(1, channels, side, side),))
            expected += (number - 1) * once
        assert cost.macs([architecture])[0] == expected
        assert cost.params([architecture])[0] == sum(p.numel() for p in network.parameters())


def test_distance_is_one_minus_the_correlation():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(3, 50))
    student = teacher + rng.normal(size=(3, 50))
    pairs = zip(student, teacher, strict=True)
    expected = torch.tensor(1 - np.mean([np.corrcoef(s, t)[0, 1] for s, t in pairs])).float()
    found = correlation_distance(torch.tensor(student), torch.tensor(teacher))
    assert_within(found, expected, 1e-5)
    scaled = 7 * student + 3
    assert_within(correlation_distance(torch.tensor(scaled), torch.tensor(teacher)), expected, 1e-5)


def test_the_teacher_gets_no_gradient():
    student, teacher = (torch.randn(2, 9, requires_grad=True) for _ in range(2))
    correlation_distance(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


class Plain(nn.Module):
    """Two children, one of which gives what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.second.forward(self.first(x)), 1


@pytest.mark.parametrize('teacher', [None, 'main'])
def test_survivors_of_several_budgets_learn_as_if_each_were_alone(teacher):
    model = stp_of('retinanet', target=[0.4, 0.7], survivor=dict(teacher=teacher)).train()
    for pool in model.pools.values():
        pool.shrink(len(pool) - 1)
    alone = copy.deepcopy(model)
    model.go_alone()
    losses = model(images(), samples(), mode='loss')
    model.parse_losses(losses)[0].backward()
    for label, pool in alone.pools.items():
        one = copy.deepcopy(alone)
        one.pools = Pools({label: pool}, {label: alone.pools.budgets[label]})
        one.go_alone()
        own = one(images(), samples(), mode='loss')
        one.parse_losses(own)[0].backward()
        for name, loss in own.items():
            assert torch.equal(losses[f'{name}-{label}'], loss), name
        gradients = zip(one.model.parameters(), model.survivors[label].parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.grad is not None)
    model.bbox_head.use_l1 = True  # as a hook of YOLOX does
    assert all(network.bbox_head.use_l1 for network in model.survivors.values())


def test_heads_are_what_gives_the_result():
    assert heads_of(Plain(), (torch.zeros(1, 3, 4, 4),)) == ('second',)
    with pytest.raises(TypeError, match='Sequential returns nothing that one of its parts gives'):
        heads_of(nn.Sequential(), (torch.zeros(1),))


def test_what_is_caught_leaves_no_trace():
    model = Plain()
    with caught(model, ['first', 'second']) as found:
        model(torch.zeros(1, 3, 4, 4))
    assert [len(outputs) for outputs in found.values()] == [1, 1]
    assert all('forward' not in vars(module) for module in model.modules())


def test_what_cannot_be_compared_is_refused():
    config = detector('retinanet')

    class Boxes(type(build_model(config, 'mmdet'))):
        def _forward(self, batch_inputs, batch_data_samples=None):
            scores, boxes = super()._forward(batch_inputs, batch_data_samples)
            return [one.flatten(1) for one in itertools.chain(scores, boxes)]

    network = build_model(config, 'mmdet')
    network.__class__ = Boxes
    with pytest.raises(TypeError, match='returns nothing that one of its parts gives'):
        MODELS.build(dict(type='mmstp.STP', model=network, target=0.5, input_shape=(3, SIZE, SIZE)))


def test_a_forward_that_asks_for_objects_is_refused():
    config = detector('retinanet')

    class Asks(type(build_model(config, 'mmdet'))):
        def _forward(self, batch_inputs, batch_data_samples=None):
            assert len(batch_data_samples[0].gt_instances)
            return super()._forward(batch_inputs, batch_data_samples)

    network = build_model(config, 'mmdet')
    network.__class__ = Asks
    with pytest.raises(TraceError, match=r'asks for what is to be found in the images \(gt_inst'):
        MODELS.build(dict(type='mmstp.STP', model=network, target=0.5, input_shape=(3, SIZE, SIZE)))


def test_a_layer_that_the_trace_does_not_reach_is_named():
    network = build_model(detector('mask_rcnn'), 'mmdet')
    network.roi_head.mask_iou_head = nn.Conv2d(64, 8, 1)
    with pytest.raises(TypeError, match=r'roi_head\.mask_iou_head \(Conv2d\) does not run where'):
        MODELS.build(dict(type='mmstp.STP', model=network, target=0.5, input_shape=(3, SIZE, SIZE)))


@pytest.mark.parametrize('name', ['mmstp.Segmentation', 3])
def test_a_task_that_does_not_exist_is_named(name):
    with pytest.raises(FieldError, match=r'model\.task=.*registered in mmstp\.registry\.TASKS'):
        stp_of('retinanet', task=name)


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        (['neck.nothing'], r"'neck\.nothing' holds none of the layers"),
        (['neck', 'neck'], r"'neck' is there twice"),
        (['bbox_head', 'bbox_head.cls_convs'], r"'bbox_head\.cls_convs' is there twice, or within"),
        ('neck', 'expected a list'),
    ],
)
def test_parts_that_are_none_are_named(parts, message):
    with pytest.raises(ValueError, match=rf'space\.parts.*{message}'):
        stp_of('retinanet', space=dict(parts=parts))


def test_times_of_one_head_leave_those_of_the_others():
    model = stp_of('mask_rcnn', space=dict(times={'roi_head.bbox_head': 4}))  # as without
    (macs,) = model.supernet.cost.macs([model.supernet.space.largest])
    (given,) = stp_of('mask_rcnn').supernet.cost.macs([model.supernet.space.largest])
    assert macs == given


@pytest.mark.parametrize(
    ('times', 'message'),
    [
        ({'nowhere': 2}, r"space\.times: 'nowhere' is no module that costs anything"),
        ({'neck': 0}, r"space\.times\['neck'\]=0: expected a whole number"),
        (3, r'space\.times=3: expected a dict'),
    ],
)
def test_times_that_are_none_are_named(times, message):
    with pytest.raises(ValueError, match=message):
        stp_of('retinanet', space=dict(times=times))


def test_parts_can_be_kept_whole():
    found = stp_of('retinanet', space=dict(fix=['^neck', '^bbox_head']), target=0.9)
    names = [stage.name for stage in found.supernet.space.stages]
    assert names == [f'backbone.layer{i}' for i in range(1, 5)]
    assert isinstance(found.supernet, Supernet)


def test_what_is_of_classifiers_is_refused():
    with pytest.raises(ValueError, match=r"model\.normalize='l2' is for the logits of classifiers"):
        stp_of('retinanet', normalize='l2')
    with pytest.raises(TypeError, match='RetinaNet has no head whose loss STP could take'):
        stp_of('retinanet', task='mmstp.Classification')
    with pytest.raises(TypeError, match=r'a head gives \(1, 10\), neither maps of shape'):
        tiny.stp(model__task='mmstp.Detection')


def test_a_cost_that_the_space_does_not_reach():
    with pytest.raises(BudgetError, match=r'0\.10% of the dense network.*this space reaches'):
        stp_of('retinanet', target=0.001)


# --- several ranks --------------------------------------------------------------------------------


def _rank(rank: int, port: int, out: str) -> None:
    with one_of_two(rank, port):
        torch.manual_seed(0)
        stp = stp_of('mask_rcnn', target_ce=1.0)
        stp.train()
        model = MMDistributedDataParallel(stp, broadcast_buffers=False)
        optimizer = torch.optim.SGD(stp.parameters(), lr=0.01, momentum=0.9)
        for step in range(2):
            torch.manual_seed(rank)  # other regions are drawn on every rank
            batch = images(number=2 * step + rank + 1)
            loss, _ = stp.parse_losses(model(batch, samples(len(batch)), mode='loss'))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stp.pool.shrink(1)
        torch.save((stp.pool.state_dict(), dict(stp.named_parameters())), f'{out}/{rank}.pth')


@pytest.mark.slow
def test_two_ranks_agree(tmp_path):
    """By stock DDP, without a search for unused parameters, on other images and regions."""
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    (pool, weights), (other, others) = (
        torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in range(2)
    )
    assert pool == other
    assert len(pool['scores']) == 2
    assert all(torch.equal(weights[name], others[name]) for name in weights)
