"""Sparse networks in the report: intervals, pairs and sentences from planted records."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted import model, only, planted, settings, sparse, study

from advprune.evaluate.crossed import Mean, mean
from advprune.report.figures import png
from advprune.report.findings import findings
from advprune.report.page import html, report_markdown, sections
from advprune.report.published import ADVERSARIAL_PRUNING
from advprune.report.sparse import (
    claims,
    conditions,
    entries,
    number_table,
    pair_table,
    pairs,
    point_table,
    published_table,
    shown,
    signed,
)
from advprune.report.sparse_figures import over_sparsity, training
from advprune.report.study import Study
from advprune.report.write import curves

TUNED = {"epochs": 2}
Kept = Sequence[int | np.ndarray]


def point(family: str, sparsity: float = 0.9, **more: Any) -> dict[str, Any]:
    setting = {"sparsity": sparsity, "finetune": TUNED} | more.pop("setting", {})
    return {"family": family, "setting": setting} | more


def chosen(points: dict[str, Any], *tables: pd.DataFrame, **more: Any) -> Study:
    """A study with these points, on dense networks that keep 20, 22 and 24 of 40 images."""
    raw = {"dense": "robust", "attacks": ["short"], "points": points}
    params = settings(sparsity_study=raw)
    dense = sparse("dense", "dense", (20, 22, 24), sparsity=0.0)
    return study(params=params, sparse_points=[dense, *tables], **more)


def versus(learned: Kept, control: Kept, **more: Any) -> Study:
    """HYDRA beside LWM at 90 %."""
    return chosen(
        {"L": point("LWM"), "H": point("HYDRA")},
        sparse("L", "LWM", control, **more),
        sparse("H", "HYDRA", learned, **more),
    )


def table_of(*kept: int) -> np.ndarray:
    return np.stack([planted(k) for k in kept])


def paired(first: Sequence[int], second: Sequence[int]) -> Mean:
    """The mean of the differences, seed by seed and image by image."""
    return mean(table_of(*first).astype(float) - table_of(*second))


# --- what a point is -----------------------------------------------------------------------------


def test_a_point_is_the_worst_case_of_each_seed() -> None:
    whole = chosen({"L": point("LWM")}, sparse("L", "LWM", (30, 10, 20), more=15))
    entry = entries(whole)[1]
    assert entry.robust.tolist() == table_of(15, 10, 15).tolist()
    assert entry.clean.all() and entry.sparsity == 0.9 and entry.zeros == 0.5


def test_the_table_of_points_by_hand() -> None:
    whole = chosen({"L": point("LWM")}, sparse("L", "LWM", (10, 14, 18), clean=(30, 30, 30)))
    dense, row = point_table(whole).to_dict("records")
    assert (dense["point"], dense["of"]) == ("dense", "robust")
    assert (row["point"], row["of"]) == ("L", "robust")
    assert row["robust %"] == shown(mean(table_of(10, 14, 18)))
    assert row["robust %"].startswith("35.0 ± 10.0 (")  # 14 of 40, and 4 of 40 apart
    assert row["clean %"].startswith("75.0 ± 0.0 (")
    difference = paired((10, 14, 18), (20, 22, 24))
    assert row["robust, against dense robust"] == signed(difference)
    assert signed(difference).startswith("-20.0 (")
    assert dense["robust, against dense robust"] == "–"
    assert (row["sparsity %"], row["zeros %"]) == ("90.0", "50.0")


def test_a_single_seed_has_no_deviation() -> None:
    whole = chosen({"L": point("LWM")}, sparse("L", "LWM", (10,)))
    row = point_table(
        study(
            params=whole.params,
            sparse_points=[sparse("dense", "dense", (20,)), sparse("L", "LWM", (10,))],
        )
    ).to_dict("records")[1]
    assert row["robust %"] == shown(mean(table_of(10))) and "±" not in row["robust %"]


def test_what_intervals_are_for_hangs_on_the_number_of_seeds() -> None:
    whole = versus((30, 31, 32), (10, 11, 12))
    assert "for other seeds and other images" in conditions(whole)
    single = [sparse("dense", "dense", (20,)), sparse("L", "LWM", (10,))]
    params = chosen({"L": point("LWM")}, single[1]).params
    alone = conditions(study(params=params, sparse_points=single))
    assert "1 seed, so that brackets hold 95 % intervals for other images alone" in alone


def test_numbers_are_those_of_the_table() -> None:
    found = number_table(versus((30, 31, 32), (10, 11, 12))).set_index("point")
    assert found.loc["H", "robust"] == 0.775 and found.loc["L", "robust_deviation"] == 0.025
    low, high = mean(table_of(10, 11, 12)).interval
    assert (found.loc["L", "robust_low"], found.loc["L", "robust_high"]) == pytest.approx(
        (low, high), abs=1e-4
    )
    assert found.loc["dense", "sparsity"] == 0 and (found.seeds == 3).all()


# --- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learned", "control", "outcome"),
    [
        ((30, 31, 32), (10, 11, 12), "better"),
        ((10, 11, 12), (30, 31, 32), "worse"),
        ((20, 21, 22), (20, 21, 22), "same"),
        ((21, 20, 25), (20, 21, 22), "same"),
        ((34, 12, 20), (20, 21, 22), "same"),  # better by one seed alone
    ],
)
def test_what_is_shown_about_a_pair(
    learned: Sequence[int], control: Sequence[int], outcome: str
) -> None:
    whole = versus(learned, control)
    pair = only(pairs(whole, "HYDRA"))
    assert pair.outcome == outcome
    difference = paired(learned, control)
    assert pair.p == difference.p and pair.robust.value == pytest.approx(difference.value)
    words = {"better": "More than L", "worse": "Less than L", "same": "No difference from L is"}
    assert f"sparsity? {words[outcome]}" in only(claims(whole)).title


def test_differences_are_paired_by_image() -> None:
    """Half of the images right, the same or other ones: the same mean, but not the same doubt."""
    first = [planted(20)] * 3
    same = only(pairs(versus(first, [planted(14)] * 3), "HYDRA"))
    other = only(pairs(versus(first, [~planted(26)] * 3), "HYDRA"))
    assert same.robust.value == other.robust.value == 0.15
    assert same.outcome == "better" and other.outcome == "same"


def test_only_points_of_one_base_and_sparsity_and_kind_are_compared() -> None:
    points = {
        "L90": point("LWM"),
        "L90_long": point("LWM"),
        "L95": point("LWM", 0.95),
        "bare": {"family": "LWM", "setting": 0.9},
        "other": point("LWM", base="standard"),
        "H90": point("HYDRA"),
        "H95": point("HYDRA", 0.95),
        "H99": point("HYDRA", 0.99),
    }
    tables = [
        sparse(name, one["family"], (20, 21, 22), base=one.get("base", "robust"))
        for name, one in points.items()
    ]
    tables.append(sparse("dense", "dense", (1, 2, 3), base="standard", sparsity=0.0))
    found = pair_table(chosen(points, *tables))
    assert list(zip(found.point, found.control, strict=True)) == [
        ("H90", "L90"),
        ("H90", "L90_long"),
        ("H95", "L95"),
    ]


def test_several_pairs_of_a_family_are_corrected() -> None:
    points = {"L90": point("LWM"), "L95": point("LWM", 0.95)}
    points |= {"H90": point("HYDRA"), "H95": point("HYDRA", 0.95)}
    same, more = (20, 21, 22), (26, 27, 28)
    tables = [sparse(n, points[n]["family"], k) for n, k in (("L90", same), ("L95", same))]
    tables += [sparse("H90", "HYDRA", more), sparse("H95", "HYDRA", same)]
    whole = chosen(points, *tables)
    alone = only(pairs(versus(more, same), "HYDRA")).p
    first, second = pairs(whole, "HYDRA")
    assert first.p == pytest.approx(2 * alone) and second.p == 1.0
    title = only(claims(whole)).title
    assert title.endswith("? More than L90; no difference from L95 is shown")


def test_networks_at_chance_say_nothing() -> None:
    """10 of 40 right when clean, with four classes."""
    whole = versus((10, 10, 10), (0, 0, 0), clean=(10, 10, 10))
    assert only(pairs(whole, "HYDRA")).outcome == "void"
    title = only(claims(whole)).title
    assert title.endswith("At chance beside L, so nothing is concluded")


def test_pairs_at_chance_do_not_count_among_the_tests() -> None:
    points = {"L90": point("LWM"), "L99": point("LWM", 0.99)}
    points |= {"H90": point("HYDRA"), "H99": point("HYDRA", 0.99)}
    same, more = (20, 21, 22), (26, 27, 28)
    tables = [sparse("L90", "LWM", same), sparse("H90", "HYDRA", more)]
    tables += [sparse(n, points[n]["family"], (1, 2, 3), clean=(10,) * 3) for n in ("L99", "H99")]
    first, second = pairs(chosen(points, *tables), "HYDRA")
    assert first.p == only(pairs(versus(more, same), "HYDRA")).p and second.void


def test_other_families_that_learn_have_controls_of_their_own() -> None:
    train = {"finetune": None, "train": TUNED}
    points = {name: point(name, setting=train) for name in ("AWT", "NTT", "random_ticket", "LWM")}
    tables = [sparse(name, name, (20, 21, 22)) for name in points]
    found = pair_table(chosen(points, *tables))
    assert list(found.control) == ["NTT", "random_ticket"] and set(found.point) == {"AWT"}


# --- words ---------------------------------------------------------------------------------------


def test_the_words_of_the_claim_by_hand() -> None:
    found = only(claims(versus((30, 31, 32), (10, 11, 12))))
    first, second, third = found.text.split("\n\n")
    difference = paired((30, 31, 32), (10, 11, 12))
    assert first == (
        f"At 90.0 % sparsity H keeps {shown(mean(table_of(30, 31, 32)))} % and L "
        f"{shown(mean(table_of(10, 11, 12)))} %: a difference of {signed(difference)} points "
        "(p < 0.001); clean 100.0 and 100.0 %."
    )
    assert second.startswith("The dense networks (robust) keep 55.0 ± 5.0 (")
    assert "the worst of main and short (Linf, eps 48/255); n = 40 test images" in third
    assert not found.folded and found.figures["pairs"]["H"][:2] == ("L", "better")


def test_sub_networks_stand_beside_the_whole_network_and_the_same_training() -> None:
    sub = {"finetune": None, "scores": {"epochs": 1}}
    points = {
        "sub": point("HYDRA", 0.5, base="standard", setting=sub),
        "whole": point("HYDRA", 0.0, base="standard", setting=sub),
        "L": point("LWM"),
        "H": point("HYDRA"),
    }
    tables = [
        sparse("dense", "dense", (2, 2, 2), base="standard", sparsity=0.0),
        sparse("sub", "HYDRA", (20, 20, 20), base="standard"),
        sparse("whole", "HYDRA", (16, 16, 16), base="standard"),
        sparse("L", "LWM", (20, 20, 20)),
        sparse("H", "HYDRA", (20, 20, 20)),
    ]
    text = only(claims(chosen(points, *tables))).text
    against_dense, against_whole = paired([20] * 3, [2] * 3), paired([20] * 3, [16] * 3)
    assert "sub picks 50.0 % of the weights of networks trained by standard and changes" in text
    assert f"{signed(against_dense)} points against the whole network" in text
    assert "The same training with nothing pruned (whole), of batch-norm alone, keeps 40.0" in text
    assert f"the mask makes a difference of {signed(against_whole)} points" in text
    assert text.count(" picks ") == 1


# --- published results ---------------------------------------------------------------------------


def test_published_results_stand_beside_ours_and_are_called_so() -> None:
    points = {
        "H90": point("HYDRA"),
        "again": point("HYDRA"),
        "H99": point("HYDRA", 0.99),
        "other": point("LWM", 0.95, base="standard"),
        "half": point("LWM", 0.5),
    }
    tables = [
        sparse(name, one["family"], (20, 20, 20), base=one.get("base", "robust"), clean=(30,) * 3)
        for name, one in points.items()
        if name != "again"
    ]
    tables += [sparse("again", "HYDRA", (1, 1, 1))]
    tables += [sparse("dense", "dense", (1, 2, 3), base="standard", sparsity=0.0)]
    whole = chosen(points, *tables)
    found = published_table(whole)
    assert (found.whose == "published").sum() == len(ADVERSARIAL_PRUNING.rows) == 10
    theirs = found[(found.method == "HYDRA") & (found.whose == "published")].iloc[0].tolist()
    assert theirs[2:] == ["76.74 / 43.34", "76.16 / 42.45", "72.21 / 38.80"]
    (ours,) = found[found.whose == "ours"].values.tolist()
    assert ours == ["HYDRA", "ours", "75.0 / 50.0", "–", "75.0 / 50.0"]
    (section,) = [s for s in sections(whole, frozenset()) if s.title == "Sparse and robust"]
    told = section.after.replace("\u00a0", " ")
    for words in (
        "eps 0.031",
        "10,000 test images",
        "of width 8",
        "n = 40",
        "3 seeds",
        "2409.01249",
    ):
        assert words in told


def test_without_a_point_at_those_sparsities_nothing_published_is_shown() -> None:
    assert published_table(chosen({"L": point("LWM", 0.5)}, sparse("L", "LWM", (1, 2, 3)))).empty


# --- figures and the page ------------------------------------------------------------------------


def test_accuracy_over_sparsity_is_drawn_with_its_intervals() -> None:
    points = {"L": point("LWM"), "H": point("HYDRA"), "H95": point("HYDRA", 0.95)}
    tables = [sparse("L", "LWM", (10, 11, 12)), sparse("H", "HYDRA", (30, 31, 32))]
    tables.append(sparse("H95", "HYDRA", (20, 21, 22)))
    figure = over_sparsity(chosen(points, *tables))
    assert figure is not None
    ax = figure.axes[1]
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in ax.containers}
    assert drawn["HYDRA"][:, 1] == pytest.approx([77.5, 52.5])
    assert drawn["LWM"][0, 0] == -drawn["HYDRA"][0, 0] < 0  # side by side at 90 %
    assert drawn["HYDRA"][1, 0] == 1
    assert drawn["LWM"][:, 1] == pytest.approx([27.5])
    bars = {c.get_label(): c.lines[2][0].get_segments() for c in ax.containers}
    low, high = mean(table_of(10, 11, 12)).interval
    assert bars["LWM"][0][:, 1] == pytest.approx([100 * low, 100 * high])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["90 %", "95 %"]


def history(name: str, phases: dict[str, list[float]], seed: int) -> pd.DataFrame:
    rows = [
        {"epoch": epoch, "train_loss": loss, "probe_clean": loss / 10, "phase": phase}
        for phase, losses in phases.items()
        for epoch, loss in enumerate(losses, 1)
    ]
    return pd.DataFrame(rows).assign(point=name, family="HYDRA", base="robust", seed=seed)


def test_the_course_of_training_joins_phases_and_averages_seeds() -> None:
    told = pd.concat(
        [
            history("H", {"scores": [4.0, 3.0], "finetune": [2.0]}, 0),
            history("H", {"scores": [2.0, 1.0], "finetune": [0.0]}, 1),
        ]
    )
    found = chosen({"H": point("HYDRA")}, sparse("H", "HYDRA", (1, 2, 3)), sparse_history=told)
    figure = training(found)
    assert figure is not None
    loss, clean, robust = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert clean.lines[0].get_xydata()[:, 1].tolist() == pytest.approx([30, 20, 10])
    assert not robust.lines


def test_the_dense_network_stands_beside_by_the_accuracies_that_chose_its_epoch() -> None:
    dense = [
        {"epoch": epoch, "train_loss": 1.0, "val_accuracy": 0.9, "val_robust_accuracy": 0.2 * epoch}
        for epoch in (1, 2)
    ]
    told = pd.concat(
        [
            history("H", {"finetune": [4.0, 3.0]}, 0),
            pd.DataFrame(dense).assign(
                point="dense", family="dense", base="robust", seed=0, phase="train"
            ),
        ]
    )
    found = chosen({"H": point("HYDRA")}, sparse("H", "HYDRA", (1, 2, 3)), sparse_history=told)
    figure = training(found)
    assert figure is not None
    robust = figure.axes[2].lines
    assert [line.get_label() for line in robust] == ["dense"]
    assert robust[0].get_xydata()[:, 1].tolist() == pytest.approx([20, 40])


def test_the_page_has_the_section_and_its_figures() -> None:
    whole = versus((30, 31, 32), (10, 11, 12))
    drawn = {"sparsity": over_sparsity(whole), "sparsity-training": training(whole)}
    pngs = {name: png(figure) for name, figure in drawn.items() if figure is not None}
    text, page = report_markdown(whole, pngs), html(whole, pngs)
    assert "## Sparse and robust" in text and "figures/sparsity.png" in text
    assert "figures/sparsity-training.png" not in text  # there are no histories
    assert "Does HYDRA keep more robustness" in page
    assert "| published" in text and "sparsity" in curves(whole)


@pytest.mark.parametrize("points", [{}, {"L": point("LWM")}])
def test_without_records_there_is_no_trace_of_it(points: dict[str, Any]) -> None:
    whole = study(params=settings(sparsity_study={"points": points}))
    assert "Sparse and robust" not in [one.title for one in sections(whole, frozenset())]
    assert not any("sparsity?" in finding.title for finding in findings(whole))
    assert over_sparsity(whole) is None and training(whole) is None
    assert "sparsity" not in curves(whole)


def test_tickets_have_figures_of_their_own() -> None:
    params = settings(tickets={"HYDRA": 0.9}, ticket_base="standard")
    whole = study(model("A"), model("B"), model("HYDRA"), params=params)
    assert [one.family for one in whole.groups["tickets"]] == ["dense", "HYDRA"]
    assert "HYDRA" not in [one.family for one in whole.groups["standard"]]
    assert ("tickets", "security-tickets") in whole.each_group("security")
