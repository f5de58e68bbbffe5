"""Bits under attack in the report: tables, figures and the finding from planted records."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted import flipping, model, only, settings, study
from scipy import stats

from advprune.report.bits import (
    accuracy_figure,
    flip_curves,
    flip_numbers,
    flip_table,
    flips_finding,
    place_table,
    places_figure,
    variant_table,
)
from advprune.report.figures import png
from advprune.report.page import html, report_markdown, sections
from advprune.report.study import Study
from advprune.report.tables import leaderboard

FIVE = (10, 12, 14, 16, 18)  # mean 14, deviation 3.162
MORE = (20, 22, 24, 26, 28)  # every one above FIVE: p = 2 / 252
CHANCE = 1.1 / 4


def attacked(
    entries: dict[str, tuple[dict[str, Any], Sequence[int | None]]], **changes: Any
) -> Study:
    """A study of dense, A and B in which each entry's seeds need so many flips."""
    params = settings(
        bitflip={name: {"base": "standard"} | entry for name, (entry, _) in entries.items()},
        **changes,
    )
    records = {
        name: flipping(
            counts,
            variants=entry.get("variants", ()),
            bits=entry.get("bits", 8),
            level=0.9 * CHANCE,
        )
        for name, (entry, counts) in entries.items()
    }
    return study(model("A"), model("B"), params=params, bitflips=records)


DENSE = ({"of": "dense"}, FIVE)


def test_the_table_by_hand() -> None:
    one = flip_table(attacked({"dense_8": DENSE})).iloc[0]
    low, high = stats.t.interval(0.95, 4, loc=14, scale=stats.sem(FIVE))
    assert one["flips to chance"] == f"14.0 ({low:.1f}–{high:.1f})" == "14.0 (10.1–17.9)"
    assert one["s.d."] == f"{np.std(FIVE, ddof=1):.1f}" == "3.2"
    assert one["seeds at chance"] == "5 of 5"
    assert one["model"] == "dense-standard" and one["stored bits"] == "1,000"
    assert one["clean %"] == "90.0" and one["after as many random flips %"] == "90.0 (least 90.0)"


def test_censored_seeds_are_told() -> None:
    whole = attacked({"dense_8": ({"of": "dense"}, (10, 12, None, 16, 18))})
    one = flip_table(whole).iloc[0]
    assert one["flips to chance"] == "more than 17.2"  # (10 + 12 + 30 + 16 + 18) / 5
    assert one["s.d."] == "–" and one["seeds at chance"] == "4 of 5"
    found = only(flips_finding(whole))
    assert "more than 17.2 (not reached on 1 of 5 batches)" in found.text
    assert found.figures["flips"] == {"dense_8": None}
    assert whole.metrics(whole.models[0])["flips_to_chance"] is None
    assert "more than 17.2" in leaderboard(whole)["flips to chance"].tolist()


def test_fewer_random_flips_than_chosen_ones_are_counted() -> None:
    records = flipping(FIVE, level=0.1)
    few = records[(records.variant != "random") | (records.flip <= 3)]
    whole = study(params=settings(), bitflips={"dense_8": few, "dense_4": few})
    assert flip_table(whole).iloc[0]["after as many random flips %"] == "90.0 (least 90.0, 3 flips)"


def test_other_searches_stand_beside_the_untargeted_one() -> None:
    assert variant_table(attacked({"dense_8": DENSE})).empty
    entry = {"of": "dense", "variants": ["margin", "targeted"]}
    table = variant_table(attacked({"dense_8": (entry, FIVE)}))
    assert table.search.tolist() == ["margin", "targeted"]
    assert (table["accuracy in the end %"] == "24.8").all()
    assert (table["flips to chance"] == table["untargeted"]).all()
    found = only(flips_finding(attacked({"dense_8": (entry, FIVE)})))
    told = "14.0 (10.1–17.9) by margin flips and 14.0 (10.1–17.9) by targeted flips"
    assert f"dense_8 is at chance after {told}." in found.text


def test_where_flips_land() -> None:
    """The first flip of each of 5 seeds in conv1, the other 65 of 70 in linear, all of the sign."""
    one = place_table(attacked({"dense_8": DENSE})).iloc[0]
    assert one["flips"] == "70" and one["layers hit"] == "2 of 3"
    assert one["most often, % of flips"] == "linear 93, conv1 7"
    assert one["highest bit %"] == "100.0"


@pytest.mark.parametrize(
    ("counts", "word", "ratio"),
    [
        (MORE, "more", "1.71"),
        ((1, 2, 3, 4, 5), "fewer", "0.21"),
        ((11, 12, 13, 15, 17), "no difference shown", "0.97"),
    ],
)
def test_an_entry_beside_the_first_one(counts: Sequence[int], word: str, ratio: str) -> None:
    found = only(flips_finding(attacked({"dense_8": DENSE, "A_8": ({"of": "A"}, counts)})))
    assert found.figures["words"] == {"A_8/dense_8": word}
    assert f", {ratio} times as many as dense_8: {word} (p " in found.text
    question = "How many stored bits break a network? dense_8: 14.0 (10.1–17.9)"
    assert found.title == f"{question}; pruned (A_8): {word}"


def test_p_values_are_corrected_and_so_few_batches_are_said() -> None:
    """2 / 252 times 6 is 0.048, times 7 is 0.056: then nothing can be shown with 5 seeds."""
    for others, word in ((6, "more"), (7, "no difference shown")):
        entries = {f"A_{n}": ({"of": "A"}, MORE) for n in range(others)}
        found = only(flips_finding(attacked({"dense_8": DENSE} | entries)))
        assert set(found.figures["words"].values()) == {word}
        assert found.figures["p"]["A_0/dense_8"] == pytest.approx(others * 2 / 252)
        assert ("So few batches cannot show" in found.text) == (others == 7)
        assert f"corrected for {others} comparisons" in found.text


def test_pruning_is_measured_by_the_dense_network_that_is_stored_alike() -> None:
    entries = {"dense_8": DENSE, "dense_4": ({"of": "dense", "bits": 4}, MORE)}
    entries["A_4"] = ({"of": "A", "bits": 4}, (21, 23, 24, 25, 28))
    found = only(flips_finding(attacked(entries)))
    assert found.figures["words"] == {
        "dense_4/dense_8": "more",
        "A_4/dense_8": "more",
        "A_4/dense_4": "no difference shown",
    }
    assert found.title.endswith("; pruned (A_4): no difference shown")


def test_a_network_that_guesses_as_it_is_stored_says_nothing() -> None:
    """At one bit a float network may be at chance before any flip: that needs no bits at all."""
    gone = flipping((0, 0, 0, 0, 0), level=0.9 * CHANCE)
    whole = attacked({"dense_8": DENSE, "A_8": ({"of": "A"}, FIVE)})
    whole = replace(whole, bitflips=whole.bitflips | {"A_8": gone})
    found = only(flips_finding(whole))
    assert found.figures["words"] == {"A_8/dense_8": "nothing concluded, at chance before any flip"}
    assert found.figures["p"]["A_8/dense_8"] < 0.01


def test_clustering_is_named() -> None:
    entries = {"dense_8": DENSE, "clustered_8": ({"of": "dense", "base": "clustered"}, MORE)}
    found = only(flips_finding(attacked(entries)))
    assert found.title.endswith("; clustered (clustered_8): more")


def test_binary_networks_have_one_bit() -> None:
    entries = {"dense_1": ({"of": "dense", "bits": 1, "scale": "channel"}, FIVE)}
    whole = attacked(entries)
    assert place_table(whole).iloc[0]["highest bit %"] == "100.0"
    assert png(places_figure(whole)) and png(accuracy_figure(whole))
    assert "1 bit a weight" in only(flips_finding(whole)).text


def test_without_entries_there_is_nothing_of_it() -> None:
    whole = study(params=settings(bitflip={}))
    assert not list(flips_finding(whole))
    assert accuracy_figure(whole) is None and places_figure(whole) is None
    assert all(section.title != "Bits under attack" for section in sections(whole, frozenset()))
    assert "flips to chance" not in leaderboard(whole)
    assert flip_table(whole).empty and flip_curves(whole).empty and flip_numbers(whole).empty
    assert list(flip_curves(whole)) == ["model", "flips", "accuracy", "low", "high"]


def test_the_leaderboard_and_metrics_have_the_entry_of_most_bits() -> None:
    entries = {"dense_4": ({"of": "dense", "bits": 4}, MORE), "dense_8": DENSE}
    whole = attacked(entries)
    dense, a = whole.models[:2]
    assert whole.metrics(dense)["flips_to_chance"] == 14.0
    assert whole.metrics(dense)["flips_to_chance_low"] == 10.07
    assert whole.metrics(a)["flips_to_chance"] is None
    assert leaderboard(whole)["flips to chance"].tolist() == ["14.0 (10.1–17.9)", "–", "–"]


def test_figures_show_each_entry() -> None:
    entry = {"of": "dense", "bits": 4}
    whole = attacked({"dense_8": DENSE, "dense_4": (entry, (200, 210, 220, 230, 240))})
    chosen, random = accuracy_figure(whole).axes
    lines = {line.get_label(): line for line in chosen.lines}
    assert {"dense_8", "dense_4"} <= set(lines)
    assert lines["dense_8"].get_xdata().tolist() == list(range(19))
    assert lines["dense_8"].get_ydata()[0] == 90.0
    assert chosen.get_xscale() == "symlog" and random.get_xscale() == "linear"
    first, second, *_ = places_figure(whole).axes
    assert first.images[0].get_array().shape == (8, 3)
    assert second.images[0].get_array().shape == (4, 3)
    assert first.images[0].get_array()[7].tolist() == pytest.approx([100 / 14, 0, 1300 / 14])


def test_numbers_for_other_programs() -> None:
    entry = {"of": "dense", "variants": ["margin"]}
    whole = attacked({"dense_8": (entry, (10, 12, None))})
    table = flip_numbers(whole)
    assert table.search.tolist() == ["untargeted", "margin"]
    assert table.flips.isna().all() and (table.censored == 1).all() and (table.seeds == 3).all()
    assert (table.tried == round((10 + 12 + 30) / 3, 4)).all()
    curve = flip_curves(whole)
    assert set(curve.model) == {f"dense_8 {v}" for v in ("untargeted", "margin", "random")}
    last = curve[curve.model == "dense_8 untargeted"].iloc[-1]
    assert last.flips == 30 and last.accuracy == pytest.approx((0.9 + 1.8 * CHANCE) / 3, abs=1e-4)


def test_text_from_records_cannot_inject_markup() -> None:
    records = flipping(FIVE, variants=["margin"], level=0.1)
    records["layer"] = records.layer.replace("linear", "<script>|`x`")
    whole = study(params=settings(), bitflips={"dense_8": records})
    page = html(whole, {})
    assert "<script>|" not in page and "&lt;script&gt;" in page
    assert "\\|\\`x\\`" in report_markdown(whole, {})
