"""A device that is made up: the latency of a network there is known."""

import json

import numpy as np

from mmstp.search.latency_table import LatencyTable, to_measure


def milliseconds(supernet, rows):
    """A constant, and some for every multiply-add, parameter and activation."""
    cost = supernet.cost
    return 0.5 + 1e-7 * cost.macs(rows) + 2e-7 * cost.params(rows) + 3e-6 * cost.activations(rows)


def table_of(supernet, count=40, noise=0.0):
    """What ``tools/latency_table.py`` would write there."""
    space = supernet.space
    rows = to_measure(space, supernet.cost.macs, count)
    (dense,) = milliseconds(supernet, space.encode(space.largest)[None])
    noisy = 1 + noise * np.random.default_rng(0).standard_normal(len(rows))
    ratios = (milliseconds(supernet, rows) / dense * noisy).tolist()
    return LatencyTable(
        dict(backend='none', versions=dict(none='1.0')),
        json.loads(json.dumps(supernet.cost.described())),
        '2026-11-26',
        [float(dense)],
        dict(zip([str(space.decode(row)) for row in rows], ratios, strict=True)),
    )
