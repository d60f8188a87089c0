"""Converts the networks of mmpretrain, torchvision and timm, and tells what can be pruned in each.

``python tools/analysis_tools/coverage.py --source torchvision --only 'resnet*'``: nothing is
declared and nothing downloaded. Every network has a process of its own and a minute. The lists of
networks are in ``coverage_models.py``.
"""

from __future__ import annotations

import argparse
import collections
import copy
import difflib
import fnmatch
import functools
import itertools
import math
import os
import random
import re
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from coverage_models import SOURCES, Network, networks
from pages import environment, insert, table
from processes import in_process

from mmstp import Architecture, Supernet
from mmstp.foreign import pytree
from mmstp.subnets.check import Verifier

SECONDS = 60.0
RANDOM = 3  # architectures drawn besides the smallest
SLOW = 20.0  # seconds to make a supernet
_REASONS = 3  # reasons shown per network
_HEADER = (
    'network', 'input', 'seconds', 'stages', 'width groups', 'blocks', 'smallest MACs',
    'difference', 'slicing = masking', 'other sizes', 'fixed, and why',
)  # fmt: skip


# --- one network ---------------------------------------------------------------------------------


def steps(network: Network, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """What is found about a network, as soon as it is found: entries of the result of `measure`."""
    start = time.perf_counter()
    yield {'step': 'built'}
    assert network.build is not None
    model, inputs = network.build()
    model.eval()  # which returns None for some of mmpretrain's backbones
    generator = torch.Generator().manual_seed(0)
    fill(model, generator)
    yield {'step': 'converted', 'input': tuple(inputs.shape[1:])}
    before = time.perf_counter()
    supernet = Supernet(model, inputs)
    analysis = time.perf_counter() - before
    yield {'step': 'run', 'seconds': analysis, **described(supernet)}
    rng = random.Random(0)
    space = supernet.space
    architectures = [space.smallest, *(space.sample(rng) for _ in range(RANDOM))]
    images = [torch.randn(n, *inputs.shape[1:], generator=generator) for n in (1, 2)]
    yield {'difference': largest_difference(supernet, architectures, images)}
    # a verifier takes about as long as the analysis, which made one or more
    if time.perf_counter() - start + analysis < seconds:
        yield {'step': 'compared with its masked trace'}
        yield {'masking': masking(supernet, architectures[1:])}
    yield {'step': 'run at another size'}
    widest = Architecture(space.largest.depths, space.smallest.widths)  # with every block
    yield {'other': at_another_size(supernet, [*architectures, widest])}


def described(supernet: Supernet) -> dict[str, Any]:
    """What the space of a supernet holds."""
    space = supernet.space
    rows = [space.encode(space.smallest), space.encode(space.largest)]
    narrow, full = space.group_units(torch.tensor(rows).numpy())
    smallest, dense = supernet.cost.macs([space.smallest, space.largest]).tolist()
    return {
        'stages': len(space.stages),
        'groups': int((narrow < full).sum()),
        'blocks': len(space.min_depth()),
        'smallest': smallest / dense,
        'fixed': collections.Counter(space.fixed.values()),
        'unknown': {name: len(paths) for name, paths in supernet.graph.unknown.items()},
    }


@torch.no_grad()
def largest_difference(
    supernet: Supernet, architectures: Sequence[Architecture], images: Sequence[Tensor]
) -> float:
    """Between the outputs of active subnets and those of their exports."""
    gaps = [0.0]
    for architecture in architectures:
        exported = supernet.export(architecture)
        for x in images:
            with supernet.activate(architecture):
                active = tensors(supernet.model(x))
            for a, b in zip(active, tensors(exported(x)), strict=True):
                if a.shape != b.shape:
                    raise ValueError(f'an output has shape {a.shape}, exported {b.shape}')
                gaps.append((a - b).abs().max().item())
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


@torch.no_grad()
def at_another_size(supernet: Supernet, architectures: Sequence[Architecture]) -> str:
    """Whether subnets and their exports agree on an image of another size.

    Returns ``'yes'``, ``'dense neither'`` where the dense network does not take it, or the reason.
    """
    (inputs,) = supernet.inputs
    height, width = (
        -(-int(s * f) // 32) * 32 for s, f in zip(inputs.shape[2:], (1.3, 1.6), strict=True)
    )
    images = torch.randn(1, inputs.shape[1], height, width)
    try:
        copy.deepcopy(supernet.model)(images)  # there are forwards that keep what a size gave
    except Exception:  # whatever it says of the size
        return 'dense neither'
    if supernet.one_size:
        return supernet.one_size
    try:
        difference = largest_difference(supernet, architectures, [images])
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return 'yes' if difference == 0 else f'exports differ by {difference:.1e}'


def masking(supernet: Supernet, architectures: Sequence[Architecture]) -> str:
    """How a sliced subnet differs from the dense trace with its channels masked; '' for not."""
    verifier = Verifier(supernet.model, supernet.graph, supernet.inputs)
    for architecture in architectures:
        row = supernet.space.encode(architecture)
        units = supernet.space.group_units(row[None])[0]
        if reason := verifier.difference(supernet._plan(architecture), units):
            return reason
    return ''


def fill(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights and statistics: fresh networks have branches that start at zero."""
    statistics = (pair for pair in model.named_buffers() if 'running_' in pair[0])
    for name, tensor in itertools.chain(model.named_parameters(), statistics):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            value = noise * math.sqrt(2 / max(1, tensor[0].numel()))
        elif name.endswith(('bias', 'running_mean')):
            value = noise * 0.1
        else:
            value = 1 + noise.clamp(-2, 2) * 0.2
        tensor.data.copy_(value)


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors in whatever a model returns."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def measure(network: Network, seconds: float = SECONDS) -> dict[str, Any]:
    """`steps` of a network, in a process of its own; see `in_process`."""
    if network.excluded:
        return {}
    return in_process(functools.partial(steps, network, seconds), seconds)


# --- the report ----------------------------------------------------------------------------------


def failed(found: dict[str, Any]) -> bool:
    """Whether a network crashed, took too long, or its exports compute something else."""
    return 'error' in found or found.get('difference', 0.0) != 0.0


def shortcomings(found: dict[str, Any]) -> list[str]:
    """What a network misses of that it converts, narrows and shortens, soon and exactly."""
    if 'error' in found:
        missed = [f'could not be {found.get("step", "started")}: {_short(found["error"], 300)}']
    else:
        missed = []
    if 'seconds' not in found:
        return missed
    why = f' ({_reasons(found)})' if found['fixed'] or found['unknown'] else ''
    if not found['groups']:
        missed.append(f'no channels can be left out{why}')
    if not found['blocks']:
        missed.append('no block can be left out')
    if found['smallest'] > 0.5:
        missed.append(f'the smallest subnet has {found["smallest"]:.0%} of the MACs{why}')
    if found.get('difference', 0.0) != 0.0:
        missed.append(f'exports differ by {found["difference"]:.1e}')
    if found.get('masking'):
        missed.append(f'slicing is not masking: {_short(found["masking"])}')
    if found.get('other', 'yes') not in ('yes', 'dense neither'):
        missed.append(f'images of another size: {_short(found["other"])}')
    if found['seconds'] > SLOW:
        missed.append(f'takes {found["seconds"]:.0f} s')
    return missed


def row(network: Network, found: dict[str, Any]) -> list[str]:
    """A network's line of the table."""
    name = _title(network)
    if network.excluded:
        return [name, *[''] * (len(_HEADER) - 2), f'not measured: {network.excluded}']
    size = '×'.join(map(str, found.get('input', ())))
    if 'seconds' not in found:
        return [name, size, *[''] * (len(_HEADER) - 3), _short(found['error'])]
    difference = found.get('difference')
    masked = found.get('masking')
    return [
        name,
        size,
        f'{found["seconds"]:.1f}',
        str(found['stages']),
        str(found['groups']),
        str(found['blocks']),
        f'{found["smallest"]:.1%}',
        '' if difference is None else '0.0' if difference == 0 else f'{difference:.1e}',
        'not run' if masked is None else 'no' if masked else 'yes',
        _other(found.get('other')),
        _short(found['error']) if 'error' in found else _reasons(found),
    ]


def report(results: Sequence[tuple[Network, dict[str, Any]]]) -> str:
    """The table of some networks, and below it what falls short."""
    measured = [pair for pair in results if not pair[0].excluded]
    good = sum(not failed(found) for _, found in measured)
    lines = [
        f'{good} of {len(measured)} networks were converted, run and exported.',
        '',
        table(_HEADER, [row(*pair) for pair in results]),
        '',
        'What falls short:',
        '',
    ]
    short = [(_title(network), shortcomings(found)) for network, found in measured]
    lines += [f'- {name}: {"; ".join(missed)}' for name, missed in short if missed] or ['nothing']
    return '\n'.join(lines)


def _other(found: str | None) -> str:
    return 'not run' if found is None else found if found in ('yes', 'dense neither') else 'no'


def _title(network: Network) -> str:
    return f'{network.family}: {network.name}' if network.name else network.family


def _reasons(found: dict[str, Any]) -> str:
    counts = collections.Counter(found['fixed'])
    said = [f'{n} × {_short(reason)}' for reason, n in counts.most_common(_REASONS)]
    if rest := sum(counts.values()) - sum(n for _, n in counts.most_common(_REASONS)):
        said.append(f'{rest} for other reasons')
    said += [f'no handler for {name} ({n} calls)' for name, n in found['unknown'].items()]
    return '; '.join(said)


def _short(text: str, length: int = 120) -> str:
    """One line that a Markdown table can hold."""
    text = re.sub(r'\s+', ' ', text).strip().replace('|', '\\|')
    return text if len(text) <= length else text[: length - 1] + '…'


# --- the command ---------------------------------------------------------------------------------


def select(known: Sequence[Network], patterns: Sequence[str]) -> list[Network]:
    """The networks whose ``source/family/name`` holds one of the patterns, in any case.

    Raises:
        LookupError: If a pattern is in none; it lists near names.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        glob = f'*{pattern.lower()}*'
        paths = {n.path for n in known if fnmatch.fnmatchcase(n.path.lower(), glob)}
        if not paths:
            words = {w for n in known for w in (n.family, n.name, n.name.rpartition('/')[2]) if w}
            by_lower = {word.lower(): word for word in words}
            near = difflib.get_close_matches(pattern.lower(), by_lower, n=5, cutoff=0.5)
            hint = f'; near names: {", ".join(by_lower[word] for word in near)}' if near else ''
            raise LookupError(f'--only {pattern!r} matches none of {len(known)} networks{hint}')
        chosen |= paths
    return [network for network in known if network.path in chosen]


def main() -> int:
    """Returns 1 if a network failed."""
    args, parser = _arguments()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    known: dict[str, list[Network]] = {}
    for source in args.source or SOURCES:
        try:
            known[source] = networks(source)
        except ImportError as error:
            message = f'{source} cannot be imported ({error}); pip install {source}'
            if args.source:
                parser.error(message)
            _say(f'{message}, or name others with --source; its networks are left out')
    everything = [network for found in known.values() for network in found]
    try:
        chosen = select(everything, args.only) if args.only else everything
    except LookupError as error:
        parser.error(str(error))
    _warm_up()
    results = []
    for number, network in enumerate(chosen, 1):
        start = time.monotonic()
        found = measure(network, args.seconds)
        if not network.excluded:
            missed = '; '.join(shortcomings(found)) or 'good'
            spent = time.monotonic() - start
            _say(f'{number}/{len(chosen)} {network.path}: {missed} [{spent:.0f} s]')
            _say(textwrap.indent(found.get('log', '')[-2000:], '    '), end='')
        results.append((network, found))
    page = args.out.read_text() if args.out else ''
    for source in known:
        if part := [pair for pair in results if pair[0].source == source]:
            text = f'{environment("mmpretrain", "torchvision", "timm")}\n\n{report(part)}'
            print(f'## {source}\n\n{text}\n', flush=True)
            page = insert(page, source, text) if args.out else page
    if args.out:
        args.out.write_text(page)
    return int(any(failed(found) for _, found in results))


def _arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', action='append', metavar='NAME',
        help='part of a name or a glob, such as resnet50 or torchvision/vgg/*bn; repeatable',
    )  # fmt: skip
    parser.add_argument('--source', action='append', choices=SOURCES, help='a library; repeatable')
    parser.add_argument('--seconds', type=float, default=SECONDS, help='for each (%(default)s)')
    parser.add_argument(
        '--out', type=Path,
        help='a page, such as docs/coverage.md, whose tables between markers are rewritten',
    )  # fmt: skip
    args = parser.parse_args()
    if args.out and args.only:
        parser.error('--out rewrites the tables of whole libraries: leave out --only')
    if args.out and not args.out.is_file():
        parser.error(f'--out {str(args.out)!r} is not a file; docs/coverage.md has the markers')
    return args, parser


def _warm_up() -> None:
    """Imports what torch imports at its first export, so that no network is charged with it."""
    Supernet(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)),
             torch.zeros(1, 3, 4, 4), stem=True)  # fmt: skip


def _say(text: str, end: str = '\n') -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == '__main__':
    # so that a run that is stopped takes along the process of its network
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
