"""What a search space holds, as text for people."""

from __future__ import annotations

from collections.abc import Mapping

from ..analysis.walk import NO_HANDLER
from ..errors import BudgetError
from ..search.budget import ENUMERABLE, Budget, feasible_rows
from ..search.budgets import rows_by_budget
from ..search.cost import amount
from ..search.stages import by_reason
from ..subnets.supernet import Supernet

MET, NOT_MET = 'met by', 'cannot be met'
_SAMPLED = 1000  # architectures looked for where a space is too large to be enumerated


def describe_space(supernet: Supernet, budgets: Mapping[str, Budget]) -> tuple[str, bool]:
    """Stages, groups, fixed layers and the range of costs; and whether the budgets can be met."""
    space = supernet.space
    lines = ['stage                       depths            widths                     groups']
    what = ' (left out)' if space.prune_slow else ' (space.prune_slow=True leaves them out)'
    for stage in space.stages:
        depths, widths = (', '.join(map(str, each)) for each in (stage.depths, stage.widths))
        lines.append(f'{stage.name:27s} {depths:17s} {widths:26s} {len(stage.groups)}')
        lines += [f'    blocks: {" ".join(chain)}  (the first stays)' for chain in stage.chains]
        for group in (supernet.graph.groups[index] for index in stage.groups):
            more = f' and {len(group.makers) - 1} more' if len(group.makers) > 1 else ''
            kept = [space.units(group, w) * group.unit_size for w in stage.widths]
            lines.append(f'    {group.name}{more}: {group.channels} channels, choices {kept}')
        if slow := supernet.slow_widths.get(stage.name):
            lines.append(f'    no faster than the next larger: {", ".join(map(str, slow))}{what}')
    lines += ['', *(['fixed:'] if space.fixed else [])]
    for reason, paths in by_reason(space.fixed).items():
        lines.append(f'    {", ".join(paths)}: {reason}')
    lines += ['blocks that cannot be skipped:'] if supernet.graph.unskippable else []
    for reason, paths in by_reason(supernet.graph.unskippable).items():
        lines.append(f'    {", ".join(paths)}: {reason}')
    for operator, callers in supernet.graph.unknown.items():
        lines.append(f'    operator {operator!r} {NO_HANDLER}; called by {", ".join(callers)}')
    if supernet.one_size:
        lines.append(f'    the size of the input: {supernet.one_size}')
    if supernet.one_batch:
        lines.append(f'    the size of a batch: {supernet.one_batch}')
    smallest, metrics = supernet.describe(space.smallest), supernet.cost.metrics
    lines += [
        '',
        f'size     {space.size:,} architectures, each ((blocks per stage), (widths per stage))',
        f'smallest {space.smallest}: '
        + ', '.join(amount(metric, smallest[metric]) for metric in metrics),
        f'largest  {space.largest}: '
        + ', '.join(amount(metric, smallest[f'{metric}_dense']) for metric in metrics),
        '         (the smallest has '
        + ', '.join(f'{smallest[f"{metric}_ratio"]:.2%} of the {metric}' for metric in metrics)
        + ')',
    ]
    met = True
    for label, budget in budgets.items():
        own, found = _describe_budget(supernet, budget, label if len(budgets) > 1 else '')
        lines, met = [*lines, '', *own], met and found
    if met:
        try:
            rows_by_budget(space, supernet.cost, budgets, _SAMPLED)
        except BudgetError as error:
            lines, met = [*lines, '', str(error)], False
    if supernet.cost.latency_fit is not None:
        lines.append(f'latency  {supernet.cost.latency_fit}')
    return '\n'.join(lines), met


def _describe_budget(supernet: Supernet, budget: Budget, label: str) -> tuple[list[str], bool]:
    """What meets it; and whether anything does."""
    space = supernet.space
    target = f'target   {f"{label}: " if label else ""}{budget} within {budget.tolerance:.2%}: '
    try:
        met = feasible_rows(space, supernet.cost, budget, _SAMPLED)
    except BudgetError as error:
        return [f'{target}{NOT_MET}', f'         {error}'], False
    if space.size <= ENUMERABLE:
        found = f'{MET} {len(met):,} architectures, each another network'
    else:
        found = f'can be met; a random search found {len(met):,} architectures'
    lines = [target + found]
    for limit in budget.limits if len(budget.limits) > 1 else ():
        costs = supernet.cost.count(met, limit.metric) / limit.target
        lines.append(
            f'         of the limit of {limit.metric} they use {costs.min():.1%} to '
            f'{costs.max():.1%}'
        )
    return lines, True
