"""Named sets of runs: each a list of grids over `Setting`."""

from __future__ import annotations

from typing import Any

# What a user would choose between.
HEADLINE = [
    ('dense', 'plain'),
    ('stp', 'short'),
    ('stp', 'paper'),
    ('stp-alone', '15'),
    ('stp-alone', '30'),
    ('scratch', 'random'),
    ('scratch', 'uniform'),
    ('scratch', 'survivor'),
    ('distilled', 'uniform'),
    ('distilled', 'survivor'),
    ('magnitude', 'l2'),
    ('magnitude', 'l2-finetuned'),
    ('magnitude', 'l2-distilled'),
    ('sparsified', 'l2'),
    ('rst-s', 'paper'),
    ('group-sl', 'paper'),
    ('greg', 'paper'),
    ('fastnas', 'finetuned'),
    ('refill', 'imp'),
    ('sandwich', 'us-nets'),
]

# Three values of what matters most to each; seeds that no comparison has.
TUNING = [
    *(('dense', f'plain@lr={lr}') for lr in (0.4, 1, 2)),
    *(('stp', f'{preset}@lr={lr}') for preset in ('short', 'paper') for lr in (0.4, 1, 2)),
    *(('stp-alone', f'30@lr={lr}') for lr in (0.4, 1, 2)),
    *(('scratch', f'uniform@lr={lr}') for lr in (0.4, 1, 2)),
    *(('distilled', f'uniform@lr={lr}') for lr in (0.4, 1, 2)),
    *(('magnitude', f'l2-{after}@tuning={lr}') for after in ('finetuned', 'distilled')
      for lr in (0.1, 0.4, 1)),
    *(('sparsified', f'l2@l2={strength}') for strength in (0.1, 0.3, 1)),
    *(('rst-s', f'paper@l2={strength}') for strength in (0.1, 0.3, 1)),
]  # fmt: skip

# at T, at the smallest budget
SLIM = {
    'data': ['fashion_6k_14'],
    'network': ['r18_slim'],
    'budget': [0.15],
    'length': [1.0],
    'compare': ['time'],
}
FEW = [('stp', 'short'), ('scratch', 'survivor'), ('dense', 'plain'), ('scratch', 'uniform')]

SUITES: dict[str, list[dict[str, Any]]] = {
    'headline': [{**SLIM, 'methods': HEADLINE, 'seed': range(5)}],
    'tuning': [{**SLIM, 'methods': TUNING, 'seed': [100]}],
    'gpu': [
        {
            **SLIM,
            'methods': [*FEW, ('stp', 'paper')],
            'data': ['fashion_12k_28'],
            'network': ['r50'],
            'seed': [0],
        }
    ],
    'quick': [
        {
            **SLIM,
            'methods': [*FEW, ('distilled', 'survivor'), ('magnitude', 'l2-finetuned')],
            'data': ['digits'],
            'budget': [0.35],
            'seed': range(2),
        }
    ],
}
