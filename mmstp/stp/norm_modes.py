"""Norms that would normalise a subnet by the main network's running statistics while it trains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from ..analysis.trace import caller, operator_name
from ..errors import OptionError
from ..foreign import BatchNorm
from ..subnets.supernet import Supernet


def norms_behind_choices(supernet: Supernet) -> list[tuple[str, nn.Module]]:
    """The norms with running statistics whose input is another in some subnet, by path.

    Those in front of all that can be narrowed or left out see the same in every subnet.
    """
    space, graph = supernet.space, supernet.graph
    chosen = {index for stage in space.stages for index in stage.groups if len(stage.widths) > 1}
    narrowed = {
        key
        for key, dims in graph.dims.items()
        if any(chosen.intersection(dim_map.groups) for dim_map in dims.values())
    }
    skippable = {
        path
        for stage in space.stages
        if len(stage.depths) > 1
        for chain in stage.chains
        for path in chain[1:]
    }
    inside = {
        node
        for chain in graph.chains
        for block in chain.skippable
        if block.path in skippable
        for node in block.nodes
    }
    traced = graph.traced[0].trace
    lifted = iter(key for key, _ in traced.lifted(supernet.model))
    behind: set[fx.Node] = set()
    paths: list[str] = []
    for node in traced.module.graph.nodes:
        if node.op == 'placeholder':
            if next(lifted, None) in narrowed:
                behind.add(node)
            continue
        normalises = node.op == 'call_function' and operator_name(node) == 'aten::batch_norm'
        if normalises and (node.args[0] in behind or node in inside):
            paths.append(caller(node))
        if node in inside or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    modules = dict(supernet.model.named_modules())
    return [(path, modules[path]) for path in paths if isinstance(modules.get(path), BatchNorm)]


def refuse_eval_norms(norms: Sequence[tuple[str, nn.Module]], model: nn.Module) -> None:
    """Raises where one of these norms of a model is in eval mode.

    Raises:
        OptionError: Naming the norms, and the options that put them there.
    """
    frozen = [path for path, norm in norms if not norm.training]
    if not frozen:
        return
    backbone = getattr(model, 'backbone', None)
    options = {
        name: value
        for name in ('norm_eval', 'frozen_stages')
        if (value := getattr(backbone, name, None)) is not None
        and value is not False
        and value != -1
    }
    more = f' and {len(frozen) - 1} more norms stay' if len(frozen) > 1 else ' stays'
    said = ', '.join(f'{name}={value!r}' for name, value in options.items())
    raise OptionError(
        f'{frozen[0]}{more} in eval mode in training'
        f'{f" ({said})" if said else ""}: subnets would be trained on the running statistics of '
        'the main network, and evaluated on others. Set norm_eval=False and frozen_stages=-1 in '
        'the backbone, or keep all that is in front of these norms whole and at full '
        'depth (space.stages, space.fix)'
    )


def refuse_synchronised(model: nn.Module) -> None:
    """Raises where norms wait for what other ranks have, which would be another subnet's.

    Raises:
        OptionError: Naming the first of these norms.
    """
    for path, module in model.named_modules():
        # PyTorch's or mmcv's
        if any(kind.__name__ == 'SyncBatchNorm' for kind in type(module).__mro__):
            raise OptionError(
                f'pool.per_rank=True: {path} is a SyncBatchNorm, which joins the statistics of all '
                'ranks, and those of different subnets cannot be joined. Take plain batch norms '
                "(norm_cfg=dict(type='BN')), or per_rank=False"
            )
