"""The verdict's checks on planted records, and the worst case of a suite."""

import numpy as np
import pandas as pd
import pytest
from planted import planted
from planted import rows as records

from advprune.attacks.registry import follows_gradient
from advprune.evaluate.evidence import judged as verdict_of_count
from advprune.evaluate.evidence import white_box
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.verdict import (
    Evidence,
    beside_one_step,
    verdict,
)

SEARCH = {"method": "square", "gradients": 0.0}  # without gradients
FGSM = {"steps": 1, "step": 0.2}


def rows(attack, kept, n=40, eps=0.2, **columns):
    """n images of 4 classes, of which the first `kept`, or those given, are right under attack."""
    right = planted(kept, n) if isinstance(kept, int) else kept
    known = {"step": 0.05, "forwards": 10.0, "gradients": 5.0}
    return records(attack, right, eps=eps, clean=n, **known | columns)


def judged(*tables, **more):
    """The verdict on records, the main attack first, and the checks that are not passed."""
    found = verdict(Evidence(pd.concat(tables), "main", 4, **more))
    return found.level, names(found)


def level(*tables, **more):
    """Of a model that keeps 4 of 40 images."""
    return judged(rows("main", 4), rows("square", 20, **SEARCH), *tables, **more)


def names(found):
    return {check.name for check in found.against}


HONEST = {"eps": 0.0, "linf": 0.0, "declared": False, "slope_error": 0.0, "step_error": 0.3}
DECLARED = {"slope_error": 1.0, "declared": True}
UNKNOWN = {"slope_error": np.nan, "step_error": np.nan, "declared": True}


@pytest.mark.parametrize(
    ("table", "expected", "check"),
    [
        (rows("probe_noise", 30), "reliable", None),
        (rows("probe_single", 4, **FGSM), "reliable", None),
        (rows("other", 3, **SEARCH), "reliable", None),  # one image: tolerated
        (rows("other", 0, **SEARCH), "broken", "gradient-free"),  # four of 40 are not
        (rows("probe_gradient", 40, eps=0.0, gradient=1.0), "reliable", None),
        (rows("probe_gradient", 40, eps=0.0, gradient=[0.0] * 2 + [1.0] * 38), "suspect", "zero"),
        (rows("probe_gradient", 40, eps=0.0, gradient=[0.0] * 8 + [1.0] * 32), "broken", "zero"),
        (rows("curve_eps", 20, eps=0.5, linf=0.5), "broken", "largest"),
        (rows("curve_eps", 20, eps=0.3, linf=0.3), "reliable", None),  # as robust networks do
        (rows("probe_honesty", 40, **HONEST), "reliable", None),
        (rows("probe_honesty", 40, **HONEST | {"slope_error": 0.3}), "broken", "wrong"),
        (rows("probe_honesty", 40, **HONEST | {"step_error": 1.0}), "broken", "wrong"),
        (rows("probe_honesty", 40, **HONEST | DECLARED), "reliable", None),
        (rows("probe_honesty", 40, **HONEST | UNKNOWN), "suspect", "wrong"),
    ],
)
def test_each_check_by_planted_records(table, expected, check):
    found, against = level(table)
    assert found == expected
    assert (not against) if check is None else all(name.startswith(check) for name in against)


def test_what_only_the_weaker_attack_breaks_counts_whatever_it_misses():
    """White-box attacks keep 120 of 300; the search breaks 30 of those and misses 90 others."""
    kept = np.arange(300) < 120
    search = (np.arange(300) >= 30) & (np.arange(300) < 210)
    main = rows("main", kept, 300)
    found = verdict(Evidence(pd.concat([main, rows("square", search, 300, **SEARCH)]), "main", 4))
    assert found.level == "broken" and names(found) == {"gradient-free"}
    (check,) = found.against
    assert check.figure == "30 of 300 images only it breaks"
    one = rows("square", np.arange(300) > 0, 300, **SEARCH)
    passed = verdict(Evidence(pd.concat([main, one]), "main", 4))
    assert passed.level == "reliable"
    assert "1 of 300 images only it breaks" in {check.figure for check in passed.checks}


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        *((0, n, "pass") for n in (1, 20, 100)),
        *((1, n, "few") for n in (6, 10, 20)),  # 5 % and more would fail, were it not for chance
        (2, 40, "few"),
        *((1, 21, "pass"), (2, 41, "pass")),
        *((1, 5, "fail"), (3, 60, "fail")),  # more than chance
        # From 100 images on no share that passes is as large.
        *((3, 100, "pass"), (4, 100, "doubt"), (5, 100, "fail"), (15, 300, "fail")),
    ],
)
def test_a_few_images_that_only_a_weaker_attack_breaks(count, n, expected):
    check = verdict_of_count(count, n, "random noise", "random noise")
    few = check.reason.startswith("too few images to rule out chance")
    assert check.outcome == ("doubt" if expected == "few" else expected)
    assert few == (expected == "few")


STRONG, WEAK = rows("main", 30), rows("s", 35, **SEARCH)
STRAIGHT = rows("probe_honesty", 40, **HONEST | {"declared": True, "slope_error": np.nan})
OWN = {("dense", "main"): STRONG}
SINGLE = rows("probe_single", 10, **FGSM)


@pytest.mark.parametrize(
    ("tables", "transfers", "expected"),
    [
        ([STRONG, WEAK], {}, set()),
        ([STRONG], {}, {"gradient-free"}),  # nothing without gradients: in doubt
        ([STRONG, WEAK, rows("probe_noise", 10)], {}, {"random noise"}),
        ([STRONG, WEAK, rows("probe_noise", 10, linf=0.3)], {}, set()),  # outside the budget
        ([STRONG, WEAK, SINGLE], {}, {"single step", "iterative attacks"}),
        ([STRONG, WEAK, rows("x", 10, **SEARCH)], {}, {"gradient-free"}),
        ([STRONG, WEAK], OWN, set()),
        ([STRONG, WEAK], OWN | {("surrogate", "main"): rows("main", 10)}, {"transfer"}),
        ([STRONG, WEAK], OWN | {("dense", "momentum"): rows("main", 10)}, {"transfer"}),
        # Another attack of the suite makes up for one that falls behind: the union shows nothing.
        ([rows("main", 4), WEAK, SINGLE], {}, set()),
        ([rows("main", 4), WEAK, SINGLE, rows("behind", 30)], {}, {"iterative attacks"}),
        ([rows("main", 4), WEAK, SINGLE, rows("short", 30, step=0.001)], {}, set()),  # cannot cross
        ([STRONG, WEAK, STRAIGHT, rows("probe_nes", 30, method="nes")], {}, set()),
        (
            [STRONG, WEAK, STRAIGHT, rows("probe_student", 20, method="student")],
            *({}, {"estimated gradients"}),
        ),
    ],
)
def test_what_should_be_weaker_and_does_more_harm_contradicts_the_number(
    tables, transfers, expected
):
    level, against = judged(*tables, transfers=transfers)
    assert against == expected
    assert level == ("reliable" if not against else "suspect" if len(tables) == 1 else "broken")


@pytest.mark.parametrize(
    ("method", "breakdown", "follows"),
    [
        ("pgd", "", True),
        ("apgd", "", True),
        ("minimum_norm", "", True),
        ("square", "", False),
        ("nes", "", False),
        ("student", "", False),
        ("autoattack", '{"clean": 300, "apgd-ce": 300, "square": 100}', False),
        ("autoattack", '{"clean": 300, "apgd-ce": 300, "apgd-dlr": 300}', True),
        ("torchattacks.MIFGSM", "", True),
        *((f"torchattacks.{name}", "", False) for name in ("Square", "Pixle", "GN", "OnePixel")),
        ("torchattacks.AutoAttack", "", False),
    ],
)
def test_which_attacks_follow_the_gradient(method, breakdown, follows):
    assert follows_gradient(method, breakdown) == follows


def test_what_square_finds_stays_a_contradiction_beside_autoattack():
    """White-box PGD keeps all, Square a third; AutoAttack's own Square finds the same."""
    white, square = rows("main", 300, 300), rows("square", 100, 300, **SEARCH)
    assert judged(white, square) == ("broken", {"gradient-free"})
    parts = '{"clean": 300, "apgd-ce": 300, "apgd-t": 300, "fab-t": 300, "square": 100}'
    auto = rows("autoattack", 100, 300, method="autoattack", breakdown=parts)
    assert judged(white, square, auto) == ("broken", {"gradient-free"})
    assert judged(white, auto) == ("broken", {"gradient-free"})
    by_gradient = '{"clean": 300, "apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 100}'
    assert judged(white, auto.assign(breakdown=by_gradient))[0] == "reliable"


def test_little_that_each_of_several_attacks_adds_counts_together():
    """Three that break three other images of 300 each are tolerated one by one; nine images are not
    chance, and more than the gradients of the suite found."""
    main, kept = rows("main", 300, 300), np.arange(300)
    few = [rows(f"s{i}", (kept < 3 * i) | (kept >= 3 * i + 3), 300, **SEARCH) for i in range(3)]
    assert judged(main, *few[:1])[0] == "reliable"
    assert judged(main, *few) == ("suspect", {"all together"})
    transferred = {("a", "main"): few[0], ("b", "main"): few[1]}
    assert judged(main, few[2], transfers=transferred) == ("suspect", {"all together"})


def test_of_a_random_model_two_sets_of_draws_must_agree():
    frozen = rows("probe_frozen", 4)
    white = rows("main", 30, draws=2)
    search = rows("square", 10, **SEARCH)
    assert judged(white, search, frozen) == ("broken", {"gradient-free"})
    lucky = search.assign(chosen_margin=0.5)  # wrong in the draws that score it alone
    assert judged(white, lucky, frozen)[0] == "reliable"
    unlucky = white.assign(chosen_margin=-0.1)  # broken in the draws that chose it
    assert judged(unlucky, search, frozen)[0] == "reliable"


def test_of_several_single_steps_of_a_budget_the_most_harmful_one_counts():
    once = [rows(name, kept, **FGSM) for name, kept in (("fgsm", 35), ("one_step", 5), ("x", 20))]
    tests = beside_one_step(pd.concat([*once, rows("long", 20), rows("longer", 4)]))
    assert {attack: test.better for (attack, _), test in tests.items()} == {
        "long": True,
        "longer": False,
    }
    assert {test.second.hits for test in tests.values()} == {5}


def test_curves_that_rise_contradict_and_that_end_lower_cast_doubt():
    steps = [rows("curve_steps", kept, steps=s) for s, kept in ((1, 10), (5, 4), (50, 4))]
    assert level(*steps)[0] == "reliable"
    risen = [rows("curve_steps", kept, steps=s) for s, kept in ((1, 4), (50, 30))]
    assert level(*risen) == ("broken", {"more steps"})
    main = rows("main", 20)
    square = rows("square", 20, **SEARCH)
    end = rows("curve_steps", 4, steps=50)
    assert judged(main, square, rows("curve_steps", 20, steps=10), end)[0] == "suspect"


def test_the_twin_and_frozen_draws_are_checked():
    assert level(twin_agreement=0.999)[0] == "reliable"
    assert level(twin_agreement=0.9) == ("suspect", {"twin"})
    frozen = rows("probe_frozen", 30)
    found = level(rows("eot", 4, draws=10), frozen, parent=rows("main", 4))
    assert found == ("suspect", {"frozen randomness"})
    assert level(frozen)[1] == {"averaged gradients"}


def test_the_worst_case_is_taken_image_by_image_within_the_budget():
    first, second = rows("main", 10), rows("other", 0)
    second.loc[:19, "adv_pred"], second.loc[:19, "chosen_margin"] = first.label[:20], 3.0
    beyond, curve = rows("large", 0, eps=0.3), rows("curve_eps", 0)
    partly = rows("few", 0).head(5)
    found = white_box(pd.concat([first, second, beyond, curve, partly]), "main")
    assert remnant_accuracy(found).hits == 5  # right under both, and not among the first five
    assert found.attack[:5].tolist() == ["few"] * 5


def test_robust_rates_by_hand():
    table = rows("main", 20, adv_wrong=[0.0] * 20 + [0.85] * 10 + [0.9] * 10)
    found = robust_rates(table.assign(adv_single_pred=table.label.where(table.index < 25, 9)))
    assert found["robust_accuracy"] == 0.5
    assert found["robust_accuracy_single_draw"] == 0.625
    assert found["robust_accuracy_9_of_10"] == 0.75


def test_a_budget_in_l2_is_judged_by_the_size_of_the_image():
    """0.5 of 3,072 pixels is a small change, which a robust model withstands."""
    for eps, expected in ((0.5, "reliable"), (0.5 * 3072**0.5, "broken")):
        assert level(rows("curve_eps", 20, norm="L2", eps=eps), pixels=3072)[0] == expected
