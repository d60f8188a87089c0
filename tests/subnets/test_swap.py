"""Swapped classes copy, pickle, script and trace as the modules' own do."""

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import dataclass

import onnxruntime
import pytest
import torch
import torchvision
from einops.layers.torch import Rearrange
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx

from mmstp import Supernet
from mmstp.subnets.modules import DynamicMixin
from mmstp.subnets.swap import Role, Swapped, swap, unswap
from tests.networks import TINY_INPUT, assert_within, equal, tiny

PROVIDERS = ['CPUExecutionProvider']
# convolutions with skipped blocks, shuffled channels; heads with a forward of their own (ViT) or
# with sizes that are supplied (Swin)
NETWORKS = ['resnet18', 'shufflenet_v2_x0_5', 'vit_tiny', 'swin_tiny']


def build(name):
    torch.manual_seed(0)
    if name == 'vit_tiny':
        model = torchvision.models.VisionTransformer(32, 8, 4, 4, 48, 96, num_classes=5)
        nn.init.normal_(model.heads.head.weight)
    elif name == 'swin_tiny':
        model = torchvision.models.SwinTransformer(
            [2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=5
        )
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=5)
    return model.eval()


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def made():
    """By name: the dense network, the supernet and its smallest subnet, exported."""
    found = {}
    for name in NETWORKS:
        supernet = Supernet(build(name), torch.zeros(1, 3, 32, 32))
        found[name] = build(name), supernet, supernet.export(supernet.space.smallest)
    return found


def through_pickle(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@torch.no_grad()
def same(first, second, x=None):
    x = images() if x is None else x
    return torch.equal(first(x), second(x))


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('way', [copy.deepcopy, through_pickle])
def test_exports_are_copied_and_saved(way, name, made):
    _, _, export = made[name]
    assert same(way(export), export)
    assert same(way(way(export)), export)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('way', [copy.deepcopy, through_pickle])
def test_the_model_of_a_supernet_is_copied_and_saved(way, name, made):
    """While a subnet is active too: what comes out is the whole network."""
    dense, supernet, export = made[name]
    with supernet.activate(supernet.space.smallest):
        network = way(supernet.model)
        assert same(supernet.model, export)
    assert same(network, dense)
    assert [type(m).__name__ for m in network.modules()] == [
        type(m).__name__ for m in dense.modules()
    ]
    assert any(isinstance(module, DynamicMixin) for module in network.modules())


def test_exports_and_models_are_loaded_in_another_process(made, tmp_path):
    networks = {}
    for name, (_, supernet, export) in made.items():
        networks |= {f'{name}, exported': export, f'{name}, model': supernet.model}
    for name, network in networks.items():
        torch.save(network, tmp_path / f'{name}.pth')
    code = (
        'import sys, torch\n'
        "x = torch.load('x')\n"
        'with torch.no_grad():\n'
        "    out = [torch.load(f'{n}.pth', weights_only=False)(x) for n in sys.argv[1:]]\n"
        "torch.save(out, 'out')\n"
    )
    torch.save(images(), tmp_path / 'x')
    command = [sys.executable, '-c', code, *networks]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    for (name, network), found in zip(networks.items(), torch.load(tmp_path / 'out'), strict=True):
        with torch.no_grad():
            assert torch.equal(network(images()), found), name


@pytest.mark.slow
def test_exports_are_spawned(made, tmp_path):
    _, _, export = made['swin_tiny']
    path = tmp_path / 'out.pth'
    torch.multiprocessing.spawn(run_and_save, (export, images(), str(path)), nprocs=1)
    with torch.no_grad():
        assert torch.equal(torch.load(path), export(images()))


def run_and_save(rank, network, x, path):
    with torch.no_grad():
        torch.save(network(x), path)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('name', NETWORKS)
def test_exports_are_scripted_where_the_dense_network_is(name, made):
    dense, _, export = made[name]
    torch.jit.script(dense)
    if name == 'swin_tiny':
        with pytest.raises(NotImplementedError, match=r'use torch\.jit\.trace'):
            torch.jit.script(export)
        assert same(torch.jit.trace(export, images()), export)
        return
    scripted = torch.jit.script(export)
    assert same(scripted, export)
    assert same(scripted, export, images(3))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert same(torch.jit.load(file), export)


def test_the_model_of_a_supernet_is_not_scripted(made):
    """What would come out is the dense network for good."""
    with pytest.raises(NotImplementedError, match=r'Conv2d is part of a supernet: script an expor'):
        torch.jit.script(made['resnet18'][1].model)


@pytest.mark.parametrize('name', NETWORKS)
def test_exports_are_traced_symbolically_where_the_dense_network_is(name, made):
    dense, supernet, export = made[name]
    assert same(fx.symbolic_trace(dense), dense)
    traced = fx.symbolic_trace(export)
    assert same(traced, export)
    assert same(traced, export, images(3))
    assert same(fx.symbolic_trace(supernet.model), dense)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
@pytest.mark.filterwarnings('ignore:Please use quant_min')
@pytest.mark.parametrize('name', NETWORKS)
def test_exports_are_prepared_for_quantization(name, made):
    export = copy.deepcopy(made[name][2])
    mapping = get_default_qconfig_mapping('fbgemm')
    prepared = prepare_fx(export, mapping, (images(),))
    with torch.no_grad():
        assert_within(prepared(images()), export(images()), 1e-4)


@pytest.mark.parametrize('name', NETWORKS)
def test_exports_have_a_dynamic_batch(name, made):
    export = made[name][2]
    batch = torch.export.Dim('batch', min=2, max=64)
    program = torch.export.export(export, (images(),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for count in (2, 5):
            torch.testing.assert_close(program.module()(images(count)), export(images(count)))


@pytest.mark.filterwarnings('ignore::FutureWarning')  # of torch to itself
@pytest.mark.parametrize('name', ['resnet18', 'vit_tiny', 'swin_tiny'])
def test_onnx_files_of_exports_have_a_dynamic_batch(name, made, tmp_path):
    export = made[name][2]
    batch = torch.export.Dim('batch', min=2, max=64)
    program = torch.onnx.export(
        export, (images(),), dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
    )
    program.save(str(tmp_path / 'export.onnx'))
    session = onnxruntime.InferenceSession(tmp_path / 'export.onnx', providers=PROVIDERS)
    for count in (2, 5):
        (found,) = session.run(None, {session.get_inputs()[0].name: images(count).numpy()})
        with torch.no_grad():
            expected = export(images(count))
        assert_within(torch.from_numpy(found), expected, 1e-3)


# --- the mechanism -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times(Role):
    factor: int

    def members(self, base):
        def forward(module, x):
            return self.factor * base.forward(module, x) + module.extra

        return {'forward': forward}


def test_names_and_modules_stay():
    module = nn.Linear(2, 2)
    swap(module, Times(2), extra=1)
    assert isinstance(module, Swapped)
    assert (type(module).__name__, type(module).__module__) == ('Linear', nn.Linear.__module__)
    assert repr(module) == repr(nn.Linear(2, 2))
    other = nn.Linear(2, 2)
    swap(other, Times(2), extra=5)
    assert type(other) is type(module)


def test_roles_are_stacked_and_taken_off():
    module, x = nn.Linear(2, 2), torch.randn(1, 2)
    expected = module(x)
    attributes = set(vars(module))
    swap(module, Times(2), extra=0)
    swap(module, Times(3), extra=0)
    for found in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(found(x), 6 * expected)
    unswap(module)
    assert type(module) is nn.Linear
    assert set(vars(module)) == attributes


def test_a_class_with_its_own_state_keeps_the_role_s():
    """einops' layers pickle their pattern alone."""
    module = Rearrange('b (h c) -> b c h', h=2)
    swap(module, Times(2), extra=1)
    x = torch.randn(1, 6)
    for found in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(found(x), module(x))


def test_state_that_leads_back_to_the_module():
    module = nn.Linear(2, 2)
    swap(module, Times(2), extra=0)
    vars(module)['itself'] = [module]
    for found in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert found.itself[0] is found


def test_a_supernet_s_own_copy_shares_one_subnet():
    supernet = Supernet(tiny(), TINY_INPUT)
    network = through_pickle(supernet.model)
    subnets = {
        id(vars(m)['_mmstp_subnet']) for m in network.modules() if isinstance(m, DynamicMixin)
    }
    assert len(subnets) == 1
    assert equal(network(TINY_INPUT), supernet.model(TINY_INPUT))


def rebuilt(cls, state):
    found = nn.Linear.__new__(cls)
    found.__setstate__(state)
    return found


class Reduced(nn.Linear):
    """Has a way of its own to be copied, and tells no one of its subclasses."""

    def __init_subclass__(cls, **kwargs):
        raise TypeError('final')

    def __reduce__(self):
        return rebuilt, (type(self), self.__dict__)

    def __reduce_ex__(self, protocol):
        return self.__reduce__()


def test_a_class_that_copies_itself_its_own_way():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 4), nn.Flatten(), Reduced(32, 5))
    x = torch.randn(2, 3, 4, 4)
    supernet = Supernet(model.eval(), x)
    export = supernet.export(supernet.space.smallest)
    assert type(export[3]) is Reduced
    with supernet.activate(supernet.space.smallest):
        assert same(supernet.model, export, x)


class Trains(nn.Sequential):
    """Copies itself in train mode."""

    def __deepcopy__(self, memo):
        found = nn.Sequential.__new__(type(self))
        memo[id(self)] = found
        vars(found).update(copy.deepcopy(vars(self), memo))
        return found.train()


def test_an_export_has_the_modes_of_the_model():
    model = Trains(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 5, 1)).eval()
    supernet = Supernet(model, TINY_INPUT, stem=True)
    export = supernet.export(supernet.space.smallest)
    assert not any(module.training for module in export.modules())


class ReducedItself(nn.Linear):
    """Pickles by its class and what it was made with, whatever that class is at the moment."""

    def __reduce__(self):
        return self.__class__, (self.in_features, self.out_features), self.__dict__


def test_a_class_that_pickles_by_itself():
    module = ReducedItself(3, 4)
    swap(module, Times(5), factor=2)
    for read in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert type(read) is type(module)
        assert torch.equal(read.weight, module.weight)
        assert read.factor == 2
    unswap(module)
    assert type(pickle.loads(pickle.dumps(module))) is ReducedItself


class Collides(nn.Module):
    """Its own names are those that are near at hand for ours."""

    role, added, own_class = 2.0, 'x', None

    def __init__(self):
        super().__init__()
        self._path, self._subnet, self.state = 3.0, 0.5, 'held'
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.a(x).reshape(len(x), 16, -1)[..., None] * self.role + self._path * self._subnet
        return self.b(x)


def test_names_of_a_model_stay_its_own():
    torch.manual_seed(0)
    model, x = Collides().eval(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    supernet = Supernet(model, x, stem=True)
    assert equal(model(x), expected)
    with supernet.activate(supernet.space.smallest):
        assert equal(model(x), supernet.export(supernet.space.smallest)(x))
    assert (model._path, model._subnet, model.state, model.role) == (3.0, 0.5, 'held', 2.0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


class Twice(nn.Module):
    """A container that is known by two names, and a block of it by three."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.same, self.last = self.blocks, self.blocks[2]

    def forward(self, x):
        return self.head(self.same(self.stem(x)))


def test_modules_with_two_names_are_left_out_by_both():
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(2, 3, 4, 4)
    supernet = Supernet(model, x)
    architecture = supernet.space.smallest
    assert len(supernet.space.skipped(architecture)) == 2
    network = supernet.export(architecture)
    with supernet.activate(architecture):
        assert equal(model(x), network(x))
    assert not list(network.last.parameters())
    assert not list(network.same[1].parameters())
