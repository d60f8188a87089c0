"""A subnet of another budget, found in a main network that is trained already."""

import json

import pytest
import torch
from mmengine.runner import Runner

from mmstp import Architecture, Budget, BudgetError, CheckpointError, LaunchError
from mmstp.cli.launch import load_config, load_search
from mmstp.deploy.export import reload
from mmstp.stp.hooks.pool import STATE
from mmstp.stp.hooks.statistics import on_images
from tests import tiny

QUICK = ('--screened', 6, '--candidates', 3, '--images', 16, '--num-images', 32)

ALONE = ('train_dataloader.num_workers=0', 'val_dataloader.num_workers=0')


@pytest.fixture(scope='module')
def searched(call, tiny_config, trained, tmp_path_factory):
    """The folder that was written for 30 % of the multiply-adds."""
    folder = tmp_path_factory.mktemp('searched')
    call('search.py', tiny_config, trained / 'epoch_2.pth', '--target', 0.3, *QUICK,
         '--data', 'val', '--out', folder, '--cfg-options', *ALONE)  # fmt: skip
    return folder


def test_it_meets_the_budget_and_its_export_is_the_active_subnet(searched, tiny_config, trained):
    described = json.loads((searched / 'architecture.json').read_text())
    assert described['macs_ratio'] == pytest.approx(0.3, rel=0.1)
    assert described['budget'].endswith(' macs (30.00% of the dense network) within 10.00%')
    text = (searched / 'compact.py').read_text()
    assert f'# Meets the budget of {described["budget"]}.' in text
    assert f'{described["activations_ratio"]:.2%} of the activations' in text.splitlines()[0]
    stp = tiny.stp()
    load_search(stp, str(trained / 'epoch_2.pth'), load_config(str(tiny_config)))
    found = Architecture.parse(described['architecture'])
    assert not stp.budget.meets(stp.budget.used(stp.supernet.cost, [found])).any()

    config = load_config(str(tiny_config), {'train_dataloader.num_workers': 0})
    loader = Runner.build_dataloader(config.train_dataloader)
    on_images(stp.model, loader, 32, lambda batches: stp.supernet.calibrate(found, batches))
    images, _ = tiny.batch()
    with torch.no_grad(), stp.supernet.activate(found):
        active = stp.model.eval()(images)
    assert torch.equal(reload(searched).eval()(images), active)


def test_the_table_of_a_dense_network(call, tiny_config, tmp_path, capsys):
    """By several limits, and without an export."""
    stp, dense = tiny.stp(), tmp_path / 'dense.pth'
    torch.save(stp.model.state_dict(), dense)
    call('search.py', tiny_config, '--target', 'macs=0.5', 'params=0.4', *QUICK,
         '--cfg-options', f'model.pretrained={dense}', *ALONE)  # fmt: skip
    head, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert head.split() == ['architecture', 'macs', 'params', 'screened', 'images',
                            'distance', 'behind', 'the', 'best']  # fmt: skip
    space, cost = stp.supernet.space, stp.supernet.cost
    budget = Budget.of(dict(macs=0.5, params=0.4), 'macs', 0.1, space, cost)
    for row in rows:
        assert budget.meets(budget.used(cost, [row[: row.index('))') + 2]])).all()
    best, second, third = (row.split(')) ')[1].replace('±', '').split() for row in rows)
    assert [int(row[3]) for row in (best, second, third)] == [32, 32, 16]
    assert float(best[4]) <= float(second[4])
    assert float(second[5]) == pytest.approx(float(second[4]) - float(best[4]), abs=2e-4)


@pytest.mark.parametrize(
    ('flags', 'error', 'message'),
    [
        (('--target', 0.001), BudgetError, r'no architecture meets target=.*the nearest is'),
        (('--target', 0.3, 0.4), LaunchError, r'--target 0\.3 0\.4: expected one number, or'),
        (('--target', 'macs=1', 'macs=2'), LaunchError, r'--target macs=1\.0 macs=2\.0: expect'),
        (('--target', -1), BudgetError, r'--target=-1\.0: expected a fraction'),
        (('--target', 'mac=0.4'), BudgetError, "--target has no metric 'mac': did you mean 'macs'"),
        (('--target', 0.3, '--cfg-options', 'model.target=0.5'), CheckpointError,
         r'of a run with another config:\n  model\.target = 0\.4 in the checkpoint, 0\.5'),
        (('--target', 0.3, '--data', 'val', '--cfg-options', 'val_dataloader=None'), LaunchError,
         '--data val: the config has no val_dataloader'),
    ],
)  # fmt: skip
def test_what_is_asked_for_has_to_be_there(
    call, tiny_config, trained, tmp_path, flags, error, message
):
    out = tmp_path / 'new' / 'out'
    with pytest.raises(error, match=message):
        call('search.py', tiny_config, trained / 'epoch_2.pth', '--out', out, *flags, *QUICK)
    assert not out.parent.exists()


def test_a_main_network_is_needed(call, tiny_config, tmp_path):
    with pytest.raises(LaunchError, match=r'no main network: .*model\.pretrained'):
        call('search.py', tiny_config, '--target', 0.3)
    stp = tiny.stp(model__survivor={})
    stp.pool.shrink(4)
    stp.go_alone()
    state = dict(pool=stp.pool.state_dict(), pool_size=5, alone=True, teacher=False)
    torch.save({'state_dict': stp.state_dict(), STATE: state}, tmp_path / 'survivor.pth')
    config = load_config(str(tiny_config))
    config.model.survivor = {}
    config.dump(tmp_path / 'survivor.py')
    with pytest.raises(LaunchError, match=r'survivor\.pth. is of the survivor phase: .* is gone'):
        call('search.py', tmp_path / 'survivor.py', tmp_path / 'survivor.pth', '--target', 0.3)


@pytest.mark.parametrize('text', ['half', 'macs=', 'macs'])
def test_targets_are_numbers(call, tiny_config, text, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('search.py', tiny_config, '--target', text)
    assert f'--target: {text!r}: expected a number' in capsys.readouterr().err
