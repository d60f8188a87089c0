"""Members of a space that were measured on a device: ``latency.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic_files import write_json
from ..errors import LatencyError
from .space import SearchSpace

FORMAT = 1
_MOST = 1e9  # milliseconds are eleven days


@dataclass
class LatencyTable:
    """Members of a space with their latency, as ``latency.json`` holds them.

    Attributes:
        setting: What ran them: backend, device, processor, batch, threads, versions, …
        space: What tells a space from others, see `CostModel.described`.
        date: Of the first measurement.
        dense_ms: Milliseconds of the dense network, for each of the sessions of measuring.
        ratios: By architecture, its latency over that of the dense network in the same rounds.
    """

    setting: Mapping[str, Any]
    space: Mapping[str, Any]
    date: str
    dense_ms: list[float] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        about = ', '.join(f'{name} {value}' for name, value in flat(self.setting).items())
        return f'{len(self.ratios)} networks, {self.date}; {about}'

    @property
    def dense(self) -> float:
        """Milliseconds of the dense network: the median."""
        return float(np.median(self.dense_ms))

    def identity(self) -> dict[str, Any]:
        """What tells it from other tables of the space, in plain types."""
        measured = json.dumps([self.dense_ms, sorted(self.ratios.items())])
        return {
            'setting': self.setting,
            'date': self.date,
            'networks': len(self.ratios),
            'dense, ms': self.dense,
            'digest of the measurements': hashlib.sha256(measured.encode()).hexdigest()[:16],
        }

    def write(self, path: str | Path) -> None:
        """Writes it, whole or not at all."""
        write_json(Path(path), {'format': FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: str | Path) -> LatencyTable:
        """Reads what `write` wrote.

        Raises:
            LatencyError: If there is no such file, or it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
        except OSError as error:
            raise LatencyError(
                f'{str(path)!r} cannot be read: {error.strerror}; expected a file that '
                'tools/latency_table.py wrote'
            ) from error
        except (ValueError, RecursionError) as error:
            raise LatencyError(
                f'{str(path)!r} is no latency table, as tools/latency_table.py writes it: it is no '
                f'JSON ({error})'
            ) from error
        if not isinstance(content, dict) or not {'format', *_FIELDS} & content.keys():
            raise LatencyError(
                f'{str(path)!r} is no latency table, as tools/latency_table.py writes it: it holds '
                f'{content!r:.80}'
            )
        if content.get('format') != FORMAT:
            raise LatencyError(
                f'{str(path)!r} has format {content.get("format")!r}; expected {FORMAT}. Measure '
                'it anew with tools/latency_table.py'
            )
        for name, (kind, expected) in _FIELDS.items():
            if not isinstance(content.get(name), kind):
                raise LatencyError(
                    f'{str(path)!r}: {name} is {content.get(name)!r:.80}; expected {expected}'
                )
        dense = [('dense_ms', value) for value in content['dense_ms'] or [None]]
        for text, value in [*dense, *content['ratios'].items()]:
            if type(value) not in (int, float) or not 0 < value < _MOST:
                raise LatencyError(
                    f'{str(path)!r}: {text} is {value!r:.80}; expected a number above 0, below '
                    f'{_MOST:.0e}'
                )
        return cls(**{name: content[name] for name in _FIELDS})


_FIELDS: dict[str, tuple[type, str]] = {
    'setting': (dict, 'an object'),
    'space': (dict, 'an object'),
    'date': (str, 'a string'),
    'dense_ms': (list, 'a list of numbers'),
    'ratios': (dict, 'an object of numbers by architecture'),
}


def flat(values: Mapping[str, Any], before: str = '') -> dict[str, Any]:
    """Nested objects as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f'{before}{name}.') if inner else {f'{before}{name}': value}
    return found


def refuse_other(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises a `LatencyError` that names what differs between a latency table and what it is for.

    Args:
        what: Such as ``'space'``.
        there: In the table.
        here: In this run.
    """
    if found := difference(there, here):
        raise LatencyError(
            f'the latency table is of another {what}: {found}; tools/latency_table.py measures '
            'this one'
        )


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first of nested values that is not the same, in words; None where all are."""
    old, new = flat(there), flat(here)
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            where = name.replace('.', ', ', 1)
            return f'{where}: {old.get(name)!r:.80} there, {new.get(name)!r:.80} here'
    return None


def to_measure(space: SearchSpace, macs: Callable[[Any], Any], count: int) -> NDArray[np.int64]:
    """Members of a space to measure, as rows: some at random, some spread over the costs.

    Random members lie in the middle of the costs, those spread evenly over their logarithm at the
    ends too. The first are the same for whatever ``count``.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, space.sizes, size=(20_000, len(space.sizes)))
    order = np.argsort(macs(drawn), kind='stable')
    logs = np.log(np.asarray(macs(drawn), dtype=float)[order])
    places = np.searchsorted(logs, rng.uniform(logs[0], logs[-1], size=len(drawn) // 2))
    both = np.stack([drawn[: len(places)], drawn[order[places]]], axis=1)
    rows = both.reshape(-1, len(space.sizes))
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)[:count]]
