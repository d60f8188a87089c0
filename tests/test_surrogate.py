"""The ridge regression of losses: against scikit-learn's, and on losses of a known make."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from mmstp import Architecture

sys.path[:0] = [str(Path(__file__).parents[1] / 'benchmarks')]

from surrogate import Surrogate, _one_hots  # noqa: E402

WIDTHS = (0.3, 0.5, 0.7, 1.0)


def every():
    return [
        Architecture((d, e), (w, v))
        for d in (1, 2, 3)
        for e in (1, 2)
        for w in WIDTHS
        for v in WIDTHS
    ]


def worth(architecture: Architecture) -> float:
    (d, e), (w, v) = architecture.depths, architecture.widths
    return -0.2 * d + 0.1 * e - 0.5 * w - 0.3 * v * v


def searched(steps: int, noise: float, visited: list[Architecture], **options) -> Surrogate:
    """Losses that fall over the training, and on batches that are hard for the main network too."""
    rng = np.random.default_rng(0)
    model = Surrogate(**options)
    for step in range(steps):
        architecture = visited[rng.integers(len(visited))]
        batch = rng.normal()
        falling = 2 * np.exp(-3 * step / steps)
        loss = np.exp(worth(architecture) + falling + 0.5 * batch + noise * rng.normal())
        model.add(architecture, float(loss), 1 + 0.3 * batch)
    return model


def test_it_is_scikit_learns_ridge_regression():
    model = searched(300, 0.3, every(), own=1e12)
    features = _one_hots(every())
    place = {a: i for i, a in enumerate(every())}
    rows = features[[place[a] for a in model.architectures]]
    other = Ridge(alpha=model.ridge)
    other.fit(rows, model._residuals(), sample_weight=model._weights())
    found = model.predict(every())
    expected = other.predict(features) - other.intercept_ - features.mean(0) @ other.coef_
    assert found - found.mean() == pytest.approx(expected - expected.mean(), abs=1e-9)


def test_it_ranks_better_than_the_average_of_each():
    truth = list(map(worth, every()))
    together = searched(400, 0.5, every()).predict(every())
    each = searched(400, 0.5, every(), ridge=1e12).predict(every())
    assert spearmanr(together, truth).statistic > 0.9 > spearmanr(each, truth).statistic


def test_it_tells_of_what_was_never_visited():
    order = np.random.default_rng(1).permutation(len(every()))
    visited = [every()[i] for i in order[: len(order) // 2]]
    unseen = [a for a in every() if a not in visited]
    found = searched(400, 0.3, visited).predict(unseen)
    assert spearmanr(found, list(map(worth, unseen))).statistic > 0.9


def test_what_is_known_of_one_alone_counts_the_more_the_more_often_it_was_seen():
    one = every()[0]
    model = Surrogate(own=5.0)
    rng = np.random.default_rng(0)
    for step in range(400):
        architecture = one if step % 4 == 0 else every()[rng.integers(1, len(every()))]
        model.add(architecture, float(np.exp(worth(architecture) - 2 * (architecture == one))), 1.0)
    first, *others = model.predict(every())
    assert first < min(others)


def test_trend_and_batch_are_taken_out():
    model = searched(400, 0.0, [every()[0]])
    inside = model._residuals()[20:-20]  # where the window is whole
    assert np.abs(inside).max() < 0.05 < np.std(model.losses)
