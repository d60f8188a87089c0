"""The tables of `coverage.py`: a line for each network, what falls short, what became less."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coverage_measure import BATCHES, NO_OTHER_SIZE
from coverage_network import Network
from pages import table

SLOW = 20.0  # seconds to make a supernet
_REASONS = 3  # reasons shown per network
WHY = 'layers that stay, and why'
HEADER = (
    'network', 'input', 'seconds', 'stages', 'width groups', 'blocks', 'smallest MACs',
    'difference', 'batches', 'slicing = masking', 'other sizes', WHY,
    'blocks that stay, and why', 'no handler',
)  # fmt: skip


def failed(found: dict[str, Any]) -> bool:
    """Whether a network crashed, took too long, or its exports compute something else."""
    return 'error' in found or found.get('difference', 0.0) != 0.0


def shortcomings(found: dict[str, Any]) -> list[str]:
    """What a network misses of that it converts, narrows and shortens, soon and exactly."""
    missed = []
    if 'error' in found:
        missed = [f'could not be {found.get("step", "started")}: {short(found["error"], 300)}']
    if 'seconds' not in found:
        return missed
    unknown = _unknown(found)
    why = [said for said in (_layers(found), unknown and f'no handler for {unknown}') if said]
    layers = f' ({"; ".join(why)})' if why else ''
    if not found['groups']:
        missed.append(f'no channels can be left out{layers}')
    if not found['blocks']:
        why_blocks = _blocks(found)
        missed.append(f'no block can be left out{why_blocks and f" ({why_blocks})"}')
    if found['smallest'] > 0.5:
        missed.append(f'the smallest subnet has {found["smallest"]:.0%} of the MACs{layers}')
    if found.get('difference', 0.0) != 0.0:
        missed.append(f'exports differ by {found["difference"]:.1e}')
    if found.get('one_batch'):
        missed.append(f'batches of another size: {short(found["one_batch"])}')
    if found.get('masking'):
        missed.append(f'slicing is not masking: {short(found["masking"])}')
    if found.get('other') not in (None, 'yes', NO_OTHER_SIZE):
        missed.append(f'inputs of another size: {short(found["other"])}')
    if found['seconds'] > SLOW:
        missed.append(f'takes {found["seconds"]:.0f} s')
    return missed


def row(network: Network, found: dict[str, Any]) -> list[str]:
    """A network's line of the table."""
    name = title(network)
    if network.excluded:
        return _padded([name], f'not measured: {network.excluded}')
    size = '; '.join('×'.join(map(str, shape)) or '1' for shape in found.get('inputs', ()))
    if 'seconds' not in found:
        return _padded([name, size], short(found['error']))
    difference, masked = found.get('difference'), found.get('masking')
    batches = found.get('batches', ())
    return [
        name,
        size,
        f'{found["seconds"]:.1f}',
        str(found['stages']),
        str(found['groups']),
        str(found['blocks']),
        f'{found["smallest"]:.1%}',
        '' if difference is None else '0.0' if difference == 0 else f'{difference:.1e}',
        'all' if list(batches) == list(BATCHES) else ', '.join(map(str, batches)) and
        f'{", ".join(map(str, batches))}: {short(found["one_batch"] or "")}',
        'not run' if masked is None else 'no' if masked else 'yes',
        _other(found.get('other')),
        short(found['error']) if 'error' in found else _layers(found),
        _blocks(found),
        _unknown(found),
    ]  # fmt: skip


def report(results: Sequence[tuple[Network, dict[str, Any]]]) -> str:
    """The table of some networks, and below it what falls short."""
    measured = [pair for pair in results if not pair[0].excluded]
    good = sum(not failed(found) for _, found in measured)
    lines = [
        f'{good} of {len(measured)} networks were converted, run and exported.',
        '',
        table(HEADER, [row(*pair) for pair in results]),
        '',
        'What falls short:',
        '',
    ]
    missed = [(title(network), shortcomings(found)) for network, found in measured]
    lines += [f'- {name}: {"; ".join(why)}' for name, why in missed if why] or ['nothing']
    return '\n'.join(lines)


def earlier(page: str) -> dict[str, dict[str, str]]:
    """The lines of all tables of a page: by source and title, the cells by the head of the column.

    Args:
        page: As `coverage.py` wrote it, with these columns or others.
    """
    lines: dict[str, dict[str, str]] = {}
    for source, text in re.findall(r'<!-- begin (\w+) -->(.*?)<!-- end', page, re.DOTALL):
        rows = [_cells(line) for line in text.splitlines() if line.startswith('| ')]
        for cells in rows[2:]:
            lines[f'{source} {cells[0]}'] = dict(zip(rows[0], cells, strict=False))
    return lines


def losses(network: Network, found: dict[str, Any], lines: Mapping[str, Any]) -> Iterator[str]:
    """What a network has less of than in an `earlier` table."""
    before = lines.get(f'{network.source} {title(network)}', {})
    if not before.get('seconds') or network.excluded:
        return
    if 'seconds' not in found:
        yield 'was converted before'
        return
    for what, now in (('width groups', found['groups']), ('blocks', found['blocks'])):
        if now < int(before[what]):
            yield f'{what} {before[what]} → {now}'
    share = float(before['smallest MACs'].rstrip('%')) / 100
    if found['smallest'] > share * 1.02 + 0.0006:
        yield f'smallest MACs {share:.1%} → {found["smallest"]:.1%}'
    if before.get('difference') == '0.0' and failed(found):
        yield 'was right before'


def title(network: Network) -> str:
    """How a table names it."""
    return f'{network.family}: {network.name}' if network.name else network.family


def short(text: str, length: int = 120) -> str:
    """One line that a Markdown table can hold, without the folders of files."""
    text = re.sub(r'(?<![\w.])/(?:[\w.+-]+/)+', '', text)
    text = re.sub(r'\s+', ' ', text).strip().replace('|', '\\|')
    return text if len(text) <= length else text[: length - 1] + '…'


def _padded(first: list[str], why: str) -> list[str]:
    cells = dict.fromkeys(HEADER, '') | dict(zip(HEADER, first, strict=False))
    return list({**cells, WHY: why}.values())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r'(?<!\\)\|', line.strip().strip('|'))]


def _other(found: str | None) -> str:
    return 'not run' if found is None else found if found in ('yes', NO_OTHER_SIZE) else 'no'


def _layers(found: dict[str, Any]) -> str:
    return _most((n, reason, '') for reason, n in found['fixed'].items())


def _blocks(found: dict[str, Any]) -> str:
    reasons = found['unskippable'].items()
    return _most((len(paths), reason, f' ({paths[0]})') for reason, paths in reasons)


def _unknown(found: dict[str, Any]) -> str:
    return ', '.join(f'{name} ({n} calls)' for name, n in found['unknown'].items())


def _most(counted: Iterable[tuple[int, str, str]]) -> str:
    """The reasons with the highest counts, each with its example, and the number of the others."""
    ordered = sorted(counted, key=lambda one: -one[0])
    said = [f'{n} × {short(reason)}{where}' for n, reason, where in ordered[:_REASONS]]
    if rest := sum(n for n, *_ in ordered[_REASONS:]):
        said.append(f'{rest} for other reasons')
    return '; '.join(said)
