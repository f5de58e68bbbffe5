"""Comparisons on the same images: tests, intervals and power, against scipy and brute force."""

from dataclasses import replace
from functools import partial
from itertools import combinations, combinations_with_replacement
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import binom, binomtest, mannwhitneyu, norm, wilcoxon

from advprune.evaluate import flips
from advprune.evaluate.compare import LOWER_CLEAN, compare, compare_hits, corrected, with_control
from advprune.evaluate.distances import compare_distances
from advprune.evaluate.means import (
    compare_calibration,
    compare_means,
    smallest_mean_difference,
)
from advprune.evaluate.statistics import (
    difference_interval,
    equivalence,
    mcnemar,
    median_distance,
    smallest_difference,
)


# --- accuracies ----------------------------------------------------------------------------------
def pair(gained, lost, n):
    """Two models on n images, so many of which only the first or only the second has right."""
    first, second = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    first[:gained] = second[gained : gained + lost] = True
    return compare_hits(first, second)


def test_mcnemar_by_hand():
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([False] * 5 + [True] + [False] * 4)
    assert mcnemar(5, 0) == compare_hits(first, second).p == pytest.approx(2 * 0.5**5)
    assert mcnemar(0, 0) == compare_hits(first, first).p == 1.0
    with pytest.raises(ValueError, match="not the same images"):
        compare_hits(first, second[:3])


def likelihood_score(gained, lost, n, difference):
    """The score statistic, its variance from the most likely rates on a fine grid."""
    second = np.linspace(max(0, -difference), (1 - difference) / 2, 200_001)[1:-1]
    both = n - gained - lost
    known = gained * np.log(second + difference) + lost * np.log(second)
    known += both * np.log(1 - difference - 2 * second)
    share = second[np.argmax(known)]
    variance = n * (2 * share + difference * (1 - difference))
    return float((gained - lost - n * difference) / np.sqrt(variance))


@pytest.mark.parametrize("counts", [(12, 2, 50), (3, 9, 80), (1, 1, 30), (90, 60, 300)])
def test_intervals_and_equivalence_are_of_the_score_test(counts):
    gained, lost, n = counts
    for alpha in (0.05, 0.005):
        low, high = difference_interval(gained, lost, n, alpha)
        critical = norm.isf(alpha / 2)
        assert likelihood_score(gained, lost, n, low) == pytest.approx(critical, abs=1e-3)
        assert likelihood_score(gained, lost, n, high) == pytest.approx(-critical, abs=1e-3)
    sides = (likelihood_score(gained, lost, n, -0.1), -likelihood_score(gained, lost, n, 0.1))
    expected = norm.sf(min(sides))  # both one-sided tests have to reject
    assert equivalence(gained, lost, n, 0.1) == pytest.approx(expected, abs=1e-4)


def test_an_interval_covers_the_difference_in_19_of_20_samples():
    random = np.random.default_rng(0)
    for n, gain, loss in ((100, 0.15, 0.05), (300, 0.02, 0.0)):
        samples = random.multinomial(n, [gain, loss, 1 - gain - loss], 1000)
        ends = [difference_interval(int(a), int(b), n, 0.05) for a, b, _ in samples]
        held = np.mean([low <= gain - loss <= high for low, high in ends])
        assert 0.93 < held < 0.97


@pytest.mark.parametrize(("discordant", "n", "tests"), [(20, 100, 3), (0, 300, 17)])
def test_the_smallest_difference_is_shown_in_4_of_5_samples(discordant, n, tests):
    found = smallest_difference(discordant, n, 0.05 / tests)
    share = max(discordant / n, found)
    chances = [(share + found) / 2, (share - found) / 2, 1 - share]
    samples = np.random.default_rng(0).multinomial(n, chances, 2000)
    shown = [binomtest(int(a), int(a + b), 0.5).pvalue < 0.05 / tests for a, b, _ in samples]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)
    assert smallest_difference(0, 4, 0.05) == np.inf  # 4 of 4 images: p = 0.125


@pytest.mark.parametrize(
    ("gained", "lost", "n", "outcome"),
    [
        (15, 0, 40, "higher"),
        (0, 15, 40, "lower"),
        (0, 0, 40, "not significant"),  # both at the floor, and few images
        (0, 0, 300, "equivalent within ±2 points"),
        (9, 6, 2000, "equivalent within ±2 points"),
        (30, 20, 300, "not significant"),
    ],
)
def test_what_a_comparison_is_called(gained, lost, n, outcome):
    found = pair(gained, lost, n)
    low, high = found.interval
    assert found.outcome == outcome and found.difference == pytest.approx((gained - lost) / n)
    assert (found.p < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize("kind", ["accuracies", "distances"])
def test_a_corrected_p_never_stands_beside_an_interval_that_contradicts_it(kind):
    """Of 20 pairs the interval was at 95 %, while p was corrected: p = 0.26, (+0.4 to +6.5)."""
    single = [pair(gained, lost, 100) for gained in range(0, 20, 2) for lost in (0, 5)]
    if kind == "distances":
        single = [compare_distances(*noisy(80, s)) for s in (0.0035, 0.0033, 0.003, 0.0)]
    for alone, test in zip(single, corrected(single), strict=True):
        (low, high), (first, last) = test.interval, alone.interval
        assert (test.p < 0.05) == (not low < 0 < high) and test.tests == len(single)
        assert low <= max(first, 0) and high >= min(last, 0)
        assert test.detectable > alone.detectable and test.p_equivalent >= alone.p_equivalent
    # Holm rejects what an interval for so many tests does not: its end is 0.
    assert 0 in replace(single[-1 if kind == "accuracies" else 0], p=0.049, tests=10**6).interval


def records(clean, robust):
    """Records of a model that has these images right."""
    label = np.arange(len(clean)) % 10
    sides = {"clean": clean, "adv": robust}
    found = {f"{side}_pred": np.where(hit, label, label + 1) for side, hit in sides.items()}
    return pd.DataFrame({"index": np.arange(len(clean)), "label": label} | found)


def first(k, n=512):
    return np.arange(n) < k


def test_what_lost_its_clean_accuracy_is_not_better():
    """E = 0.05 on CIFAR-10: 18.9 % clean where its parent has 77.7, 5.1 % robust against 1.4."""
    parent, pruned = records(first(398), first(7)), records(first(97), first(26))
    found = compare(pruned, parent)
    assert found.p < 0.001 and found.difference > 0 and not found.better
    assert found.outcome == "lower clean accuracy, no control"
    assert compare(parent, pruned).outcome == "lower"  # the other way round it is said
    # With a control of equal clean accuracy, it is that which it is compared with.
    alike = {"R 0.1": records(first(99), first(25)), "S 9": records(first(390), first(3))}
    held = with_control(found, pruned, alike, partial(compare, pruned))
    assert held.outcome == "equivalent within ±2 points (control: R 0.1)"
    assert with_control(found, pruned, {"S 9": alike["S 9"]}, pytest.fail).outcome == LOWER_CLEAN


def test_means_over_seeds_and_images_are_compared_alike():
    random = np.random.default_rng(2)
    base = random.random((3, 200)) < 0.5
    same, other = base.copy(), base | (random.random((3, 200)) < 0.3)
    assert compare_means(other, base).outcome == "higher"
    assert compare_means(base, other).outcome == "lower"
    assert compare_means(base, same).outcome == "equivalent within ±2 points"
    assert compare_means(base[:, :30], same[:, :30]).outcome == "not significant"  # too few images
    two = compare_means(np.tile([[1.0], [0.0]], 30), np.tile([[0.0], [0.5]], 30))  # +100, -50
    assert two.interval == (-1, 1) and np.isinf(two.detectable)  # no rates differ by more
    several = corrected([compare_means(other, base)] * 4)[0]
    assert several.interval[0] < compare_means(other, base).interval[0]
    # In the best case: all seeds agree, no image is lost.
    least, none = smallest_mean_difference(200, 0.05), np.zeros((3, 200))
    gained = [np.tile(random.random(200) < least, (3, 1)) for _ in range(300)]
    assert np.mean([compare_means(one, none).p < 0.05 for one in gained]) > 0.8


def test_values_that_are_all_the_same_are_not_certain():
    """Of one image nothing is known; of n that agree, what the sign test says of n."""
    one = compare_means(np.array([[1.0]]), np.array([[0.5]]))
    assert one.p == 1 and one.interval == (-1, 1) and np.isinf(one.detectable)
    assert one.outcome == "not significant"
    for n in (2, 5, 6, 20):
        first, second = np.full((1, n), 0.7), np.full((1, n), 0.4)  # a spread of rounding alone
        found = compare_means(first, second)
        assert found.p == pytest.approx(binomtest(n, n).pvalue)
        assert found.outcome == ("higher" if n > 5 else "not significant")
        low, high = found.interval
        assert low < 0.3 < high and (low > 0) == (n > 5)
        assert compare_means(first, first).outcome == "not significant"
    # Of 100 images on which all are right alike, Tango's interval reaches z^2 / (n + z^2) each way.
    z = NormalDist().inv_cdf(0.975)
    same = compare_means(np.ones((3, 100)), np.ones((3, 100)))
    assert same.interval == pytest.approx((-(z**2) / (100 + z**2), z**2 / (100 + z**2)))
    sure = pd.DataFrame({"adv_confidence": [0.6], "adv_pred": 0, "label": 0})
    found = compare_calibration(sure, sure.assign(adv_confidence=0.9), 0.02)
    assert found.p == 1 and found.outcome == "not significant"
    assert compare_calibration(sure, sure, 0.02).outcome == "not significant"


def test_flips_have_the_interval_of_their_rank_test():
    counts = [8, 10, 12, 11, 13, 9], [18, 20, 25, 22, 21, 19]
    own, others = (flips.Reached(tuple(one), tuple(one)) for one in counts)
    found = flips.compare_flips(own, others)
    low, high = found.interval
    for shift, inside in ((low + 0.5, True), (low - 0.5, False), (high - 0.5, True)):
        p = mannwhitneyu([c - shift for c in counts[0]], counts[1], method="exact").pvalue
        assert (p >= 0.05) == inside
    assert found.outcome == "lower" and low < found.difference < high < 0
    assert corrected([found] * 100)[0].interval == (-np.inf, np.inf)  # 6 batches show nothing
    never = flips.Reached((None,) * 6, (30,) * 6)
    assert flips.compare_flips(never, own).interval[1] == np.inf


# --- distances -----------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 20, 101])
def test_the_median_has_the_bootstrap_interval_of_its_exact_distribution(n):
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


def test_infinite_distances_are_larger_than_any():
    assert median_distance(np.r_[np.full(30, 0.1), np.full(70, np.inf)]) == (np.inf,) * 3
    most = np.r_[np.full(70, 0.1), np.full(30, np.inf)]
    assert median_distance(most) == (0.1, 0.1, 0.1)
    # Of the last 30, neither is known to be farther away.
    found = compare_distances(most, np.r_[np.full(70, 0.09), np.full(30, np.inf)])
    assert found.outcome == "higher" and np.isfinite(found.interval).all()
    with pytest.raises(ValueError, match="no distances"):
        median_distance(np.zeros(0))


def noisy(n, shift, zeros=0):
    """Distances of two models, the first `shift` farther away; both wrong on `zeros` images."""
    random = np.random.default_rng(3)
    other = random.gamma(4, 0.02, n) + 0.05
    own = other + shift + random.normal(0, 0.01, n)
    own[:zeros] = other[:zeros] = 0.0
    return own, other


@pytest.mark.parametrize(("zeros", "shift"), [(0, 0.002), (9, -0.002), (30, 0.0)])
def test_distances_are_compared_as_wilcoxon_does(zeros, shift):
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


def test_of_two_models_at_the_floor_the_one_that_is_farther_away_is_told():
    """Robust accuracy at 8/255 is 0 % for both; every distance differs by a tenth."""
    other = np.random.default_rng(0).uniform(0.002, 0.02, 300)
    found = compare_distances(1.1 * other, other)
    assert max(found.first[2], found.second[2]) < 8 / 255 and found.outcome == "higher"
    assert found.interval[0] > 0 and compare_distances(other, 1.1 * other).outcome == "lower"
    assert compare_distances(other, other).outcome == "not significant"


def test_the_smallest_shift_is_shown_in_four_runs_of_five():
    random = np.random.default_rng(4)
    known = compare_distances(*noisy(60, 0.0)).detectable
    other = np.full(60, 0.1)
    shown = [
        compare_distances(other + known + random.normal(0, 0.01, 60), other).outcome == "higher"
        for _ in range(150)
    ]
    assert 0.7 < np.mean(shown) < 0.9


def test_a_model_that_is_wrong_more_often_when_clean_is_not_farther_away():
    """It answers two classes of ten; on these images nothing fools it."""
    other = np.random.default_rng(0).uniform(0.002, 0.02, 300)
    constant = np.where(np.arange(300) < 200, np.inf, 0.0)
    found = compare_distances(constant, other)
    assert found.p < 0.05 and found.outcome == "lower clean accuracy, no control"
    assert compare_distances(other, constant).outcome == "lower"
    alike = records(constant > 0, constant > 0)
    near = np.where(constant > 0, other, 0.0)  # of equal clean accuracy
    held = with_control(found, alike, {"R": alike}, lambda _: compare_distances(constant, near))
    assert held.outcome == "higher (control: R)"


# --- bit flips to chance --------------------------------------------------------------------------
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
    return flips.Reached(bits, tuple(tried if b is None else b for b in bits))


def test_bits_are_counted_at_the_level_and_censored_seeds_never_averaged():
    found = flips.to_chance(RECORDS, 0.11)
    assert found.bits == (2, 1, None) and found.tried == (2, 2, 3)
    assert flips.to_chance(RECORDS, 0.05).bits == (None, 2, None)
    assert flips.to_chance(RECORDS, 0.9).bits == (0, 0, 0)
    shuffled = RECORDS.sample(frac=1, random_state=1)
    assert flips.to_chance(shuffled, 0.11) == found
    assert flips.to_chance(RECORDS, 0.11, "margin").bits == ()
    assert found.uncensored == [2, 1]
    assert found.mean is None and found.least == 2.0  # (2 + 1 + 3) / 3
    nothing = dict.fromkeys(("flips_to_chance", "flips_to_chance_low", "flips_to_chance_high"))
    assert flips.flips_metric(found) == flips.flips_metric(None) == nothing
    assert flips.to_chance(RECORDS[RECORDS.seed < 2], 0.11).mean.value == 1.5
    assert flips.Reached((), ()).mean is None


def test_the_interval_is_that_of_t():
    values = [15, 16, 14, 12, 24]
    found = reached(*values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == (pytest.approx(low), pytest.approx(high))
    assert [*flips.flips_metric(found).values()] == [16.2, round(low, 2), round(high, 2)]
    single = reached(7)
    assert (single.mean.value, single.mean.deviation, single.interval) == (7, None, (None, None))


def test_accuracy_over_flips_by_hand():
    """Seed 0 stays at 0.1 after its end, seed 1 at 0.6 where it was not asked."""
    found = flips.over_flips(RECORDS)
    assert found.flips.tolist() == [0, 1, 2, 3, 4]
    assert found["mean"].tolist() == pytest.approx(
        [0.9, 1.9 / 3, 1.4 / 3, (0.1 + 0.11 + 0.6) / 3, 0.75 / 3]
    )
    assert found.low.tolist() == [0.9, 0.5, 0.1, 0.1, 0.05]
    assert found.high.tolist() == [0.9, 0.8, 0.7, 0.6, 0.6]
    assert flips.start_accuracy(RECORDS) == 0.9
    assert flips.at_the_end(RECORDS, "untargeted") == [0.1, 0.05, 0.6]
    assert flips.accuracy_after(RECORDS, 1.5) == [0.8, 0.7]
    assert flips.accuracy_after(RECORDS, 0) == [0.9, 0.9]
    assert flips.accuracy_after(RECORDS, 100) == [0.8, 0.7]  # all that were made
    assert flips.accuracy_after(RECORDS, 3, "margin") == []


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
    found = flips.compare_flips(reached(*one), reached(*other))
    assert found.p == pytest.approx(brute_force(one, other))
    if len({*one, *other}) == len(one) + len(other):  # without ties
        exact = stats.mannwhitneyu(one, other, method="exact").pvalue
        assert found.p == pytest.approx(exact)
    ranks = stats.rankdata([*one, *other])
    assert (found.direction > 0) == (ranks[: len(one)].mean() > ranks[len(one) :].mean())
    assert found.ratio == pytest.approx(np.mean(one) / np.mean(other))
    assert flips.compare_flips(reached(*other), reached(*one)).p == found.p


def test_a_censored_seed_needs_more_than_what_was_tried():
    """Five that came down within 30 against five that did not within 50: as far apart as can be."""
    low, high = reached(10, 15, 20, 25, 30), reached(None, None, None, None, None)
    found = flips.compare_flips(high, low)
    assert found.p == pytest.approx(2 / 252) and found.better and found.ratio is None
    assert not flips.compare_flips(low, high).better
    # nothing is known of one that was given up before the others came down
    early = reached(None, None, None, None, None, tried=5)
    assert flips.compare_flips(early, low).p == 1.0 and not flips.compare_flips(early, low).better
    assert flips.compare_flips(high, early).p == 1.0
    # tried 50 without success needs more than one that came down at 50
    assert flips.compare_flips(high, reached(*[50] * 5)).p == pytest.approx(2 / 252)
    with pytest.raises(ValueError, match="no seeds"):
        flips.compare_flips(low, flips.Reached((), ()))


def test_other_labels_are_other_images():
    one = records([True] * 30, [True] * 30)
    with pytest.raises(ValueError, match="not of the same labels"):
        compare(one, one.assign(label=one.label[::-1].to_numpy()))


@pytest.mark.parametrize("share", [0.95, 1.0])
def test_a_constant_answer_is_at_chance_whatever_the_shares_of_classes(share):
    """95 of 100 images of one class: guessing it is right for 95, not for half of them."""
    rare = np.arange(200) >= 200 * share
    label = rare.astype(int)
    always = {"index": np.arange(200), "label": label, "clean_pred": 0, "adv_pred": 0}
    dense = pd.DataFrame(always).assign(clean_pred=label, adv_pred=1 - label)
    assert compare(pd.DataFrame(always), dense).outcome == "at chance"
