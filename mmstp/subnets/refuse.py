"""Models that cannot be run as their subnets, and why."""

from __future__ import annotations

import torch
from torch import nn

from ..analysis.analysis import ChannelGraph
from ..errors import SupernetError
from ..foreign import is_compiled
from .modules import DynamicMixin


def refuse(model: nn.Module) -> None:
    """Raises for a model that is wrapped, compiled, without values or dynamic already.

    Raises:
        SupernetError: Naming the module and what to do.
    """
    name = type(model).__name__
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise SupernetError(
            f'the model is wrapped in {name}: make a supernet of what is inside (model.module), '
            'and wrap it afterwards'
        )
    for key, parameter in model.named_parameters():
        if parameter.is_meta:
            raise SupernetError(
                f'{key} is on the meta device and has no values: build the model on a real device, '
                'or move it with to_empty() and initialise it'
            )
    for path, module in model.named_modules():
        if is_compiled(module):
            raise SupernetError(
                f'{path or "the model"} is compiled: make a supernet of the module that was given '
                'to torch.compile (its _orig_mod), or leave Module.compile() out. Exported subnets '
                'can be compiled'
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SupernetError(
                f'{path or "the model"} is a TorchScript module, whose layers cannot be narrowed: '
                'build it without torch.jit'
            )
        if isinstance(module, DynamicMixin):
            raise SupernetError(f'{path or "the model"} is part of a supernet already')
        if getattr(module, 'with_cp', False) is True:
            raise SupernetError(
                f'{path or "the model"} ({type(module).__name__}) has with_cp=True: it would be '
                'recomputed in the backward pass, when its subnet is no longer active. '
                'Set with_cp=False'
            )


def check_intact(model: nn.Module, graph: ChannelGraph) -> None:
    """Whether the layers of a supernet's model are still those made dynamic.

    Raises:
        SupernetError: Naming the first that was replaced.
    """
    modules = dict(model.named_modules())
    for path in (key.rpartition('.')[0] for key in graph.dims):
        if not isinstance(modules.get(path), DynamicMixin):
            raise SupernetError(
                f'{path} was replaced by {type(modules.get(path)).__name__} after the supernet was '
                'made. Name the layer that you want in the config of the model '
                "(norm_cfg=dict(type='SyncBN'), with several processes) instead of having it "
                'converted later'
            )
