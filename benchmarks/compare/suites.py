"""Named sets of runs: each a list of grids over `Setting`."""

from __future__ import annotations

from typing import Any

from methods import BUDGETS, PRESETS
from setting import IN_ONE_RUN

# What a user would choose between.
HEADLINE = [
    ('dense', 'plain'),
    ('stp', 'short'),
    ('stp', 'paper'),
    ('stp', 'recommended'),
    ('stp', 'alone-15'),
    ('stp', 'alone-30'),
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

# Three values of what matters most to each, and a further one where the last was the best by more
# than a tenth of a point; a seed that no comparison has.
TUNING = [
    *(('dense', f'plain@lr={lr}') for lr in (0.4, 1, 2, 4, 8)),
    *(('stp', f'short@lr={lr}') for lr in (0.4, 1, 2, 4)),
    *(('stp', f'paper@lr={lr}') for lr in (1, 2, 4, 8)),
    *(('stp', f'{preset}@lr={lr}') for preset in ('alone-30', 'recommended', 'long')
      for lr in (1, 2, 4)),
    *(('scratch', f'uniform@lr={lr}') for lr in (0.4, 1, 2, 4)),
    *(('distilled', f'uniform@lr={lr}') for lr in (0.4, 1, 2, 4)),
    *(('magnitude', f'l2-{after}@tuning={lr}') for after in ('finetuned', 'distilled')
      for lr in (0.1, 0.4, 1)),
    *(('sparsified', f'l2@l2={strength}') for strength in (0.1, 0.3, 1, 3)),
    *(('sparsified', f'l1@lr=4,l1={strength}')
      for strength in (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)),
    *(('sparsified', f'l2@lr=4,l2={strength}') for strength in (0.3, 1, 3)),
    *(('rst-s', f'paper@l2={strength}') for strength in (0.1, 0.3, 1)),
    *(('rst-s', f'paper@lr=4,l2={strength}') for strength in (0.01, 0.03, 0.1)),
    *(('group-sl', f'paper@reg={reg}') for reg in (1e-4, 5e-4, 2.5e-3, 1.25e-2)),
    *(('group-sl', f'paper@lr=4,reg={reg}') for reg in (1e-4, 5e-4, 2.5e-3)),
    *(('greg', f'paper@growth={growth}') for growth in (1e-3, 1e-2, 1e-1, 1)),
    *(('fastnas', f'finetuned@tuning={lr}') for lr in (0.1, 0.4, 1)),
    *(('refill', f'imp@lr={lr}') for lr in (0.4, 1, 2, 4, 8)),
    *(('sandwich', f'us-nets@lr={lr}') for lr in (0.4, 1, 2)),
]  # fmt: skip

# The same for a Swin, whose optimizer is another one. The penalty is taken from the weights
# by the learning rate, which is a two hundredth of the dense network's elsewhere.
TUNING_OF_SWIN = [
    *(('dense', f'plain@lr={lr}') for lr in (0.4, 1, 2, 4)),
    *(('stp', f'paper@lr={lr}') for lr in (0.4, 1, 2, 4)),
    *(('rst-s', f'paper@lr=1,l2={strength}') for strength in (2, 6, 20)),
]

# at T, at the smallest budget
SLIM: dict[str, Any] = {
    'data': ['fashion_6k_14'],
    'network': ['r18_slim'],
    'budget': [0.15],
    'length': [1.0],
    'compare': ['time'],
}
FEW = [
    ('stp', 'short'),
    ('stp', 'recommended'),
    ('scratch', 'survivor'),
    ('scratch', 'uniform'),
    ('dense', 'plain'),
]

# Of the headline's, those that are run at every budget, length and network.
MAIN = [
    ('dense', 'plain'),
    ('stp', 'short'),
    ('stp', 'paper'),
    ('stp', 'recommended'),
    ('scratch', 'random'),
    ('scratch', 'uniform'),
    ('magnitude', 'l2-finetuned'),
    ('rst-s', 'paper'),
    ('group-sl', 'paper'),
]
EVERY_BUDGET: dict[str, Any] = {**SLIM, 'methods': MAIN, 'budget': [0.15, 0.35, 0.55]}

# The paper's tables, at equal epochs as it has them.
RIVALS = [
    ('dense', 'plain'),
    ('stp', 'paper'),
    ('rst-s', 'paper'),
    ('group-sl', 'paper'),
    ('refill', 'imp'),
]
COMPONENTS = [
    ('stp', 'paper'),
    *(
        ('stp', f'paper-{off}')
        for off in ('no-expansion', 'no-exploration', 'no-depth', 'st-depth', 'st')
    ),
    ('sparsified', 'l2'),
]
SPARSIFICATIONS = [('sparsified', 'l1'), ('sparsified', 'l2'), ('stp', 'st-uniform')]
PAPER: dict[str, Any] = {
    **SLIM,
    'methods': RIVALS,
    'budget': [0.15, 0.35, 0.55],
    'compare': ['epochs'],
    'seed': range(3),
}

SUITES: dict[str, list[dict[str, Any]]] = {
    'headline': [
        {**SLIM, 'methods': HEADLINE, 'seed': range(5)},
        {**EVERY_BUDGET, 'compare': ['epochs', 'time'], 'seed': range(5)},
        {**EVERY_BUDGET, 'network': ['r50_slim'], 'compare': ['epochs', 'time'], 'seed': range(5)},
    ],
    'long': [{**SLIM, 'methods': MAIN, 'length': [3.0, 8.0], 'seed': range(3)}],
    'tuning': [
        {**SLIM, 'methods': TUNING, 'seed': [100]},
        {
            **SLIM,
            'methods': TUNING_OF_SWIN,
            'network': ['swin_slim'],
            'budget': [0.35],
            'length': [0.3],
            'compare': ['epochs'],
            'seed': [100],
        },
        {
            **SLIM,
            'methods': [
                ('given', f'{preset}@tuning={lr}')
                for preset in ('magnitude', 'magnitude-untaught')
                for lr in (0.4, 1)
            ],
            'length': [0.3],
            'seed': [100],
        },
    ],
    'paper': [
        {**PAPER, 'methods': [('stp', 'paper')], 'budget': [0.15], 'seed': range(5)},  # Table 8
        {**PAPER, 'methods': COMPONENTS, 'budget': [0.15]},  # Table 5
        {**PAPER, 'network': ['r18_slim', 'r50_slim', 'wrn_slim']},  # Table 1
        {**PAPER, 'data': ['fashion_6k_56'], 'network': ['mbv3_slim']},
        {**PAPER, 'methods': SPARSIFICATIONS},  # Figure 2
        {**PAPER, 'methods': RIVALS[:3], 'network': ['vit_slim', 'swin_slim']},  # Table 3
        {**PAPER, 'length': [3.0], 'budget': [0.15]},  # Table 9
        {**PAPER, 'data': ['glyphs_28']},  # Table 2
    ],
    # from a trained dense network, with a tenth and a third of its training
    'given': [
        {
            **SLIM,
            'methods': [
                ('given', preset)
                for preset in (
                    'magnitude',
                    'magnitude-untaught',
                    'scratch',
                    'torch-pruning',
                    'torch-pruning-untaught',
                    'group-sl',
                    'group-sl-untaught',
                    'stp-15',
                    'stp-30',
                    'stp-15-untaught',
                    'stp-15-given',
                    'stp-screened',
                    'pretrained',
                    'pretrained-taught',
                )
            ],
            'length': [0.1, 0.3],
            'seed': range(3),
        }
    ],
    # several budgets: one run for all, one for each, or a search in the main network of one
    'budgets': [
        {
            **SLIM,
            'methods': [
                ('stp', preset) for preset in (*IN_ONE_RUN, 'short', 'recommended', 'afterwards')
            ],
            'budget': list(BUDGETS),
            'seed': range(3),
        }
    ],
    # what decides about the recipe, on images and seeds of its own
    'recipes': [
        {
            **SLIM,
            'methods': [
                *(('stp', preset) for preset in PRESETS if preset.startswith('alone')),
                ('scratch', 'uniform'),
            ],
            'seed': range(101, 104),
        }
    ],
    # how much architectures of one budget differ: a dozen, each trained alone
    'members': [
        {**SLIM, 'methods': [('scratch', f'member@index={i}') for i in range(12)], 'seed': range(3)}
    ],
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
