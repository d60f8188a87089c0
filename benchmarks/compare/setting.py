"""What one row of the comparison is about, and where rows are kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROWS = HERE / 'rows'
COMPARE = ('time', 'epochs')
IN_ONE_RUN = {
    'budgets': 'short',
    'budgets-recommended': 'recommended',
    'budgets-alone-50': 'alone-50',
}  # presets of STP for several budgets, and what each is for one


@dataclass(frozen=True)
class Setting:
    """The coordinates of a run.

    Attributes:
        method: A name in `methods.METHODS`, such as ``'scratch'``.
        preset: A variant of the method, such as ``'random'``; options of it follow ``@``, as in
            ``'l2-finetuned@tuning=0.1'``.
        data: A file of ``data/``.
        network: A file of ``networks/``.
        budget: The share of the dense network's multiply-adds.
        length: The training allowed, in multiples of T. T is what ``epochs`` of the data's file
            cost with the dense network.
        compare: ``'time'``: every method gets the same time; ``'epochs'``: the same number of
            epochs, whatever they cost. A method of several phases has them within it.
        seed: Of weights, batches and draws.
    """

    method: str
    preset: str
    data: str
    network: str
    budget: float
    length: float
    compare: str
    seed: int

    @property
    def variant(self) -> str:
        """The preset without options."""
        return self.preset.partition('@')[0]

    @property
    def options(self) -> dict[str, float]:
        """What the preset changes."""
        return options_in(self.preset)

    @property
    def key(self) -> str:
        """A folder's path that is its own."""
        return (
            f'{self.data}/{self.network}/{self.budget:g}/{self.length:g}{self.compare[0]}'
            f'/{self.method}/{self.preset}/{self.seed}'
        )


def options_in(preset: str) -> dict[str, float]:
    """What stands behind the ``@`` of a preset; a `ValueError` where it is no ``option=number``."""
    found = {}
    for pair in filter(None, preset.partition('@')[2].split(',')):
        name, _, value = pair.partition('=')
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f'{pair!r} is no option=number') from None
    return found


NAMES = tuple(field.name for field in fields(Setting))


def grid(methods: Sequence[tuple[str, str]], **axes: Iterable[Any]) -> list[Setting]:
    """Every combination; all methods of one seed before the next, so that rows can be paired."""
    axes = {name: list(values) for name, values in axes.items()}
    return [
        Setting(method, preset, **dict(zip(axes, values, strict=True)))
        for values in itertools.product(*axes.values())
        for method, preset in methods
    ]


def read_rows(folder: Path = ROWS) -> list[dict[str, Any]]:
    """All rows.

    Raises:
        ValueError: For a line that is none, such as one that a killed run left half-written.
    """
    rows = []
    for path in sorted(folder.glob('*.jsonl')):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f'{path}:{number} is no row: {error}') from error
            if not isinstance(row, dict) or (missing := set(NAMES).difference(row)):
                lacks = f'it lacks {min(missing)}' if isinstance(row, dict) else 'it is no object'
                raise ValueError(f'{path}:{number} is no row: {lacks}')
            rows.append(row)
    return rows


def setting_of(row: dict[str, Any]) -> Setting:
    """The coordinates of a row."""
    return Setting(**{name: row[name] for name in NAMES})


def append_row(setting: Setting, found: dict[str, Any], folder: Path = ROWS) -> None:
    """Adds a row to the file of its data."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f'{setting.data}.jsonl').open('a+') as file:
        file.seek(max(0, file.tell() - 1))
        end = '' if file.read() in ('', '\n') else '\n'  # an editor may have left it out
        file.write(f'{end}{json.dumps({**asdict(setting), **found})}\n')
