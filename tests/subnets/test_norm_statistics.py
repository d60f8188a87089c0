"""Norm statistics against those computed by hand from what the layers see."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmstp import Architecture, Supernet, calibrate
from tests.networks import TINY_INPUT, tiny
from tests.relations import in_double


@pytest.fixture
def batches():
    return [torch.randn(8, 3, 8, 8) * (i + 1) for i in range(3)]


def norms(network):
    return {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}


def seen(network, batches):
    """By layer, what comes in over all batches; the other layers run in eval mode."""
    network = copy.deepcopy(network).eval()
    inputs = {name: [] for name in norms(network)}
    for name, norm in norms(network).items():
        norm.train()
        norm.register_forward_hook(
            lambda m, args, y, log=inputs[name]: log.append(args[0].detach().double().numpy())
        )
    for batch in batches:
        network(batch)
    return inputs


def test_norm_statistics_by_hand(batches):
    """The mean over the batches of each batch's mean and unbiased variance."""
    network, batches = tiny().double(), in_double(batches)
    inputs = seen(network, batches)
    assert calibrate(network, batches) == len(inputs) == 7
    for name, norm in norms(network).items():
        means = [x.mean((0, 2, 3)) for x in inputs[name]]
        variances = [x.var((0, 2, 3), ddof=1) for x in inputs[name]]
        np.testing.assert_allclose(norm.running_mean, np.mean(means, 0), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(norm.running_var, np.mean(variances, 0), rtol=1e-7)
        assert norm.num_batches_tracked == 3


def test_old_norm_statistics_do_not_matter(batches):
    one, other = tiny(), tiny()
    for norm in norms(other).values():
        norm.running_mean.fill_(100)
        norm.num_batches_tracked.fill_(1000)
    calibrate(one, batches)
    calibrate(other, batches)
    calibrate(other, batches)  # nor those of the last time
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_weights_and_gradients_are_not_touched(batches):
    network = tiny()
    before = {key: parameter.clone() for key, parameter in network.named_parameters()}
    calibrate(network, batches)
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter, before[key])
        assert parameter.grad is None


def states(network):
    modes = [module.training for module in network.modules()]
    return modes, [norm.momentum for norm in norms(network).values()]


@pytest.mark.parametrize('fails', [False, True])
def test_modes_and_momenta_are_restored(fails, batches):
    network = tiny().train()
    network.stage1.eval()
    network.stem[1].momentum = 0.3
    network.stage2[1].norm1.momentum = None
    before = states(network)
    if fails:
        with pytest.raises(RuntimeError):
            calibrate(network, [*batches, torch.zeros(1, 7, 8, 8)])
    else:
        calibrate(network, batches)
    assert states(network) == before


def test_only_norm_layers_are_in_train_mode(batches):
    """Dropout would change what the layers behind it see."""

    def with_dropout():
        network = tiny()
        network.stage1.insert(1, nn.Dropout(0.9))
        return network.train()

    plain = tiny().train()
    network = with_dropout()
    calibrate(plain, batches)
    calibrate(network, batches)
    for norm, expected in zip(norms(network).values(), norms(plain).values(), strict=True):
        assert torch.equal(norm.running_mean, expected.running_mean)


def test_forward_says_how_to_run_a_batch(batches):
    one, other = tiny(), tiny()
    calibrate(one, batches)
    calibrate(other, [{'x': batch} for batch in batches], lambda batch: other(batch['x']))
    assert torch.equal(one.stage2[1].norm2.running_var, other.stage2[1].norm2.running_var)


def test_no_batch_is_an_error():
    network = tiny().train()
    before = states(network)
    with pytest.raises(ValueError, match='no batch to estimate the statistics'):
        calibrate(network, [])
    assert states(network) == before


def test_layers_without_norm_statistics_are_left_out():
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(4))
    assert calibrate(network, []) == 0
    network.append(nn.BatchNorm2d(3))
    assert calibrate(network, [torch.randn(2, 3, 4, 4)]) == 1
    assert network[0].running_mean is None


def test_an_exported_subnet_gets_its_own(batches):
    """In eval mode it then does on one batch what it does in train mode."""
    supernet = Supernet(tiny(), TINY_INPUT)
    main = copy.deepcopy(supernet.model.state_dict())
    network = supernet.export(Architecture((2, 1), (0.3, 0.5)))
    calibrate(network, batches[:1])
    network.eval()
    evaluated = network(batches[0])
    network.train()
    # 512 or 128 values a channel: biased and unbiased variance differ by up to 1 %
    torch.testing.assert_close(evaluated, network(batches[0]), rtol=0.05, atol=0.05)
    state = supernet.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in main.items())
