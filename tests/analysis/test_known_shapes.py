"""Sizes that a model keeps in tensors: constants of its trace."""

import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.analysis.trace import trace
from mmstp.errors import TraceError
from tests.networks import equal


class Levels(nn.Module):
    """Adds to every row of two maps its height, by a loop over their sizes."""

    def __init__(self, known=torch._shape_as_tensor):
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 1)
        self.head, self.known = nn.Conv2d(16, 4, 1), known

    def forward(self, x):
        first = self.stem(x)
        maps = [first, first[..., ::2, ::2]]
        sizes = torch.cat([self.known(one)[2:].to(x.device) for one in maps]).view(-1, 2)
        starts = torch.cat((sizes.new_zeros((1,)), sizes.prod(1).cumsum(0)[:-1]))
        assert starts[1] == first.shape[2] * first.shape[3]
        for height, _ in sizes:
            rows = torch.linspace(0.5, height - 0.5, height, device=x.device)
            index = len(sizes) - 1 if height < sizes[0, 0] else 0
            maps[index] = maps[index] + rows.view(-1, 1) / (maps[index].mean() * height)
        counts = [height * width for height, width in sizes]
        joined = torch.cat([self.middle(one).flatten(2) for one in maps], dim=2).split(counts, 2)
        return [self.head(one[..., None]) for one in joined]


def test_trace_computes_what_the_model_does():
    torch.manual_seed(0)
    model, x = Levels().eval(), torch.randn(1, 3, 17, 13)
    traced = trace(model, [x])
    with torch.no_grad():
        assert equal(traced.module(*(t for _, t in traced.lifted(model)), x), model(x))


def test_subnets_run_at_other_sizes_too():
    """The calls that make sizes are none of the trace's, so sizes are supplied to the others."""
    torch.manual_seed(0)
    model = Levels().eval()
    supernet = Supernet(model, torch.zeros(1, 3, 17, 13))
    assert [stage.name for stage in supernet.space.stages] == ['middle']
    assert supernet.one_size is None
    smallest = supernet.space.smallest
    for shape in ((1, 3, 17, 13), (2, 3, 33, 21)):
        x = torch.randn(shape)
        with torch.no_grad():
            with supernet.activate(smallest):
                narrow = model(x)
            assert equal(narrow, supernet.export(smallest)(x))


def test_what_is_no_shape_is_not_known():
    """Of values there is still nothing to go by."""
    model = Levels(known=lambda x: torch.tensor(x.shape) + (x.mean() > 9)).eval()
    with pytest.raises(TraceError, match='goes by the values of a tensor'):
        trace(model, [torch.randn(1, 3, 17, 13)])
