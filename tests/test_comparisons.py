"""Comparisons on the same images: tests, intervals and power, against scipy and brute force."""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
from scipy.stats import binom, wilcoxon

from advprune.evaluate.compare import corrected
from advprune.evaluate.distances import compare_distances
from advprune.evaluate.statistics import median_distance

# --- distances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 20, 101])
def test_the_median_has_the_bootstrap_interval_of_its_exact_distribution(n: int) -> None:
    """For odd n a resampled median is at most the k-th value if the middle of n draws is."""
    values = np.random.default_rng(n).gamma(2, 1, n)
    value, low, high = median_distance(values)
    assert value == np.median(values) and low <= value <= high
    if n % 2:
        at_most = binom.sf((n - 1) // 2, n, np.arange(1, n + 1) / n)
        ends = [np.sort(values)[np.argmax(at_most >= q)] for q in (0.025, 0.975)]
        assert [low, high] == ends
    else:
        draws = np.random.default_rng(1).choice(values, (20_000, n))
        expected = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        assert [low, high] == pytest.approx(expected, abs=0.05)


def test_infinite_distances_are_larger_than_any() -> None:
    assert median_distance(np.r_[np.full(30, 0.1), np.full(70, np.inf)]) == (np.inf,) * 3
    most = np.r_[np.full(70, 0.1), np.full(30, np.inf)]
    assert median_distance(most) == (0.1, 0.1, 0.1)
    found = compare_distances(most, np.r_[np.full(70, 0.09), np.full(30, np.inf)])
    assert found.changes[-30:].tolist() == [0.0] * 30  # neither is known to be farther away
    assert found.outcome == "higher" and np.isfinite(found.interval).all()
    with pytest.raises(ValueError, match="no distances"):
        median_distance(np.zeros(0))


def noisy(n: int, shift: float, zeros: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances of two models, the first `shift` farther away; both wrong on `zeros` images."""
    random = np.random.default_rng(3)
    other = random.gamma(4, 0.02, n) + 0.05
    own = other + shift + random.normal(0, 0.01, n)
    own[:zeros] = other[:zeros] = 0.0
    return own, other


@pytest.mark.parametrize(("zeros", "shift"), [(0, 0.002), (9, -0.002), (30, 0.0)])
def test_distances_are_compared_as_wilcoxon_does(zeros: int, shift: float) -> None:
    own, other = noisy(80, shift, zeros)
    found = compare_distances(own, other)
    assert found.p == wilcoxon(own, other, zero_method="pratt").pvalue
    walsh = [(a + b) / 2 for a, b in combinations_with_replacement(own - other, 2)]
    assert found.difference == pytest.approx(np.median(walsh), abs=2e-5)  # Hodges and Lehmann
    low, high = found.interval
    for end, inside in ((low, 1e-6), (high, -1e-6)):  # exactly what the test does not reject
        assert wilcoxon(own - other - end - inside, zero_method="pratt").pvalue > 0.05 - 1e-3
        assert wilcoxon(own - other - end + inside, zero_method="pratt").pvalue < 0.05 + 1e-3
    assert (found.outcome == "not significant") == (low <= 0 <= high) == (found.p >= 0.05)


def test_of_two_models_at_the_floor_the_one_that_is_farther_away_is_told() -> None:
    """Robust accuracy at 8/255 is 0 % for both; every distance differs by a tenth."""
    other = np.random.default_rng(0).uniform(0.002, 0.02, 300)
    found = compare_distances(1.1 * other, other)
    assert max(found.first[2], found.second[2]) < 8 / 255 and found.outcome == "higher"
    assert found.interval[0] > 0 and compare_distances(other, 1.1 * other).outcome == "lower"
    assert compare_distances(other, other).outcome == "not significant"


def test_the_smallest_shift_is_shown_in_four_runs_of_five() -> None:
    random = np.random.default_rng(4)
    known = compare_distances(*noisy(60, 0.0)).detectable
    other = np.full(60, 0.1)
    shown = [
        compare_distances(other + known + random.normal(0, 0.01, 60), other).outcome == "higher"
        for _ in range(400)
    ]
    assert 0.7 < np.mean(shown) < 0.9


def test_a_model_that_is_wrong_more_often_when_clean_is_not_farther_away() -> None:
    """It answers two classes of ten; on these images nothing fools it."""
    other = np.random.default_rng(0).uniform(0.002, 0.02, 300)
    constant = np.where(np.arange(300) < 200, np.inf, 0.0)
    found = compare_distances(constant, other)
    assert found.p < 0.05 and found.outcome == "lower clean accuracy"
    assert compare_distances(other, constant).outcome == "lower"


def test_intervals_of_corrected_distances_do_not_contradict_p() -> None:
    single = [compare_distances(*noisy(80, s)) for s in (0.0035, 0.0033, 0.003, 0.0)]
    several = corrected(single)
    for alone, test in zip(single, several, strict=True):
        low, high = test.interval
        assert (test.p < 0.05) == (not low < 0 < high) and test.tests == 4
        assert high > alone.interval[1] and test.detectable > alone.detectable
    # Holm rejects what an interval for four tests does not: its end is 0.
    assert replace(several[0], p=0.049, tests=10**6).interval[0] == 0
