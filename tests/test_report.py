"""The report on planted studies: every sentence and number has a cause that was put there."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from planted import (
    ATTACKS,
    LAYERS,
    ROOT,
    N,
    exchange,
    layer_table,
    model,
    only,
    planted,
    point,
    rows,
    searched,
    settings,
    study,
    swept_on,
)

from advprune.core.attack_settings import AttackSettings
from advprune.core.params import Params, load
from advprune.core.settings import parse
from advprune.evaluate.compare import compare, holm
from advprune.evaluate.measures import calibration_error
from advprune.report import plots, tables
from advprune.report.anatomy import clamped_spread, standing, where_it_acts
from advprune.report.calibration import calibration_table, reliability_bins
from advprune.report.costs import breakdown_table, cost_table
from advprune.report.figures import figures, png, style
from advprune.report.findings import findings
from advprune.report.page import html, report_markdown
from advprune.report.randomized import adaptive_table, budget_table, gain, variant
from advprune.report.robustness import answer, bases, schedules
from advprune.report.study import Study
from advprune.report.text import budget, markdown, setting_text
from advprune.report.tradeoff import robust_axis
from advprune.report.trust import quantized, sanity
from advprune.report.verdicts import check_table, verdict_table, verdicts
from advprune.report.write import curves, write_metrics, write_report

# --- tables --------------------------------------------------------------------------------------


def test_leaderboard_numbers_by_hand() -> None:
    whole = study(model("dense", (20, 20, 20)), model("A"), model("B", (17, 20, 20)))
    table = tables.leaderboard(whole).set_index("family")
    # 20 of 40, Wilson with z = 1.96: 0.5 +- 1.96 sqrt(0.25/40 + 1.96^2/(4 40^2)) / (1 + 1.96^2/40)
    assert table.loc["dense", ["robust %", "main %"]].tolist() == ["50.0 (35.2–64.8)"] * 2
    assert table.loc["dense", "against dense"] == "–"
    # 16 images lost and none won: p = 2 / 2^16; 3 lost and none won: p = 2 / 2^3 = 0.25
    assert table.loc["A", "against dense"] == "▼ worse"
    assert table.loc["A", "p"] == "< 0.001"
    assert table.loc["B", ["against dense", "p"]].tolist() == ["=", "0.25"]
    assert table.loc["A", "transfer %"].startswith("10.0 (")
    sizes = tables.sizes_table(whole).set_index("family")
    assert sizes.loc["A", ["change %", "strict ASR %"]].tolist() == ["90.0", "90.0"]
    # confidence 0.75, always right when clean, right in 10 % under attack
    assert sizes.loc["A", ["ECE clean", "ECE attacked"]].tolist() == ["0.250", "0.650"]
    assert sizes.loc["A", ["prune ratio %", "sparsity %"]].tolist() == ["25.0", "20.0"]
    assert sizes.loc["A", ["not zero", "MACs", "file kB"]].tolist() == ["1,234", "56,789", "4"]
    # main, short, long and square: 10 + 10 + 40 gradients, twice as many forwards and 600 more
    assert sizes.loc["A", "gradients per image"] == "60"
    assert sizes.loc["A", "forwards per image"] == "720"


def test_robust_accuracy_is_what_the_worst_attack_leaves_of_each_image() -> None:
    """main leaves the first 4 images, the search all but those: together nothing is left."""
    others = rows("square", ~planted(4), 300, method="square")
    table = tables.leaderboard(study(model("A", suite=[others]))).set_index("family")
    assert table.loc["A", "main %"].startswith("10.0 (")
    assert table.loc["A", "robust %"].startswith("0.0 (")
    assert "✗ broken" not in table.loc["dense", "verdict"]


def test_strict_success_counts_only_images_that_were_right() -> None:
    records = rows("main", planted(10), clean=20)
    other = model("A")
    first = replace(other, records=pd.concat([records, other.records[N:]], ignore_index=True))
    table = tables.sizes_table(study(first)).set_index("family")
    assert table.loc["A", "strict ASR %"] == "50.0"  # 20 right before, 10 of them after
    assert table.loc["A", "change %"] == "25.0"  # the other 20 keep their wrong class


def test_an_attack_that_a_model_did_not_get_is_a_dash_and_fewer_images_are_said() -> None:
    few = rows("only_A", planted(2, 8))
    params = settings()
    suites = params.active().suite.model_copy(update={"randomized": ["square", "only_A"]})
    profile = params.active().model_copy(
        update={"suite": suites, "attacks": params.active().attacks | {"only_A": MORE}}
    )
    params = params.model_copy(update={"profiles": {"digits": profile}})
    whole = study(model("A", suite=[searched(4), few]), params=params)
    table = tables.every_attack(whole).set_index("family")
    assert list(table.columns[1:]) == [
        *(f"{name} %" for name in ("main", "short", "long", "square", "only_A")),
        "worst case %",
    ]
    assert table.loc["dense", "only_A %"] == "–"
    assert table.loc["A", "only_A %"].startswith("25.0 (") and table.loc["A", "only_A %"].endswith(
        "), n = 8"
    )


def test_draws_table_scores_randomized_models_three_ways() -> None:
    """Wrong in half of the draws everywhere: no image is broken by the rule of 9 of 10."""
    unsure = rows("main", planted(4), adv_wrong=0.5, adv_single_pred=np.arange(N) % 4)
    frozen = rows("probe_frozen", planted(4))
    plain = model("A")
    records = pd.concat([unsure, plain.records[N:], frozen], ignore_index=True)
    table = tables.draws_table(study(replace(plain, records=records))).set_index("family")
    assert table.index.tolist() == ["A"]
    shares = [cell.split()[0] for cell in table.loc["A"].tolist()[1:]]
    assert shares == ["10.0", "100.0", "100.0"]


def test_published_table_has_dense_every_setting_and_int8_under_transfer() -> None:
    whole = study(
        model("int8", (4, 20, 4), carried=30, bits=8), points=[point(0), point(1, (0, 2, 0))]
    )
    table = tables.published_table(whole)["standard"]
    assert table.family.tolist() == ["dense", "A", "A", "int8"]
    assert table.setting.tolist() == ["–", "1", "2", "8 bits (transfer)"]
    assert table["short: remnant %"].str.split().str[0].tolist() == ["50.0", "50.0", "5.0", "75.0"]
    assert table["short: against dense"].tolist() == ["–", "=", "▼ worse", "▲ better"]
    assert table["prune ratio %"].tolist() == ["25.0", "50.0", "50.0", "25.0"]


def test_settings_of_a_sweep_stand_beside_models_on_the_images_of_the_sweep() -> None:
    """Of the first 16 images dense keeps all 16 under short and 4 under long, and of 40 it keeps
    20 and 4."""
    few = [one[one["index"] < 16] for one in (point(0, (4, 16, 4)), point(1, (4, 2, 4)))]
    params = swept_on(16, settings())
    whole = study(model("int8", (4, 20, 4), carried=30, bits=8), points=few, params=params)
    table = tables.published_table(whole)["standard"]
    kept = table["short: remnant %"].str.split().str[0].tolist()
    assert kept == ["100.0", "100.0", "12.5", "100.0"]
    assert table["short: against dense"].tolist() == ["–", "=", "▼ worse", "="]
    found = only(schedules(whole, "standard"))
    assert found.figures["dense"] == (1.0, 0.25) and "On n = 16 images" in found.text
    page = report_markdown(whole, {}).replace("\u00a0", " ")
    assert "n = 16, seed 0" in page and "n = 40 test images" in page
    assert tables.leaderboard(whole).equals(tables.leaderboard(replace(whole, params=settings())))
    assert figures(whole)["sweep"].axes[0].lines[-2].get_ydata()[0] == 25.0  # dense under long


def test_settings_table_writes_budgets_both_ways_and_names_extra_attacks() -> None:
    extra = [{"name": "MIFGSM", "eps": "8/255", "steps": 7}]
    params = settings(attack={"main": "main", "extra": extra})
    tried = model("A", suite=[searched(4), rows("MIFGSM", planted(4), method="torchattacks")])
    table = tables.settings_table(study(tried, params=params)).set_index("attack")
    assert table.loc["short", ["eps", "eps (number)", "step"]].tolist() == [
        "48/255",
        "0.1882",
        "1/255",
    ]
    assert table.loc["long", ["steps", "n", "seed"]].tolist() == ["40", str(N), "0"]
    assert table.loc["MIFGSM", "eps"] == "8/255"
    assert "steps 7" in table.loc["MIFGSM", "note"]
    assert table.loc["square", ["method", "steps"]].tolist() == ["square", "300 queries"]


# --- findings ------------------------------------------------------------------------------------


def test_a_difference_inside_the_interval_is_not_called_one() -> None:
    found = only(answer(study(model("A", (7, 20, 4)), model("B", (9, 20, 4))), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert "No difference from the dense network is shown" in found.title
    assert "n = 40" in found.text


def test_a_difference_beyond_the_test_is_called_one_with_its_side() -> None:
    models = (model("dense", (20, 20, 20)), model("A", (36, 36, 36)), model("B", (4, 20, 20)))
    found = only(answer(study(*models), "standard"))
    assert (found.figures["better"], found.figures["worse"]) == (["A"], ["B"])
    assert "more robust under the suite" in found.title and "B less robust" in found.title
    assert "A 90.0 %" in found.text and "p < 0.001" in found.text


def test_a_gain_that_the_verdict_speaks_against_is_named_with_it() -> None:
    """A falls to images carried over from dense, which its own attacks do not find."""
    models = (model("dense", (4, 4, 4)), model("A", (36, 36, 36), carried=4))
    found = only(answer(study(*models), "standard"))
    assert found.figures["better"] == ["A"]
    assert "A (broken) more robust" in found.title and "upper bound" in found.text
    sound = model("A", (36, 36, 36), carried=36, curve=(40, 38, 36, 0), steps=(38, 36, 36))
    assert "A more robust" in only(answer(study(model("dense"), sound), "standard")).title


def test_a_difference_at_another_budget_is_found_when_the_main_attack_is_at_its_floor() -> None:
    weaker = model("A", curve=(40, 5, 4, 0))
    found = only(answer(study(weaker, model("B")), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert list(found.figures["over_budgets"]) == ["A"]
    assert "A differs at other budgets" in found.title
    assert "12.5 against 50.0 %" in found.text


def test_a_difference_that_several_tests_may_give_by_chance_is_not_called_one() -> None:
    """Six images more and none fewer: p = 0.031 alone, 0.062 as the smaller of two."""
    found = only(answer(study(model("A", (10, 20, 10)), model("B")), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert "Tested alone, without that correction, it would be for A 25.0 %" in found.text
    single = only(answer(study(model("A", (10, 20, 10))), "standard"))
    assert single.figures["better"] == ["A"]


def test_a_network_that_only_guesses_is_never_called_robust() -> None:
    """It keeps 25 % under the long schedule, where dense keeps 10 %, because it always did."""
    guessing = pd.concat(
        [rows(name, planted(10), ATTACKS[name][1], clean=10) for name in ATTACKS]
    ).assign(value="9", order=1, prune_ratio=1.0, sparsity=1.0)
    whole = study(model("dense", (1, 20, 1)), points=[point(0, (1, 20, 1)), guessing])
    found = only(schedules(whole, "standard"))
    assert found.figures["verdict"] == "weaker attack" and found.figures["above_long"] == []
    assert "A = 2 is at chance when clean" in found.text
    table = tables.published_table(whole)["standard"]
    assert table["long: against dense"].tolist()[2] == "at chance"


def test_pictures_that_are_not_for_publishing_are_left_out() -> None:
    params = settings()
    shown = params.active().model_copy(update={"show_images": False})
    hidden = params.model_copy(update={"profiles": {"digits": shown}})
    whole = study(params=hidden)
    assert "images" not in figures(whole) and "images" in figures(study())
    assert "figures/images.png" not in report_markdown(whole, {"layers": b""})


@pytest.mark.parametrize(("kept", "words"), [(20, "is reached"), (2, "is not reached")])
def test_settings_that_the_published_table_singles_out_are_compared(kept: int, words: str) -> None:
    params = settings(prune={"S": 5}, sweep={"S": [5, 9]})
    points = [point(0, (4, kept, 4)), point(1)]
    elsewhere = only(schedules(study(model("S"), points=points, params=params), "standard"))
    assert "For S = 5" not in elsewhere.text  # another budget than the published table's
    profile = params.active()
    data = profile.data.model_copy(update={"source": "cifar10"})
    there = {params.profile: profile.model_copy(update={"data": data})}
    params = params.model_copy(update={"profiles": there})
    found = only(schedules(study(model("S"), points=points, params=params), "standard"))
    assert "ResNet18 on 1,000 ImageNet images) gives 32.6 %; here" in found.text
    assert f"the figure {words}" in found.text and "S = 9 the published" not in found.text


def test_a_model_that_is_the_dense_file_is_named_as_such() -> None:
    found = only(answer(study(model("A", sha256="dense"), model("B")), "standard"))
    assert found.figures["untouched"] == ["A"]
    assert "A changed no weight" in found.text


def test_short_schedule_is_called_a_weaker_attack_where_dense_falls_with_the_families() -> None:
    found = only(schedules(study(), "standard"))
    assert found.figures["verdict"] == "weaker attack"
    assert (found.figures["short"], found.figures["long"]) == ("short", "long")
    assert found.figures["dense"] == (0.5, 0.1)
    assert "travel at most 10/255" in found.text and "21 % of eps 48/255" in found.text
    assert "No: it is a weaker attack" in found.title


@pytest.mark.parametrize(
    ("dense", "rows_of", "verdict"),
    [
        ((4, 20, 4), (4, 30, 30), "both"),
        ((4, 4, 4), (4, 30, 30), "robustness"),
        ((4, 20, 18), (4, 20, 18), "neither"),
        ((4, 20, 20), (4, 4, 4), "neither"),
        ((4, 20, 4), (4, 39, 4), "weaker attack"),
    ],
)
def test_schedule_verdicts(dense: Sequence[int], rows_of: Sequence[int], verdict: str) -> None:
    whole = study(model("dense", dense), model("A"), points=[point(0, dense), point(1, rows_of)])
    found = only(schedules(whole, "standard"))
    assert found.figures["verdict"] == verdict
    above = ["A = 2"] if verdict in ("both", "robustness") else []
    assert found.figures["above_long"] == above
    assert ("is gone" in found.text) == (rows_of[1] == 39)


def test_only_attacks_that_differ_in_steps_alone_are_compared() -> None:
    """main has another step than short and long, so there is one pair and not three."""
    assert len(list(schedules(study(), "standard"))) == 1


@pytest.mark.parametrize(
    ("peaks", "verdict"),
    [
        ({"conv1": 9.0, "pool": 8.0}, "yes"),
        ({"pool": 8.0}, "partly"),
        ({"layer1.0.bn1": 9.0, "layer2.0.bn1": 8.0}, "no"),
    ],
)
def test_where_the_attack_acts(peaks: dict[str, float], verdict: str) -> None:
    moved = [model(name, layers=layer_table(peaks)) for name in ("dense", "A")]
    found = only(where_it_acts(study(*moved), "standard"))
    assert found.figures["verdict"] == verdict
    assert found.title.endswith(verdict.capitalize())
    assert f"of {len(LAYERS)}" in found.text


def test_standing_ranks_by_hand() -> None:
    found = standing(layer_table({"conv1": 9.0, "layer2.0.bn1": 10.0}))
    assert found.ranks["distance"] == (2, 4)  # then linear, then pool
    assert found.top["distance"][:3] == ["layer2.0.bn1", "conv1", "linear"]
    assert (found.input, found.last, found.cut) == ("conv1", "pool", 2)


@pytest.mark.parametrize(("spread", "verdict"), [(1.5, "yes"), (0.8, "no")])
def test_clamped_spread_both_ways(spread: float, verdict: str) -> None:
    clamp = model("clamp", layers=layer_table(spread=spread))
    found = only(clamped_spread(study(clamp), "standard"))
    assert found.figures["verdict"] == verdict
    assert (found.figures["clamp"], found.figures["dense"]) == (spread, 0.9)
    assert not list(clamped_spread(study(), "standard"))


def test_quantized_under_its_own_attack_and_under_transfer() -> None:
    flattered = study(model("int8", carried=30, bits=8, twin_agreement=0.975))
    found = only(quantized(flattered, "standard"))
    assert found.figures["transfer"] == 0.75
    assert "transfer alone would flatter it" in found.text and "97.5 % of clean" in found.text
    hidden = study(model("int8", (30, 20, 4), carried=4, bits=8))
    assert "hidden gradients" in only(quantized(hidden, "standard")).text


def test_sanity_says_when_the_attack_is_done_and_when_not() -> None:
    done = only(sanity(study(), "standard"))
    assert done.title.endswith("Yes")
    falling = only(sanity(study(model("A", steps=(20, 14, 4))), "standard"))
    assert falling.figures["falling"] == ["A"] and "still falls from 5 to 50" in falling.text
    stuck = only(sanity(study(model("A", curve=(40, 20, 20, 20))), "standard"))
    assert stuck.figures["above_chance"] == ["A"] and "hidden gradients" in stuck.text
    assert stuck.figures["gaps"] == {"A": pytest.approx(16 / N)}
    short = only(sanity(study(model("A", curve=(40, 20, 12, 12))), "standard"))
    assert short.figures["above_chance"] == []  # 30 % are not shown to be more than 25 %
    assert short.title.endswith("Not along the curve of A")


def test_randomized_models_are_no_rows_of_a_schedule_that_averages_over_nothing() -> None:
    frozen = rows("probe_frozen", planted(4))
    random = model("A", (4, 36, 36), suite=[searched(4), frozen])
    whole = study(random, params=settings(sweep={}))
    assert not list(schedules(whole, "standard"))
    found = only(schedules(replace(whole, models=[*whole.models, model("B")]), "standard"))
    assert list(found.figures["rows"]) == ["B"]


def two_bases(better: bool = True) -> Study:
    """A standard base, and a robust one that keeps 30 of 40 images (or no more than the other)."""
    params = settings(bases=["standard", "robust"], sweep={})
    kept = {"standard": (4, 20, 4), "robust": (30, 36, 30) if better else (6, 20, 6)}
    models = [
        model(family, kept[base], base=base, carried=kept[base][0])
        for base in kept
        for family in ("dense", "A", "B")
    ]
    return replace(study(params=params), models=exchange(models), adv_images={})


def test_every_finding_says_n_and_several_bases_are_named() -> None:
    found = findings(two_bases())
    of_base = [f for f in found if f.title.partition(":")[0] in ("standard", "robust")]
    assert len(of_base) == 2 * (len(found) - 3) / 2
    unsaid = ("strong enough", "stored bits")
    assert all("40 images" in f.text for f in found if not any(w in f.title for w in unsaid))


def test_a_base_is_compared_with_the_first_one_on_the_same_images() -> None:
    found = only(bases(two_bases()))
    assert found.title == "Is the base robust more robust than standard? Yes: 75.0 against 10.0 %"
    assert "base robust (pgd, 5 steps) keeps 75.0 % (59.8–85.8)" in found.text
    assert "standard 10.0 % (4.0–23.1)" in found.text and "p < 0.001" in found.text
    assert found.figures["better"] == ["A", "B"] and "2 of 2 families" in found.text
    same = only(bases(two_bases(better=False)))
    assert "No difference is shown" in same.title and same.figures["better"] == []
    assert not list(bases(study()))


def test_figures_of_two_bases_are_drawn_base_by_base() -> None:
    made = figures(two_bases())
    for kind in ("security", "steps", "layers", "reliability", "weights"):
        assert {f"{kind}-standard", f"{kind}-robust"} <= set(made), kind
    lines = {b: made[f"security-{b}"].axes[0].get_lines() for b in ("standard", "robust")}
    assert [line.get_label() for line in lines["robust"]] == ["dense", "A", "B"]
    assert len({line.get_linestyle() for b in lines for line in lines[b]}) == 2
    page = html(two_bases(), {name: png(figure) for name, figure in made.items()})
    live = {name for name in made if name.split("-")[0] in LIVE}
    assert page.count("data-plot=") == len(live) and '<th scope="col">base</th>' in page
    assert page.count("<img ") == len(made) - len(live)


# --- verdict -------------------------------------------------------------------------------------


def test_verdict_tables_say_what_speaks_against_a_row() -> None:
    whole = study(model("A", suite=[]), model("B", carried=0))
    table = verdict_table(whole).set_index("family")
    assert table.loc["dense", "verdict"] == "✓ reliable"
    assert table.loc["dense", "what speaks against it"] == "–"
    assert table.loc["A", "verdict"] == "? suspect"
    assert table.loc["A", "what speaks against it"].startswith("? gradient-free (none)")
    # 4 images fewer than its own attacks leave: p = 2 / 2^4, not shown
    assert table.loc["B", "verdict"] == "✓ reliable"
    checks = check_table(whole).set_index("family")
    assert checks.loc["B", "transfer from dense"] == "✓ 0.0 % against 10.0 % white-box"
    assert checks.loc["dense", "transfer from dense"] == "–"


def test_the_verdicts_are_counted_and_each_check_names_its_rows() -> None:
    broken = model("B", (36, 36, 36), carried=4)
    found = only(verdicts(study(model("A", suite=[]), broken)))
    assert [found.figures[level] for level in ("reliable", "suspect", "broken")] == [
        ["dense-standard"],
        ["A-standard"],
        ["B-standard"],
    ]
    assert found.title.endswith("1 of 3 rows reliable, 1 suspect and 1 broken")
    assert found.figures["against"]["gradient-free"][0] == "A-standard"
    assert "Contradicted by “transfer from dense”: B (10.0 % against" in found.text
    assert "upper bound" in found.text
    fine = only(verdicts(study()))
    assert fine.title.endswith("All 3 rows passed every check") and "upper" not in fine.text


# --- calibration and costs -----------------------------------------------------------------------


def test_reliability_bins_by_hand() -> None:
    """Of 8 images four are sure by 0.5 (one right), three by 0.95 (all right), one by 1/15."""
    records = rows("main", np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)).assign(
        adv_confidence=[0.5] * 4 + [0.95] * 3 + [1 / 15]
    )
    bins = reliability_bins(records, "adv")
    assert bins["count"].tolist() == [1, 4, 3]
    assert bins.accuracy.tolist() == [0.0, 0.25, 1.0]
    assert bins.confidence.tolist() == pytest.approx([1 / 15, 0.5, 0.95])
    assert (bins.low * 15).round().tolist() == [0, 7, 14]  # (0, 1/15] holds its upper end
    ece = (bins["count"] * (bins.accuracy - bins.confidence).abs()).sum() / 8
    right = (records.adv_pred == records.label).to_numpy()
    assert ece == pytest.approx(calibration_error(records.adv_confidence.to_numpy(), right))


def test_calibration_table_has_both_sides() -> None:
    row = calibration_table(study()).set_index("family").loc["A"]
    assert row[["ECE clean", "NLL clean", "Brier attacked"]].tolist() == ["0.250", "0.500", "0.250"]
    assert row["ECE attacked"] == "0.650" and row["mean confidence attacked %"] == "75.0"


def test_cost_table_has_a_span_where_models_differ_and_a_column_a_kind() -> None:
    cheap = rows("square", planted(4), method="square", gradients=0.0, forwards=100.0)
    frozen = rows("probe_frozen", planted(4))
    whole = study(model("A", suite=[cheap]), model("B", suite=[searched(4), frozen]))
    table = cost_table(whole).set_index("attack")
    assert table.loc["square", "deterministic: forwards"] == "100–600"
    assert table.loc["square", "randomized: forwards"] == "600"
    assert table.loc["long", "randomized: gradients"] == "40"
    assert table.loc["whole suite", "deterministic: forwards"] == "220–720"


def test_breakdown_of_autoattack_is_told_part_by_part() -> None:
    parts = json.dumps({"clean": 8, "apgd-ce": 3, "square": 2})
    auto = rows("only_A", planted(2, 8), method="autoattack", breakdown=parts)
    params = settings()
    suites = params.active().suite.model_copy(update={"deterministic": ["square", "only_A"]})
    profile = params.active().model_copy(update={"suite": suites})
    params = params.model_copy(update={"profiles": {"digits": profile}})
    table = breakdown_table(study(model("A", suite=[searched(4), auto]), params=params))
    assert table.to_dict("records") == [
        {
            "family": "A",
            "base": "standard",
            "attack": "only_A",
            "n": "8",
            "clean": "8",
            "after apgd-ce": "3",
            "after square": "2",
            "scored again": "2",
        }
    ]
    assert breakdown_table(study()).empty


# --- the published protocol of SAP ---------------------------------------------------------------

BUDGETS = (0, 8 / 255, 48 / 255)
CONV = {"fraction": 2.0, "where": "conv", "form": "poisson", "backward": "scale"}
MEMBERS: dict[str, dict[str, Any]] = {
    "standard": {
        "net": {"adaptive": True},
        "half": {"family": "SAP", "setting": 0.5},
        "full": {"family": "SAP", "setting": {"fraction": 1.0}, "adaptive": True},
        "noisy": {"family": "RNA", "setting": 0.05},
        "conv": {"family": "SAP", "setting": CONV, "adaptive": True},
    },
    "mixed": {"ADV": {}, "ADV_SAP": {"family": "SAP", "setting": 1.0}},
}
MORE = AttackSettings(eps=48 / 255, step=6 / 255, steps=40)
ADAPTIVE = {
    "held": MORE.model_copy(update={"backward": "constant"}),
    "straight": MORE.model_copy(update={"backward": "identity"}),
    "small": MORE.model_copy(update={"backward": "scale", "steps": 500, "random_start": False}),
}


def protocol_settings(members: dict[str, dict[str, Any]] = MEMBERS) -> Params:
    schedule = {
        "eps": BUDGETS,
        "draws": 100,
        "iterative": MORE.model_dump(),
        "adaptive": {name: one.model_dump() for name, one in ADAPTIVE.items()},
    }
    params = settings(protocol=members)
    raw = params.model_dump()
    raw["profiles"]["digits"]["protocol"] = schedule
    return parse(Params, raw, "test")


def course(
    member: str, fgsm: Sequence[int], adaptive: Sequence[int] = (), **columns: Any
) -> pd.DataFrame:
    """A member that keeps so many of N images over the budgets, and under held, straight, small."""
    made = [
        rows(attack, planted(kept), eps=eps)
        for attack in ("fgsm", "iterative")
        for eps, kept in zip(BUDGETS, fgsm, strict=True)
    ]
    made += [rows(n, planted(kept), **columns) for n, kept in zip(ADAPTIVE, adaptive, strict=False)]
    return pd.concat(made, ignore_index=True).assign(member=member)


def protocol_study(full: Sequence[int], left: Sequence[int], *more: pd.DataFrame) -> Study:
    """SAP-100 beside a network that keeps 20 of 40 at 8/255, 4 at 48/255, 4 under each attack."""
    made = [course("net", (40, 20, 4), (4, 4, 4)), course("full", full, left), *more]
    table = pd.concat(made, ignore_index=True)
    return study(params=protocol_settings(), protocol=table)


def test_a_gain_that_is_lost_to_attacks_that_know_sap() -> None:
    found = only(gain(protocol_study((40, 36, 24), (10, 4, 24))))
    assert found.figures["verdict"] == "gone"
    assert found.figures["shown"] == [BUDGETS[1], BUDGETS[2]]
    # 20 more images at 48/255 and 16 more at 8/255: the first is the largest
    assert found.figures["top"] == BUDGETS[2] and "+50.0 points for full under FGSM" in found.title
    assert "Does SAP's published gain survive attacks that know it? No" in found.title
    assert found.figures["left"] == pytest.approx(0.1)
    assert "does not survive" in found.text and "straight alone leaves 10.0 %" in found.text
    assert "n = 40 images" in found.text


def test_a_gain_that_is_kept_and_one_that_is_kept_in_part() -> None:
    kept = only(gain(protocol_study((40, 36, 24), (24, 24, 26))))
    assert kept.figures["verdict"] == "kept" and "So the gain survives:" in kept.text
    assert "? Yes: +50.0 points" in kept.title
    part = only(gain(protocol_study((40, 36, 24), (24, 14, 26))))
    assert part.figures["verdict"] == "partly"
    assert "In part: +50.0 points for full under FGSM, +25.0 points under" in part.title
    assert "survives in part: +25.0 points are left, where it was +50.0" in part.text


def test_a_gain_at_another_budget_than_the_adaptive_attacks_is_not_called_lost() -> None:
    found = only(gain(protocol_study((40, 36, 4), (4, 4, 4))))
    assert found.figures["verdict"] == "elsewhere" and found.figures["shown"] == [BUDGETS[1]]
    assert "Not tried where it is: +40.0 points for full under FGSM at eps 8/255" in found.title
    assert "nothing is said about the budgets at which there is one" in found.text


def test_the_iterative_attack_is_told_at_the_budget_of_the_gain() -> None:
    whole = protocol_study((40, 36, 24), (10, 4, 24))
    table = whole.protocol
    lost = (table.attack == "iterative") & (table.member == "full") & (table.eps == BUDGETS[2])
    kept = table.adv_pred.where(~lost, (table.label + 1) % 4)
    found = only(gain(replace(whole, protocol=table.assign(adv_pred=kept))))
    assert "Under the iterative attack (40 steps, gradients averaged over 1 draw)" in found.text
    assert "a gain is shown at eps 8/255; at eps 48/255 0.0 % (0.0–8.8) are left" in found.text


def test_no_gain_is_said_where_none_is_shown() -> None:
    """Six images more at one of two budgets: p = 0.031 alone, 0.062 after correction."""
    found = only(gain(protocol_study((40, 26, 4), (4, 4, 4))))
    assert found.figures["verdict"] == "no gain" and found.figures["shown"] == []
    assert "No gain over net is shown under FGSM" in found.title
    assert "So no gain is shown at any budget." in found.text
    assert "Under these attacks no difference is shown." in found.text
    worse = only(gain(protocol_study((40, 2, 4), (4, 4, 4))))
    assert "less accurate than net at eps 8/255" in worse.text


def test_images_lost_under_any_attack_count_as_lost_in_the_worst_case() -> None:
    """Each attack leaves 20 others: the worst case leaves none, and 9 of 10 draws all."""
    halves = [rows("held", planted(20), adv_wrong=0.5), rows("straight", ~planted(20))]
    lost = pd.concat(halves, ignore_index=True).assign(member="full")
    found = only(gain(protocol_study((40, 36, 24), (), lost)))
    assert found.figures["left"] == 0.0
    assert "9 of 10 draws are wrong, 50.0 % (35.2–64.8) would be left" in found.text


def test_other_recipes_and_the_rows_of_the_leaderboard_are_told_beside_it() -> None:
    others = (course("ADV", (40, 20, 4)), course("ADV_SAP", (40, 20, 4)))
    whole = protocol_study((40, 36, 24), (4, 4, 4), *others)
    whole = replace(whole, models=[model("dense"), model("SAP", (20, 20, 20), carried=20)])
    found = only(gain(whole))
    assert found.figures["others"] == {"mixed": "no gain"}
    assert "On the recipe mixed, no gain is shown for ADV_SAP over ADV" in found.text
    assert "SAP-standard keeps 50.0 % (35.2–64.8) against 10.0 %" in found.text
    assert "(more robust, p < 0.001; verdict " in found.text


@pytest.mark.parametrize(
    ("kept", "verdict"), [(0, "Yes"), (3, "Yes, down to the dense network"), (20, "No")]
)
def test_the_variant_on_convolutions_under_many_small_steps(kept: int, verdict: str) -> None:
    other = course("conv", (40, 20, 4), (30, 20, kept))
    found = only(variant(protocol_study((40, 36, 24), (24, 4, 20), other)))
    figures = {"verdict": verdict, "kept": kept / N, "attack": "small", "worst": kept / N}
    assert found.figures == figures and "worst case" not in found.title
    assert "500 steps of one draw each" in found.text
    assert "factors held constant: held 60.0 %" in found.text
    assert "straight through (BPDA): straight 10.0 %" in found.text
    assert "straight does more harm than held (p < 0.001)" in found.text


def test_a_variant_that_stands_under_small_steps_is_told_with_what_breaks_it() -> None:
    """Two images are left by one of the others, which has the same budget or a smaller one."""
    for eps in BUDGETS[1:]:
        other = course("conv", (40, 20, 4), (30, 2, 20))
        other.loc[other.attack == "straight", "eps"] = eps
        found = only(variant(protocol_study((40, 36, 24), (24, 4, 20), other)))
        assert found.figures["kept"] == 0.5 and found.figures["worst"] == 2 / N
        assert found.title.endswith(
            "No: 50.0 % (35.2–64.8) left, 5.0 % (1.4–16.5) in the worst case"
        )
        assert "over held, straight and small, 5.0 % (1.4–16.5) are left" in found.text
    other.loc[other.attack == "straight", "eps"] = 1.0  # says nothing about a smaller budget
    found = only(variant(protocol_study((40, 36, 24), (24, 4, 20), other)))
    assert found.figures["worst"] == 0.5 and "worst case" not in found.title


def test_without_the_protocol_there_is_nothing_of_it() -> None:
    for whole in (study(), study(params=protocol_settings())):
        assert not list(gain(whole)) and not list(variant(whole))
        assert not {"protocol", "controls"} & set(figures(whole))
        assert "published protocol" not in report_markdown(whole, {})
    untried = only(gain(replace(protocol_study((40, 36, 24), ()), models=[model("dense")])))
    assert untried.figures["verdict"] == "untested" and "Not tried" in untried.title
    alone = study(params=protocol_settings(), protocol=course("full", (40, 36, 24), (4, 4, 4)))
    assert not list(gain(alone)) and "protocol" in figures(alone)


def test_protocol_tables_and_figures() -> None:
    whole = protocol_study((40, 36, 24), (10, 4, 24), course("noisy", (40, 20, 4)))
    table = budget_table(whole, "fgsm").set_index("member")
    assert table.index.tolist() == ["net", "full", "noisy"]
    assert table.loc["full", "eps 8/255 %"].startswith("90.0 (")
    known = adaptive_table(whole)
    full = known[known.member == "full"].set_index("attack")
    assert full.index.tolist() == [*ADAPTIVE, "worst case"]
    assert full.loc["worst case", "mean logits %"].startswith("10.0 (")
    assert full.loc["worst case", "gradients per image"] == "30"
    made = figures(whole)
    labels = {
        n: [x.get_label() for x in made[n].axes[0].get_lines()] for n in ("protocol", "controls")
    }
    assert labels == {"protocol": ["net", "full"], "controls": ["net", "noisy"]}
    lines = made["protocol"].axes[1].get_lines()
    assert lines[1].get_ydata().tolist() == [100.0, 90.0, 60.0]


# --- small parts ---------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_compare_refuses_records_of_other_images() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        compare(rows("a", planted(4)), rows("a", planted(4, 39)))


def test_words() -> None:
    assert [budget(v) for v in (8 / 255, 1.6 / 255, 0.03, 0.001, 0)] == [
        "8/255",
        "1.6/255",
        "0.03",
        "0.001",
        "0",
    ]
    assert setting_text({"E": 1e-5, "S": {"sigmas": 7}}) == "E 1e-05, S sigmas 7"
    assert markdown("a|b <i> `c` [d](e)\nf") == r"a\|b &lt;i&gt; \`c\` \[d\](e) f"


# --- page, figures, files ------------------------------------------------------------------------

LIVE = ("tradeoff", "security", "steps", "layers", "transfer")  # drawn in the browser
HOSTILE = {"x": "<script>alert(1)</script>|[a](b)"}


def test_text_of_settings_cannot_inject_markup() -> None:
    whole = replace(study(model("A", setting=HOSTILE)), source="<b>bold</b>")
    page, text = html(whole, {}), report_markdown(whole, {})
    assert page.count("<script") == 3 and "<script" not in text
    for rendered in (page, text):
        assert "<script>alert" not in rendered and "<b>" not in rendered
        assert "&lt;script&gt;" in rendered
    assert r"\|\[a\](b)" in text and "|[a]" not in text
    rows_of = [line for line in text.splitlines() if line.startswith("| A ")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in rows_of[:1]}
    head = next(line for line in text.splitlines() if line.startswith("| family "))
    assert cells == {head.count("|")}


def test_the_note_of_a_profile_stands_beside_the_data_and_cannot_inject_markup() -> None:
    noted = settings().active().model_copy(update={"note": "Two cores, <b>1 hour</b> [x](y)"})
    params = settings().model_copy(update={"profiles": {"digits": noted}})
    page, text = html(study(params=params), {}), report_markdown(study(params=params), {})
    assert "of the run. Two cores, &lt;b&gt;1 hour&lt;/b&gt; [x](y)</p>" in page
    assert r"of the run. Two cores, &lt;b&gt;1 hour&lt;/b&gt; \[x\](y)" in text


@pytest.mark.parametrize(
    ("kept", "ends"),
    [
        ((0, 0), (-0.5, 9.5)),  # nothing below zero but the markers' lower half
        ((20, 22), (47.5, 57.5)),  # 50 and 55 % of 40 images, in the middle
        ((20, 24), None),  # ten points apart: as the values lie
    ],
)
def test_models_that_are_alike_are_not_drawn_apart(
    kept: tuple[int, int], ends: tuple[float, float] | None
) -> None:
    first, second = ((n, n, n) for n in kept)
    whole = study(model("dense", first), model("A", second), model("B", first))
    assert robust_axis(whole) == ends
    low, high = figures(whole)["tradeoff"].axes[0].get_ylim()
    assert ends is None or (low, high) == ends
    live = plots._tradeoff(whole).y_range
    assert ends is None or (live.start, live.end) == ends


def test_page_stands_alone_and_holds_its_figures() -> None:
    whole = study()
    pngs = {name: png(figure) for name, figure in figures(whole).items()}
    page = html(whole, pngs)
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [data for name, data in pngs.items() if name not in LIVE]
    assert sorted(base64.b64decode(data) for data in inside) == sorted(pictures)
    assert not re.search(r"""(src|href)=["']?https?:""", page.split("<script>")[0])
    assert "default-src 'none'" in page
    found = findings(whole)
    assert page.count('<details class="finding"') == len(found)
    assert page.count('<details class="finding" open>') == sum(not one.folded for one in found)
    assert set(pngs) == {
        *("sweep", "security", "steps", "layers", "reliability", "weights"),
        *("transfer", "images", "tradeoff", "bitflip", "bitflip-places"),
    }


def test_pictures_are_small_and_plain() -> None:
    for name, figure in figures(study()).items():
        data = png(figure)
        assert len(data) < 150_000, name
        assert not Image.open(BytesIO(data)).info, name


def test_a_family_keeps_its_style_whatever_else_is_pruned() -> None:
    few, many = study(), study(params=settings(prune={"A": 1, "B": 2, "C": 3}))
    assert style(few, "A") == style(many, "A")
    looks = [tuple(style(many, f).values()) for f in ("dense", "int8", "A", "B", "C")]
    assert len(set(looks)) == 5


def test_colour_images_and_settings_that_are_no_numbers_are_drawn() -> None:
    params = settings(sweep={"A": [{"keep": 1}, {"keep": 2}]})
    clean = np.full((N, 3, 8, 8), 100, np.uint8)
    whole = study(params=params)
    whole = replace(whole, clean_images=clean, adv_images=dict.fromkeys(whole.adv_images, clean))
    made = figures(whole)
    labels = [tick.get_text() for tick in made["sweep"].axes[0].get_xticklabels()]
    assert labels == ["keep 1", "keep 2"]
    assert png(made["images"])


def test_without_sweeps_the_report_is_still_written(tmp_path: Path) -> None:
    whole = study(params=settings(sweep={}))
    write_report(whole, tmp_path / "r")
    assert not (tmp_path / "r/figures/sweep.png").exists()
    assert "figures/sweep.png" not in (tmp_path / "r/report.md").read_text(encoding="utf-8")
    assert only(schedules(whole, "standard")).figures["verdict"] == "weaker attack"


def test_two_reports_are_the_same_bytes_and_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "b/figures").mkdir(parents=True)
    (tmp_path / "b/figures/stale.png").write_bytes(b"old")
    write_report(study(), tmp_path / "a")
    write_report(study(), tmp_path / "b")
    files = [sorted(p.relative_to(root) for p in root.rglob("*.*")) for root in tmp_path.iterdir()]
    assert files[0] == files[1] and len(files[0]) == 21
    for name in files[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_families_that_change_no_weight_have_no_histogram() -> None:
    same = {"low": -1.0, "high": 1.0, "before": [1, 9, 1], "after": [1, 9, 1]}
    idle = model("A", histogram=same, prune_ratio=0.0)
    made = figures(study(model("dense", histogram=None), idle, model("B", histogram=same)))
    assert [ax.get_title("left") for ax in made["weights"].axes if ax.get_visible()] == ["B"]
    assert "weights" not in figures(study(model("dense", histogram=None), idle))


def test_a_failure_leaves_the_old_report_alone(tmp_path: Path) -> None:
    write_report(study(), tmp_path / "a")
    with pytest.raises(KeyError):
        write_report(study(model("A", histogram={"low": 0})), tmp_path / "a")
    assert (tmp_path / "a/report.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_curves_for_dvc_plots() -> None:
    found = curves(study())
    security = found["security"]
    assert security.columns.tolist() == ["model", "eps", "remnant_accuracy", "low", "high"]
    dense = security[security.model == "dense-standard"]
    assert dense.remnant_accuracy.tolist() == [1.0, 0.5, 0.1, 0.0]
    assert dense.low.tolist()[1] == 0.352
    steps = found["steps"]
    assert steps[steps.model == "A-standard"].remnant_accuracy.tolist() == [0.5, 0.1, 0.1]
    sweep = found["sweep"]
    assert len(sweep) == 2 * len(ATTACKS)
    short = sweep[(sweep.attack == "short") & (sweep.order == 1)].iloc[0]
    assert short["model"] == "A-standard short"
    assert (short["value"], short.remnant_accuracy, short.prune_ratio) == (2, 0.5, 0.5)
    assert short.clean_accuracy == 1.0


def test_metrics_are_flat_and_have_the_same_keys(tmp_path: Path) -> None:
    write_metrics(study(), tmp_path / "m")
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "m").iterdir())]
    assert [path.name for path in sorted((tmp_path / "m").iterdir())] == [
        "A-standard.json",
        "B-standard.json",
        "dense-standard.json",
    ]
    assert len({tuple(one) for one in found}) == 1
    assert found[0]["remnant_accuracy"] == 0.1
    assert (found[0]["robust_accuracy"], found[0]["verdict"]) == (0.1, "reliable")


# --- scripts -------------------------------------------------------------------------------------


def run_show(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "stages/show.py"), "--profile", "digits"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_show_prints_the_leaderboard_and_the_path_last(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    missing = run_show(tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: metrics/digits/dense-standard.json is missing")
    params = load(tmp_path / "params.yaml", "digits")
    write_metrics(study(model("int8"), *map(model, params.prune)), tmp_path / "metrics/digits")
    shown = run_show(tmp_path).stdout.splitlines()
    assert shown[-1] == "reports/digits/report.html"
    assert shown[0].startswith(
        "digits: robust accuracy, worst case over the suite (Linf, eps 48/255"
    )
    assert max(map(len, shown)) <= 80 and "…" not in "".join(shown)
    rows_of, _, rest = "\n".join(shown).partition("Not run with these settings: ")
    order = [line.split()[0] for line in rows_of.splitlines() if "-standard" in line]
    assert order == [f"{family}-standard" for family in ("dense", "int8", *params.prune)]
    assert all(f"{family}-standard" in rest for family in (*params.masks, *params.quantized))


def test_neither_report_nor_scripts_import_torch() -> None:
    code = (
        "import sys; sys.path[:0] = ['src', 'stages'];"
        "import summarize, show, advprune.report.study, advprune.report.write;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_settings_beside_the_report_are_those_of_the_run(tmp_path: Path) -> None:
    whole = study()
    write_report(whole, tmp_path / "r")
    found = load(tmp_path / "r/params.yaml")
    profile = whole.params.profile
    assert found.active() == whole.params.active() and list(found.profiles) == [profile]
    assert found == whole.params.model_copy(update={"profiles": {profile: found.active()}})
    assert list(found.prune) == list(whole.params.prune)
