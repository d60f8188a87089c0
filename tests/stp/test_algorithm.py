"""Algorithm 1, step by step."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch.nn.modules.batchnorm import _BatchNorm

from mmstp.errors import BudgetError, CheckpointError, FieldError
from mmstp.stp.losses import normalized_kl
from tests import tiny
from tests.networks import assert_within
from tests.runs import free_port, one_of_two


def total(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


def test_losses_are_those_of_the_subnets_cut_out():
    stp = tiny.stp(model__beta1=0.5, model__beta2=2.0, model__target_ce=3.0)
    stp.train()
    images, samples = tiny.batch()
    pool = copy.deepcopy(stp.pool)
    target = pool.sample()
    support = stp.supernet.space.expand(target, pool.rng)
    dense, small, middle = (
        stp.supernet.export(a) for a in (stp.supernet.space.largest, target, support)
    )
    for network in (dense, small, middle):
        network.train()
    logits = dense(images)
    losses = stp(images, samples, mode='loss')
    assert set(losses) == {'loss_ce', 'loss_target', 'loss_target_ce', 'loss_support'}
    assert losses['loss_ce'] == dense.head._get_loss(logits, samples)['loss']
    distance = normalized_kl(small(images), logits)
    assert_within(losses['loss_target'], 0.5 * distance, 1e-4)
    assert_within(losses['loss_support'], 2 * normalized_kl(middle(images), logits), 1e-4)
    cross_entropy = small.head._get_loss(small(images), samples)['loss']
    assert_within(losses['loss_target_ce'], 3 * cross_entropy, 1e-4)
    assert stp.pool.scores[target] == pytest.approx(distance.item(), rel=1e-4)


def test_gradient_is_the_sum_of_the_passes_gradients():
    stp = tiny.stp()
    stp.train()
    images, samples = tiny.batch()
    pool = copy.deepcopy(stp.pool)
    target = pool.sample()
    support = stp.supernet.space.expand(target, pool.rng)
    alone = copy.deepcopy(stp)
    total(stp(images, samples, mode='loss')).backward()
    # one backward per pass, on a second copy
    logits = alone.model(images)
    alone.model.head._get_loss(logits, samples)['loss'].backward()
    for architecture in (target, support):
        with alone.supernet.activate(architecture):
            subnet_logits = alone.model(images)
        normalized_kl(subnet_logits, logits).backward()
    largest = max(b.grad.abs().max().item() for b in alone.parameters())
    for a, b in zip(stp.parameters(), alone.parameters(), strict=True):
        assert_within(a.grad, b.grad, 1e-4, largest)


def test_the_first_steps_put_no_channels_out():
    """A batch is learnt by heart, from a head whose logits are near 0, without a ramp."""
    stp = tiny.stp(model__preset='paper').train()
    stp.driver = object()
    optimizer = torch.optim.SGD(stp.parameters(), lr=0.3, momentum=0.9)
    images, samples = tiny.batch(32)
    for _ in range(30):
        optimizer.zero_grad()
        loss = total(stp(images, samples, mode='loss'))
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_only_the_main_pass_updates_running_statistics():
    stp = tiny.stp()
    stp.train()
    dense = copy.deepcopy(stp.model)
    images, samples = tiny.batch()
    dense(images)
    stp(images, samples, mode='loss')
    buffers = dict(stp.model.named_buffers())
    for name, buffer in dense.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert any(name.endswith('running_mean') and b.abs().sum() > 0 for name, b in buffers.items())


def test_without_support_there_is_one_pass_less():
    stp = tiny.stp(model__beta2=0.0)
    calls = Counter()
    stp.model.backbone.register_forward_hook(lambda *_: calls.update(['forward']))
    losses = stp(*tiny.batch(), mode='loss')
    assert 'loss_support' not in losses
    assert calls['forward'] == 2


@pytest.fixture
def hub():
    """MMEngine's current hub, without what a run wrote there."""
    found = MessageHub.get_current_instance()
    before = dict(found.runtime_info)
    found.runtime_info.clear()
    yield found
    found.runtime_info.clear()
    found.runtime_info.update(before)


def test_warmup_raises_the_distillation_linearly(hub):
    stp = tiny.stp(model__warmup=0.5)
    stp.eval()  # the same statistics in every call
    found = []
    hub.update_info('max_iters', 8)
    for done in (0, 2, 4, 8):
        hub.update_info('iter', done)
        stp.pool.rng.seed(0)
        stp.pool._queue.clear()
        found.append(stp(*tiny.batch(), mode='loss')['loss_target'].item())
    assert found[0] == 0
    assert found[1] == pytest.approx(found[3] / 2)
    assert found[2] == pytest.approx(found[3])


def test_warmup_without_progress_says_what_is_missing(hub):
    stp = tiny.stp(model__warmup=0.5)
    with pytest.raises(RuntimeError, match=r'model\.warmup=0\.5 .*RuntimeInfoHook'):
        stp(*tiny.batch(), mode='loss')


def test_predictions_are_the_main_networks():
    stp = tiny.stp()
    stp.eval()
    images, _ = tiny.batch()
    assert torch.equal(stp(images), stp.model(images))
    predicted = stp(images, mode='predict')
    assert [s.pred_label.item() for s in predicted] == stp(images).argmax(1).tolist()


def test_bf16_autocast_trains():
    stp = tiny.stp()
    stp.train()
    optimizer = OptimWrapper(torch.optim.SGD(stp.parameters(), lr=0.05))
    images, samples = tiny.batch()
    first = last = None
    for _ in range(8):
        with autocast(device_type='cpu'):
            losses = stp(images, samples, mode='loss')
        assert losses['loss_target'].dtype == losses['loss_support'].dtype == torch.float32
        last = losses['loss_ce'].item()
        first = last if first is None else first
        optimizer.update_params(total(losses))
    assert last < first
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in stp.parameters())


def test_same_seed_same_pool_other_seed_another():
    options = {'model__pool__seed': None}
    torch.manual_seed(3)
    first = tiny.stp(**options)
    assert first.pool.scores.keys() == tiny.stp(**options).pool.scores.keys()
    assert first.pool.scores.keys() != tiny.stp(model__pool__seed=9).pool.scores.keys()


def test_pool_members_meet_the_budget():
    stp = tiny.stp()
    space, cost = stp.supernet.space, stp.supernet.cost
    ratios = cost.macs(list(stp.pool.scores)) / cost.macs([space.largest])
    assert ((ratios >= 0.4 * 0.9) & (ratios <= 0.4 * 1.1)).all()
    params = tiny.stp(model__metric='params', model__target=2e5)
    assert (abs(params.supernet.cost.params(list(params.pool.scores)) - 2e5) <= 2e4).all()


def test_members_of_several_limits_exceed_none():
    stp = tiny.stp(model__target=dict(_delete_=True, macs=0.4, activations=0.6))
    space, cost = stp.supernet.space, stp.supernet.cost
    parts = [
        cost.count(list(stp.pool.scores), metric) / cost.count(space.largest, metric) / target
        for metric, target in (('macs', 0.4), ('activations', 0.6))
    ]
    assert (np.max(parts, axis=0) <= 1.1).all()
    assert (np.max(parts, axis=0) >= 0.9).all()


def test_pretrained_weights_are_loaded_and_ordered(tmp_path):
    source = tiny.stp()
    torch.save({'state_dict': source.model.state_dict()}, tmp_path / 'dense.pth')
    stp = tiny.stp(model__pretrained=str(tmp_path / 'dense.pth'))
    images, _ = tiny.batch()
    stp.eval()
    source.eval()
    assert_within(stp(images), source(images), 1e-4)
    weight = 'model.backbone.layer1.0.conv1.weight'
    ordered, before = stp.state_dict()[weight], source.state_dict()[weight]
    assert not torch.equal(ordered, before)
    assert torch.equal(ordered.flatten().sort().values, before.flatten().sort().values)


def test_pretrained_of_another_width_is_an_error(tmp_path):
    other = tiny.stp(
        model__model__backbone__base_channels=32,
        model__model__backbone__stem_channels=32,
        model__model__head__in_channels=256,
    )
    torch.save(other.model.state_dict(), tmp_path / 'wide.pth')
    with pytest.raises(CheckpointError, match=r'(?s)wide\.pth.*backbone\.conv1.*\(32.*\(16'):
        tiny.stp(model__pretrained=str(tmp_path / 'wide.pth'))


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'model__targt': 0.3}, FieldError, "model .* no field 'targt': did you mean 'target'"),
        ({'model__space__width': (0.5,)}, FieldError, r"model\.space .*'width'.*'widths'"),
        ({'model__pool__sise': 3}, FieldError, r"model\.pool .*'sise'.*'size'"),
        ({'model__pool__size': 0}, ValueError, r'pool\.size=0'),
        ({'model__pool__alpha': 2.0}, ValueError, r'pool\.alpha=2\.0'),
        ({'model__pool__sampling': 'best'}, ValueError, r"pool\.sampling='best'.*'even'"),
        ({'model__normalize': 'l1'}, ValueError, r"model\.normalize='l1'.*layer_norm"),
        ({'model__pretrained': 'none.pth'}, FileNotFoundError, r"model\.pretrained='none\.pth'"),
        ({'model__beta1': -1}, ValueError, r'model\.beta1=-1'),
        ({'model__warmup': 2}, ValueError, r'model\.warmup=2'),
        ({'model__metric': 'flops'}, BudgetError, r"metric='flops'.*macs.*params"),
        ({'model__target': 0.001}, BudgetError, r'this space reaches .*%\) to|\d'),
        ({'model__target': -1}, BudgetError, r'target=-1'),
        ({'model__tolerance': 1.5}, BudgetError, r'tolerance=1\.5'),
    ],
)
def test_bad_fields_are_named(options, error, message):
    with pytest.raises(error, match=message):
        tiny.stp(**options)


def test_without_other_processes_synchronised_norms_are_plain_ones():
    """As MMEngine's runner would make them, when layers may not be replaced any more."""
    stp, plain = tiny.stp(model__model__backbone__norm_cfg=dict(type='SyncBN')), tiny.stp()
    assert revert_sync_batchnorm(stp) is stp
    stp.supernet.check_intact()
    images, _ = tiny.batch()
    assert torch.equal(stp.train()(images), plain.train()(images))


def test_checkpointed_blocks_are_refused():
    with pytest.raises(RuntimeError, match=r'backbone .*with_cp=True.*Set with_cp=False'):
        tiny.stp(model__model__backbone__with_cp=True)


# --- several ranks -------------------------------------------------------------------------------


def _freeze_norms(stp):
    """Batch statistics differ between a rank's half and the joint batch; running ones do not."""
    for module in stp.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    stp._norms = []  # STP refuses that


def _train(model, stp, images, samples, steps=3):
    optimizer = torch.optim.SGD(stp.parameters(), lr=0.05, momentum=0.9)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        total(model(images, samples, mode='loss')).backward()
        optimizer.step()
        stp.pool.shrink(1)
        history.append((stp.pool.state_dict(), [p.detach().clone() for p in stp.parameters()]))
    return history


def _rank(rank: int, port: int, out: str, freeze: bool) -> None:
    with one_of_two(rank, port):
        # no seed of its own: the ranks have to agree by themselves
        stp = tiny.stp(model__pool__seed=None)
        stp.train()
        if freeze:
            _freeze_norms(stp)
        model = MMDistributedDataParallel(stp, broadcast_buffers=False)
        images, samples = tiny.batch(8)
        half = slice(4 * rank, 4 * rank + 4)
        history = _train(model, stp, images[half], samples[half])
        torch.save((history, [str(a) for a in stp.pool.scores]), f'{out}/{rank}.pth')


@pytest.mark.slow  # quick: that of `test_survivor.py`
@pytest.mark.parametrize('freeze', [True, False])
def test_two_ranks_agree(tmp_path, freeze):
    mp.spawn(_rank, args=(free_port(), str(tmp_path), freeze), nprocs=2)
    (first, pool), (second, other) = (torch.load(tmp_path / f'{r}.pth') for r in range(2))
    assert pool == other
    for (pool_a, weights_a), (pool_b, weights_b) in zip(first, second, strict=True):
        assert pool_a == pool_b
        assert all(torch.equal(a, b) for a, b in zip(weights_a, weights_b, strict=True))
    if freeze:  # then one rank with the joint batch does the same
        stp = tiny.stp(model__pool__seed=None)
        stp.train()
        _freeze_norms(stp)
        joint = _train(stp, stp, *tiny.batch(8))
        for (state, weights), (alone, joint_weights) in zip(first, joint, strict=True):
            assert state['architectures'] == alone['architectures']
            for score, expected in zip(state['scores'], alone['scores'], strict=True):
                assert (score is None) == (expected is None)
                assert score is None or score == pytest.approx(expected, rel=1e-3)
            for a, b in zip(weights, joint_weights, strict=True):
                assert_within(a, b, 1e-3, largest=0.01)
