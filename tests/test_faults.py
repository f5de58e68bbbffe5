"""What the bit-flip attack found, from records made by hand: censoring, intervals, tests."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from advprune.evaluate.flips import (
    Reached,
    accuracy_after,
    at_the_end,
    clean_accuracy,
    compare_flips,
    flips_metric,
    over_flips,
    to_chance,
)


def run(seed, accuracy, hamming, variant="untargeted"):
    """A seed's records: the network before any flip, then a row a flip."""
    n = len(accuracy)
    table = {"variant": variant, "seed": seed, "flip": range(n), "accuracy": accuracy}
    table |= {"hamming": hamming, "layers": 2, "depth": [-1, *[1] * (n - 1)]}
    return pd.DataFrame(table | {"bit": [-1, *[0] * (n - 1)]})


NAN = float("nan")
RECORDS = pd.concat(
    [
        run(0, [0.9, 0.5, 0.1], [0, 1, 2]),
        run(1, [0.9, 0.6, NAN, 0.11, 0.05], [0, 1, 2, 1, 2]),  # one bit is turned back
        run(2, [0.9, 0.8, 0.7, 0.6], [0, 1, 2, 3]),
        run(0, [0.9, NAN, 0.8], [0, 1, 2], "random"),
        run(1, [0.9, NAN, 0.7], [0, 1, 2], "random"),
    ]
)


def reached(*bits, tried=50):
    return Reached(bits, tuple(tried if b is None else b for b in bits))


def test_bits_are_counted_at_the_first_accuracy_at_the_level():
    found = to_chance(RECORDS, 0.11)
    assert found.bits == (2, 1, None) and found.tried == (2, 2, 3)
    assert to_chance(RECORDS, 0.05).bits == (None, 2, None)
    assert to_chance(RECORDS, 0.9).bits == (0, 0, 0)
    shuffled = RECORDS.sample(frac=1, random_state=1)
    assert to_chance(shuffled, 0.11) == found
    assert to_chance(RECORDS, 0.11, "margin").bits == ()


def test_a_censored_seed_is_told_and_never_averaged():
    found = to_chance(RECORDS, 0.11)
    assert found.uncensored == [2, 1] and found.censored == 1
    assert found.mean is None and found.least == 2.0  # (2 + 1 + 3) / 3
    nothing = dict.fromkeys(("flips_to_chance", "flips_to_chance_low", "flips_to_chance_high"))
    assert flips_metric(found) == flips_metric(None) == nothing
    whole = to_chance(RECORDS[RECORDS.seed < 2], 0.11)
    assert whole.censored == 0 and whole.mean is not None and whole.mean.value == 1.5
    assert Reached((), ()).mean is None


def test_the_interval_by_hand_and_by_scipy():
    values = [15, 16, 14, 12, 24]
    found = reached(*values)
    # mean 16.2, squared distances 1.44 + .04 + 4.84 + 17.64 + 60.84 = 84.8; t(0.975, 4) = 2.7764
    assert found.mean is not None and found.mean.value == 16.2
    assert found.mean.deviation == pytest.approx((84.8 / 4) ** 0.5)
    half = 2.776445 * (84.8 / 4) ** 0.5 / 5**0.5
    assert found.interval[0] == pytest.approx(16.2 - half, rel=1e-6)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == (pytest.approx(low), pytest.approx(high))
    assert flips_metric(reached(*values)) == {
        "flips_to_chance": 16.2,
        "flips_to_chance_low": round(low, 2),
        "flips_to_chance_high": round(high, 2),
    }
    single = reached(7)
    assert single.mean is not None and single.mean.value == 7 and single.mean.deviation is None
    assert single.interval == (None, None)


def test_accuracy_over_flips_by_hand():
    """Seed 0 stays at 0.1 after its end, seed 1 at 0.6 where it was not asked."""
    found = over_flips(RECORDS)
    assert found.flips.tolist() == [0, 1, 2, 3, 4]
    assert found["mean"].tolist() == pytest.approx(
        [0.9, 1.9 / 3, 1.4 / 3, (0.1 + 0.11 + 0.6) / 3, 0.75 / 3]
    )
    assert found.low.tolist() == [0.9, 0.5, 0.1, 0.1, 0.05]
    assert found.high.tolist() == [0.9, 0.8, 0.7, 0.6, 0.6]
    assert clean_accuracy(RECORDS) == 0.9
    assert at_the_end(RECORDS, "untargeted") == [0.1, 0.05, 0.6]


def test_random_flips_are_read_where_accuracy_was_asked_for():
    assert accuracy_after(RECORDS, 1.5) == (2, [0.8, 0.7])
    assert accuracy_after(RECORDS, 0) == (0, [0.9, 0.9])
    assert accuracy_after(RECORDS, 100) == (2, [0.8, 0.7])  # all that were made
    assert accuracy_after(RECORDS, 3, "margin") == (0, [])


def brute_force(one, other):
    """Of all ways to share out midranks, how many part the rank sums as far."""
    ranks, n = stats.rankdata([*one, *other]), len(one)
    expected = ranks.sum() * n / len(ranks)
    sums = [sum(chosen) for chosen in combinations(ranks, n)]
    seen = abs(sum(ranks[:n]) - expected)
    return float(np.mean([abs(total - expected) >= seen - 1e-9 for total in sums]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([15, 16, 14, 12, 24], [17, 14, 36, 25, 11]),
        ([15, 16, 14, 12, 24], [17, 13, 36, 25, 11]),
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]),
        ([6, 7, 8], [1, 2, 3, 3]),
        ([5, 5, 5], [5, 5, 5]),
    ],
)
def test_without_censoring_it_is_the_exact_test_of_ranks(one, other):
    found = compare_flips(reached(*one), reached(*other))
    assert found.p == pytest.approx(brute_force(one, other))
    if len({*one, *other}) == len(one) + len(other):  # without ties
        exact = stats.mannwhitneyu(one, other, method="exact").pvalue
        assert found.p == pytest.approx(exact)
    assert (found.direction > 0) == (
        np.mean(stats.rankdata([*one, *other])[: len(one)])
        > np.mean(stats.rankdata([*one, *other])[len(one) :])
    )
    assert found.ratio == pytest.approx(np.mean(one) / np.mean(other))
    assert compare_flips(reached(*other), reached(*one)).p == found.p


def test_a_censored_seed_needs_more_than_what_was_tried():
    """Five that came down within 30 against five that did not within 50: as far apart as can be."""
    low, high = reached(10, 15, 20, 25, 30), reached(None, None, None, None, None)
    found = compare_flips(high, low)
    assert found.p == pytest.approx(2 / 252) and found.better and found.ratio is None
    assert not compare_flips(low, high).better
    # nothing is known of one that was given up before the others came down
    early = reached(None, None, None, None, None, tried=5)
    assert compare_flips(early, low).p == 1.0 and not compare_flips(early, low).better
    assert compare_flips(high, early).p == 1.0
    # tried 50 without success needs more than one that came down at 50
    assert compare_flips(high, reached(*[50] * 5)).p == pytest.approx(2 / 252)
    with pytest.raises(ValueError, match="no seeds"):
        compare_flips(low, Reached((), ()))
