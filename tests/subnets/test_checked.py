"""What is checked when a supernet is made is what runs: every mode, every batch, each group."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from mmstp import Supernet
from mmstp.errors import SpaceError, VerificationError
from mmstp.search.stages import STEM_STAYS
from mmstp.subnets.check import FAILS, OTHER_BATCH
from tests.networks import equal


@pytest.fixture(autouse=True)
def seeded_layers():
    torch.manual_seed(0)


# --- torch's fused encoder ------------------------------------------------------------------------


class Encoder(nn.Module):
    """torch's own transformer behind a patch embedding, whose sizes Python gives or does not."""

    def __init__(self, before, heads=4, reshape=True, nested=False):
        super().__init__()
        self.reshape, self.patches = reshape, nn.Conv2d(3, 16 * heads, 4, 4)
        layer = nn.TransformerEncoderLayer(
            16 * heads, heads, 128, 0.0, batch_first=True, norm_first=before
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.out = nn.Linear(16 * heads, 5)

    def forward(self, x, padding=None):
        x = self.patches(x)
        x = x.reshape(len(x), x.shape[1], -1) if self.reshape else x.flatten(2)
        return self.out(self.layers(x.transpose(1, 2), src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings('ignore:enable_nested_tensor is True')
@pytest.mark.parametrize('before', [False, True])
@pytest.mark.parametrize('heads', [3, 4])
@pytest.mark.parametrize('reshape', [False, True])
def test_torch_s_encoder_runs_narrow_in_every_mode(before, heads, reshape):
    model = Encoder(before, heads, reshape).eval()
    x = torch.randn(3, 3, 16, 16)
    supernet = Supernet(model, x[:1])
    architecture = supernet.space.smallest
    network = supernet.export(architecture)
    found = []
    for training in (False, True):
        model.train(training), network.train(training)
        for gradients in (False, True):
            with supernet.activate(architecture), torch.set_grad_enabled(gradients):
                found += [model(x), network(x)]
    torch.testing.assert_close(found[1:], found[:-1])


@pytest.mark.filterwarnings('ignore:.*nested')
def test_nested_tensors_of_padded_sequences_are_not_made_of_narrow_layers():
    model = Encoder(before=False, nested=True).eval()
    x, padding = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    padding[1, 10:] = True
    supernet = Supernet(model, (x, padding))
    with supernet.activate(supernet.space.smallest), torch.no_grad():
        assert equal(model(x, padding), supernet.export(supernet.space.smallest)(x, padding))


# --- other batches --------------------------------------------------------------------------------


class Modulated(nn.Module):
    """A convolution with a kernel for each sample: the batch is its groups."""

    def __init__(self, inner, outer, rank=4):
        super().__init__()
        self.inner, self.outer = inner, outer
        self.kernels, self.route = (
            nn.Parameter(torch.randn(rank, outer, inner, 3, 3) / 9),
            nn.Linear(inner, rank),
        )

    def forward(self, x):
        b, c, h, w = x.shape
        mixed = torch.mm(self.route(x.mean((2, 3))).sigmoid(), self.kernels.flatten(1))
        kernel = mixed.view(b * self.outer, self.inner, 3, 3)
        out = F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b)
        return out.view(b, self.outer, h, w)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.m = nn.Conv2d(3, 16, 3, 2, 1), Modulated(16, 32)
        self.b, self.out = nn.Conv2d(32, 24, 3, padding=1), nn.Linear(24, 5)

    def forward(self, x):
        return self.out(self.b(self.m(self.a(x).relu()).relu()).relu().mean((2, 3)))


def test_a_batch_that_one_input_does_not_tell_from_channels_is_named():
    with pytest.raises(SpaceError) as raised:
        Supernet(Mixed().eval(), torch.randn(1, 3, 16, 16))
    assert OTHER_BATCH + FAILS in str(raised.value)


@torch.no_grad()
def test_traced_with_two_inputs_it_runs_with_any_number():
    model = Mixed().eval()
    supernet = Supernet(model, torch.randn(2, 3, 16, 16))
    assert {'m', 'b'} <= {maker for group in supernet.graph.groups for maker in group.makers}
    network = supernet.export(supernet.space.smallest)
    x = torch.randn(5, 3, 16, 16)
    with supernet.activate(supernet.space.smallest):
        one_by_one = torch.cat([model(image[None]) for image in x])
        for number in (1, 2, 3, 5):
            found = model(x[:number])
            assert equal(found, network(x[:number]))
            torch.testing.assert_close(found, one_by_one[:number])


class OfTwo(nn.Module):
    """It takes two samples, neither more nor fewer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        first, second = self.a(x).relu()
        return self.b(torch.stack([first + second, first - second]))


def test_what_the_dense_network_does_not_take_is_no_fault_of_a_subnet():
    supernet = Supernet(OfTwo().eval(), torch.randn(2, 8), stem=True)
    assert 'too many values to unpack' in supernet.one_batch
    assert (
        Supernet(
            nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), torch.randn(2, 8), stem=True
        ).one_batch
        is None
    )


class Chance(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(self.a(x) * torch.rand(()))


def test_chance_in_eval_mode_is_refused():
    with pytest.raises(VerificationError, match='chance'):
        Supernet(Chance().eval(), torch.randn(2, 8), stem=True)


# --- one by one -----------------------------------------------------------------------------------


class Attentions(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.p, self.fc = nn.Linear(12, 32), nn.Linear(32, 5)
        self.layers = nn.ModuleList(nn.MultiheadAttention(32, h, batch_first=True) for h in heads)

    def forward(self, x):
        x = self.p(x)
        for layer in self.layers:
            x = x + layer(x, x, x)[0]
        return self.fc(x.mean(1))


def test_of_layers_of_one_kind_those_that_fail_stay():
    """One head cannot be narrowed by heads; four can."""
    supernet = Supernet(Attentions((1, 4)).eval(), torch.randn(2, 7, 12))
    assert [group.name for group in supernet.graph.groups if group.name != 'p'] == ['layers.1']
    assert FAILS in supernet.graph.fixed['layers.0']


class Literal(nn.Module):
    """Its forward holds a number that no size is."""

    def __init__(self, inner, outer):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        return self.conv(x) if x.shape[1] == 24 else self.conv(x).sum()


def test_one_failure_in_a_flat_network_is_one_layer_that_stays():
    layers = [nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 1), Literal(24, 32), nn.Conv2d(32, 40, 1)]
    model = nn.Sequential(*layers, nn.Conv2d(40, 5, 1)).eval()
    supernet = Supernet(model, torch.randn(1, 3, 8, 8))
    assert [group.name for group in supernet.graph.groups if group.name != '0'] == ['2.conv', '3']
    assert FAILS in supernet.graph.fixed['1']


# --- stems ----------------------------------------------------------------------------------------


def test_a_layer_behind_one_that_stays_is_no_stem():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.mid, self.out = (
                nn.GRU(8, 16, batch_first=True),
                nn.Linear(16, 64),
                nn.Linear(64, 5),
            )

        def forward(self, x):
            return self.out(self.mid(self.gru(x)[0]).relu())

    supernet = Supernet(Net().eval(), torch.randn(2, 4, 8))
    assert [group.name for group in supernet.graph.groups] == ['mid']
    assert STEM_STAYS not in supernet.space.fixed.values()


class Fixed(nn.Module):
    """A residual block on a stream whose channels cannot be narrowed: their places count."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x).relu()).roll(1, 1)


def test_blocks_can_be_skipped_where_no_width_can_be_chosen():
    blocks = nn.Sequential(*(Fixed() for _ in range(3)))
    model = nn.Sequential(nn.Conv2d(3, 16, 1), blocks, nn.Conv2d(16, 5, 1)).eval()
    supernet = Supernet(model, torch.randn(1, 3, 8, 8))
    assert supernet.space.skipped(supernet.space.smallest) == ('1.1', '1.2')
    assert [group.name for group in supernet.graph.groups] == ['1.0.a', '1.1.a', '1.2.a']
    x = torch.randn(2, 3, 8, 8)
    row = supernet.space.encode(supernet.space.largest)
    row[0] = 0
    with supernet.activate(supernet.space.decode(row)):
        assert torch.equal(model(x), model[2](blocks[0](model[0](x))))


def test_a_space_in_which_all_widths_round_to_one_is_empty():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)).eval()
    with pytest.raises(SpaceError, match=r'space\.divisor=8, every width keeps all .*at most 8'):
        Supernet(model, torch.randn(1, 3, 8, 8))


# --- right by chance at half width ----------------------------------------------------------------


class Own(nn.Module):
    """Takes the embedding's width for that of all heads: right where both are halved."""

    def __init__(self, width, heads):
        super().__init__()
        self.inner = width // heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (
            f(x).view(b, n, -1, self.inner).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.proj(out.transpose(1, 2).reshape(b, n, c))


@torch.no_grad()
@pytest.mark.parametrize(
    'layers',
    [
        lambda: [nn.Linear(3, 16), Own(16, 4), Own(16, 4), nn.Linear(16, 5)],
        lambda: [
            nn.Linear(3, 32),
            *(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2)),
            nn.Linear(32, 5),
        ],
        lambda: [nn.Linear(3, 16), nn.RMSNorm(16), nn.Linear(16, 24), nn.Linear(24, 5)],
    ],
    ids='heads fused rms'.split(),
)
def test_every_architecture_runs(layers):
    supernet = Supernet(
        nn.Sequential(*layers()).eval(), torch.randn(1, 7, 3), divisor=1, stem=True, embedding=True
    )
    assert len(supernet.graph.groups) >= 2
    x = torch.randn(3, 7, 3)
    for architecture in supernet.space.enumerate():
        with supernet.activate(architecture):
            assert equal(supernet.model(x), supernet.export(architecture)(x)), architecture


def test_a_conversion_that_succeeds_is_silent(capfd):
    """Also where a larger image cannot be traced, as behind a flatten of fixed size."""
    layers = [nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 24), nn.Linear(24, 5)]
    Supernet(nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8), stem=True)
    supernet = Supernet(Positions().eval(), torch.randn(1, 3, 6, 6))
    assert 'takes no other size' in supernet.one_size
    assert capfd.readouterr() == ('', '')


class Positions(nn.Module):
    """Mixes 36 positions; the number of channels is in the code too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 1), nn.Linear(24, 5)
        self.mix = nn.Linear(36, 36)

    def forward(self, x):
        x = self.b(self.a(x).relu()).reshape(len(x), 24, -1)
        return self.c(self.mix(x).mean(-1))


# --- training -------------------------------------------------------------------------------------


class Recomputed(nn.Module):
    """A residual block that works its activations out again in the backward pass."""

    def __init__(self, width, reentrant):
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(width, 48), nn.Linear(48, width), reentrant

    def inner(self, x):
        return x + self.b(self.a(x).relu())

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')
@pytest.mark.parametrize('reentrant', [False, True])
def test_what_is_worked_out_again_when_no_subnet_is_active_stays_whole(reentrant):
    blocks = [Recomputed(16, reentrant) for _ in range(2)]
    model = nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 16), *blocks, nn.Linear(16, 5))
    x = torch.randn(3, 6)
    supernet = Supernet(model, x[:1], stem=True)
    assert {'2.a', '3.a'} <= supernet.space.fixed.keys()
    assert '0' not in supernet.space.fixed
    small = supernet.space.smallest
    network = supernet.export(small).train()
    with supernet.activate(small):
        out = model.train()(x)
    out.square().sum().backward()
    network(x).square().sum().backward()
    gradient = model[1].weight.grad[:, : network[1].in_features]
    torch.testing.assert_close(gradient, network[1].weight.grad)


class Scaled(nn.Module):
    """Multiplies by a running scale: a buffer that is updated, then read."""

    def __init__(self, channels, assigned):
        super().__init__()
        self.register_buffer('scale', torch.ones(channels))
        self.assigned = assigned

    def forward(self, x):
        if self.training:
            now = x.detach().abs().mean((0, 2, 3)) + 0.1
            if self.assigned:
                self.scale = 0.5 * self.scale + 0.5 * now
            else:
                self.scale.mul_(0.5).add_(now, alpha=0.5)
        return x * self.scale[:, None, None]


@pytest.mark.parametrize(
    'middle',
    [
        lambda: spectral_norm(nn.Conv2d(16, 24, 3)),
        lambda: nn.Sequential(nn.Conv2d(16, 24, 3), Scaled(24, assigned=False)),
        lambda: nn.Sequential(nn.Conv2d(16, 24, 3), Scaled(24, assigned=True)),
        lambda: nn.Sequential(nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24, momentum=None)),
    ],
    ids='spectral_norm in_place assigned cumulative'.split(),
)
def test_buffers_that_are_updated_then_read_are_the_subnet_s(middle):
    layers = [nn.Conv2d(3, 16, 1), middle(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(24, 5)).eval()
    x = torch.randn(4, 3, 8, 8)
    supernet = Supernet(model, x, stem=True)
    assert supernet.space.fixed.keys() == {'5'}
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    small = supernet.space.smallest
    for _ in range(3):
        network = supernet.export(small).train()
        with supernet.activate(small):
            for _ in range(2):  # what it worked out in the first is there in the second
                assert torch.equal(model.train()(x), network(x))
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[key]), key


class Normed(nn.Conv2d):
    """Its weight is normalised in place before it is used."""

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.weight.div_(self.weight.flatten(1).norm(dim=1)[:, None, None, None])
        return super().forward(x)


class ActNorm(nn.Module):
    """Glow's: its parameters are set by the first batch."""

    def __init__(self, channels):
        super().__init__()
        self.mean, self.known = nn.Parameter(torch.zeros(channels)), False

    def forward(self, x):
        if self.training and not self.known:
            self.known = True
            with torch.no_grad():
                self.mean.copy_(x.mean((0, 2, 3)))
        return x - self.mean[:, None, None]


@pytest.mark.parametrize(
    'middle',
    [lambda: Normed(16, 24, 3), lambda: nn.Sequential(nn.Conv2d(16, 24, 3), ActNorm(24))],
    ids='normed actnorm'.split(),
)
def test_parameters_that_a_forward_changes_stay_whole(middle):
    layers = [nn.Conv2d(3, 20, 1), nn.Conv2d(20, 16, 1), middle(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 5)).eval()
    supernet = Supernet(model, torch.randn(4, 3, 8, 8), stem=True)
    assert any('in train mode: ' in why for why in supernet.space.fixed.values())
    assert '0' not in supernet.space.fixed
    kept = supernet.kept(supernet.space.smallest)
    changed = [key for key in kept if key.startswith('2.')]
    assert changed and all(kept[key].all() for key in changed if 'weight' not in key)


def test_class_ids_alone_are_refused():
    class Ids(nn.Sequential):
        def forward(self, x):
            return super().forward(x).argmax(1)

    layers = [nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = Ids(*layers, nn.Linear(32, 2))
    with pytest.raises(VerificationError, match=r'Ids returns torch\.int64 alone.*scores'):
        Supernet(model, torch.randn(2, 3, 8, 8), stem=True)


def test_complex_weights_keep_their_imaginary_parts():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5)
            self.weight = nn.Parameter(torch.randn(3, 16, dtype=torch.cfloat))

        def forward(self, x):
            x = self.a(x)
            return self.b(x + torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.weight, 4, dim=1))

    model, x = Spectral(), torch.randn(2, 4, 6)
    weight = model.weight.detach().clone()
    supernet = Supernet(model, x, stem=True)
    assert torch.equal(model.weight, weight)
    small = supernet.space.smallest
    with supernet.activate(small):
        assert equal(model(x), supernet.export(small)(x))
