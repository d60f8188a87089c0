"""What one would choose without a search."""

import numpy as np

from mmstp.search.budget import most_uniform
from tests import tiny


def test_where_every_width_can_be_the_same_it_is():
    space = tiny.stp().supernet.space
    rows = space.all_rows()
    found = most_uniform(space, rows)
    assert len(set(found.widths)) == 1
    parts = np.array(found.depths) / space.largest.depths
    assert parts.std() == min(
        (np.array(space.decode(row).depths) / space.largest.depths).std() for row in rows
    )


def test_of_two_it_is_the_more_even_one():
    space = tiny.stp().supernet.space
    rows = space.all_rows()[[1, len(space.all_rows()) // 3]]
    uneven = [
        np.std(np.array(a.depths) / space.largest.depths) + np.std(a.widths)
        for a in map(space.decode, rows)
    ]
    assert most_uniform(space, rows) == space.decode(rows[int(np.argmin(uneven))])
