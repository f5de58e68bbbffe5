"""Transfer in the report: every number of the matrix and the scenarios from planted records."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from planted import (
    EXCHANGED,
    N,
    elsewhere,
    exchange,
    hears,
    model,
    planted,
    rows,
    searched,
    settings,
    study,
)

from advprune.core.params import Params
from advprune.evaluate.statistics import Rate
from advprune.report.figures import figures, png
from advprune.report.page import sections
from advprune.report.study import Study
from advprune.report.text import with_interval
from advprune.report.transfers import (
    everything,
    exchanged,
    heat_map,
    least,
    matrix,
    own_networks,
    passes,
    scenario_table,
    sources,
    stands,
    transfer_table,
)
from advprune.report.write import curves

OWN = ("lab", "A_substitute")
MORE = {"surrogates": {"lab": {}}, "substitutes": {"A": {}}}
MANY = {**MORE, "masks": {"M": 4}, "quantized": {"Q": {"of": "M"}}}


def scattered(seed: int, share: float = 0.5) -> np.ndarray:
    """Some of N images, here and there."""
    return np.random.default_rng(seed).random(N) < share


def pairs(target: str, names: list[str]) -> list[tuple[str, str]]:
    """What a model of the first base is tried on."""
    found = [(name, "main") for name in names if name != target]
    if target != "dense-standard":
        found += [("dense-standard", attack) for attack in ("short", "long")]
    return found + [(name, attack) for name in OWN for attack in EXCHANGED]


def tangled(params: Params | None = None, *families: str, share: float = 0.5) -> Study:
    """A study in which every source leaves every target other images, and clean ones differ."""
    names = ["dense", "int8", *(families or ("A", "B"))]
    models = [model(family, clean=N - 3 * index) for index, family in enumerate(names)]
    everyone, seed = [one.name for one in models], 0
    for index, target in enumerate(models):
        planted_here, clean = {}, N - 3 * index
        for source, attack in pairs(target.name, everyone):
            seed += 1
            planted_here[source, attack] = elsewhere(attack, scattered(seed, share), clean)
        mine = pd.concat(
            [
                rows(attack, scattered(500 + 2 * index + at), clean=clean)
                for at, attack in enumerate(EXCHANGED)
            ]
        )
        rest = target.records[~target.records.attack.isin(EXCHANGED)]
        records = pd.concat([mine, rest], ignore_index=True)
        models[index] = replace(target, records=records, received=planted_here)
    surrogates = {
        (name, attack): elsewhere(attack, scattered(900 + at), N - 10)
        for at, (name, attack) in enumerate((name, attack) for name in OWN for attack in EXCHANGED)
    }
    return study(*models, params=params or settings(**MORE), surrogates=surrogates)


def is_right(row: Any, side: str) -> bool:
    return bool(getattr(row, f"{side}_pred") == row.label)


def shown(hits: int, n: int) -> str:
    return with_interval(hits / n, *Rate(hits, n).interval)


# --- the matrix ----------------------------------------------------------------------------------


def test_sources_are_the_models_and_then_the_attackers_own_networks() -> None:
    whole = tangled()
    names = ["dense-standard", "int8-standard", "A-standard", "B-standard"]
    assert sources(whole) == [*names, *OWN]
    assert own_networks(whole) == list(OWN) and own_networks(study()) == []


def test_the_main_attack_comes_first_wherever_it_is_declared() -> None:
    whole = study()
    assert exchanged(whole) == ["main", "short"]
    params = whole.params
    suite = params.active().suite.model_copy(update={"transfer": ["short", "long", "main"]})
    profile = params.active().model_copy(update={"suite": suite})
    turned = replace(whole, params=params.model_copy(update={"profiles": {"digits": profile}}))
    assert exchanged(turned) == ["main", "short", "long"]


def test_the_matrix_by_brute_force() -> None:
    whole = tangled()
    table = matrix(whole)
    assert table.index.tolist() == sources(whole)
    assert table.columns.tolist() == [one.name for one in whole.models]
    for target in whole.models:
        for source in sources(whole):
            if source == target.name:  # white-box
                told = target.records[target.records.attack == "main"]
            else:
                told = target.received[source, "main"]
            hits = sum(is_right(row, "adv") for row in told.itertuples())
            assert table.loc[source, target.name] == hits / N


def test_the_table_of_the_matrix_has_all_that_was_exchanged_by_brute_force() -> None:
    whole = tangled()
    table = transfer_table(whole)
    assert table.columns.tolist() == [
        *("attack", "source", "target", "n"),
        *("accuracy", "accuracy_low", "accuracy_high"),
        *("success", "success_low", "success_high"),
    ]
    names = [one.name for one in whole.models]
    triples = list(zip(table.source, table.attack, table.target, strict=True))
    expected = [
        (*pair, target) for target in names for pair in pairs(target, names) if pair[1] != "long"
    ]
    assert sorted(triples) == sorted(expected)  # each once; long is of the published table alone
    for row in table.itertuples():
        (target,) = [one for one in whole.models if one.name == row.target]
        told = list(target.received[row.source, row.attack].itertuples())
        if row.source in OWN:
            theirs = whole.surrogates[row.source, row.attack]
        else:
            (crafted_on,) = [one for one in whole.models if one.name == row.source]
            theirs = crafted_on.records[crafted_on.records.attack == row.attack]
        both = [
            mine
            for mine, other in zip(told, theirs.itertuples(), strict=True)
            if is_right(mine, "clean") and is_right(other, "clean")
        ]
        fooled = sum(not is_right(mine, "adv") for mine in both)
        assert row.n == N
        assert row.accuracy == round(sum(is_right(mine, "adv") for mine in told) / N, 4)
        assert row.success == round(fooled / len(both), 4)
        assert row.success_low < row.success < row.success_high
    assert curves(whole)["transfer"].equals(table)


def test_accuracy_and_success_by_hand() -> None:
    """The target has 20 right when clean, the source 30; images 10 to 39 survive the attack."""
    target = hears(
        model("A", clean=20), {("dense-standard", "main"): elsewhere("main", ~planted(10), 20)}
    )
    table = transfer_table(study(model("dense", clean=30), target))
    row = table[(table.attack == "main") & (table.target == "A-standard")].iloc[0]
    assert (row.source, row.n, row.accuracy) == ("dense-standard", N, 0.75)
    assert row.success == 0.5  # of images 0 to 19, which both had right, 0 to 9 are fooled


def test_success_over_no_images_is_empty_and_not_zero() -> None:
    target = model("A", clean=0)
    table = transfer_table(study(target))
    row = table[(table.source == "dense-standard") & (table.target == "A-standard")].iloc[0]
    assert pd.isna(row.success) and row.accuracy == 0.1


# --- scenarios -----------------------------------------------------------------------------------


def test_the_scenarios_by_hand() -> None:
    """Images in blocks of four, so that 10 % is one block."""
    models = [
        model("dense"),
        model("int8", (8, 20, 4), carried=12, bits=8),
        model("A", (4, 20, 4), carried={"main": 20, "short": 16, "long": 4}),
        model("B", (12, 20, 4), carried=24),
    ]
    dense, int8, first, second = models
    dense = hears(
        dense,
        {
            (f"{f}-standard", "main"): elsewhere("main", planted(k))
            for f, k in (("A", 28), ("B", 2))
        },
    )
    first = hears(
        first,
        {
            ("int8-standard", "main"): elsewhere("main", planted(1)),
            ("B-standard", "main"): elsewhere("main", planted(30)),
            ("lab", "main"): elsewhere("main", planted(36)),
            ("lab", "short"): elsewhere("short", planted(32)),
            ("A_substitute", "main"): elsewhere("main", planted(10)),
            ("A_substitute", "short"): elsewhere("short", ~planted(2)),
        },
    )
    int8 = hears(
        int8,
        {
            ("A-standard", "main"): elsewhere("main", planted(8)),
            ("B-standard", "main"): elsewhere("main", planted(20)),
        },
    )
    surrogates = {(n, a): elsewhere(a, planted(0)) for n in OWN for a in EXCHANGED}
    whole = study(dense, int8, first, second, params=settings(**MORE), surrogates=surrogates)
    table = scenario_table(whole, "standard")
    assert table.columns.tolist() == [
        "family",
        "white-box %",
        "dense → model %",
        "its success %",
        "dense → model, short %",
        "model → dense %",
        "compressed → model %",
        "lab → model %",
        "A_substitute → model %",
        "all sources %",
    ]
    assert table.family.tolist() == ["int8", "A", "B"]
    row = table.set_index("family").loc["A"]
    assert row["white-box %"] == shown(4, N)
    assert row["dense → model %"] == shown(20, N) and row["its success %"] == shown(20, N)
    assert row["dense → model, short %"] == shown(16, N)
    assert row["model → dense %"] == shown(28, N)
    assert row["compressed → model %"] == "75.0"  # B alone: neither int8 nor itself
    assert row["lab → model %"] == "80.0"  # by the worse of its two attacks
    assert row["A_substitute → model %"] == "25.0"
    assert row["all sources %"] == shown(0, N)  # image 0 falls to the substitute, the rest to int8
    row = table.set_index("family").loc["int8"]
    assert row["compressed → model %"] == "35.0"  # the mean of A's 20 % and B's 50 %
    alone = scenario_table(study(model("A")), "standard")
    assert alone["compressed → model %"].tolist() == ["–"]
    assert "lab → model %" not in alone


def test_all_sources_is_the_worst_of_each_image_by_brute_force() -> None:
    whole = tangled(settings(**MANY), "A", "M", "Q", share=0.9)
    for target in whole.models:
        left = [
            all(
                is_right(told.iloc[image], "adv")
                for (_, attack), told in target.received.items()
                if attack in EXCHANGED  # long is no attack whose images are exchanged
            )
            for image in range(N)
        ]
        assert stands(whole, target).tolist() == left
        assert everything(whole, target) == Rate(sum(left), N) and 0 < sum(left) < N


def test_one_source_that_leaves_little_is_found_wherever_it_stands() -> None:
    places = [("dense-standard", a) for a in EXCHANGED] + [("B-standard", "main")]
    places += [("lab", attack) for attack in EXCHANGED]
    harmless = {place: elsewhere(place[1], planted(N)) for place in places}
    surrogates = {("lab", attack): elsewhere(attack, planted(0)) for attack in EXCHANGED}
    params = settings(surrogates={"lab": {}})
    for place in places:
        first = hears(model("A"), harmless | {place: elsewhere(place[1], planted(3))})
        whole = study(first, model("B"), params=params, surrogates=surrogates)
        assert everything(whole, whole.model("A-standard")) == Rate(3, N), place


def test_the_least_of_a_source_is_under_the_attack_that_does_most_harm() -> None:
    whole = study(model("A", carried={"main": 9, "short": 3, "long": 0}))
    assert least(whole, whole.model("A-standard"), "dense-standard") == Rate(3, N)


# --- costs ---------------------------------------------------------------------------------------


def test_forward_passes_by_hand() -> None:
    """Each scores 40 clean images, and as many a source and attack; 20 times where it is random.

    dense: main of three models and two attacks of lab. The others: main of two models, three
    attacks of dense and two of lab.
    """
    random = model("B", suite=[searched(4), rows("probe_frozen", planted(4))])
    surrogates = {("lab", attack): elsewhere(attack, planted(0)) for attack in EXCHANGED}
    params = settings(surrogates={"lab": {}})
    whole = study(model("int8"), model("A"), random, params=params, surrogates=surrogates)
    assert whole.params.attack.score_draws == 20
    by_hand = 40 * ((1 + 3 + 2) + 2 * (1 + 2 + 3 + 2) + 20 * (1 + 2 + 3 + 2))
    assert passes(whole) == by_hand == 7280
    (section,) = [one for one in sections(whole, set()) if one.title == "Transfer"]
    assert "7,280 forward passes" in section.after


# --- the heat map --------------------------------------------------------------------------------


def written(ax: Axes) -> dict[tuple[int, int], tuple[str, str]]:
    """What is written in each cell (row, column), and its colour."""
    found = {}
    for text in ax.texts:
        column, row = text.get_position()
        found[int(row), int(column)] = text.get_text(), text.get_color()
    return found


def test_the_heat_map_shows_the_matrix_in_its_order() -> None:
    whole = tangled()
    ax = heat_map(whole).axes[0]
    cells = 100 * matrix(whole).to_numpy()
    (picture,) = ax.get_images()
    assert np.array_equal(picture.get_array(), cells) and picture.get_clim() == (0, 100)
    cell = written(ax)
    assert len(cell) == cells.size
    for (row, column), value in np.ndenumerate(cells):
        ink = "white" if value < 55 else "black"
        assert cell[row, column] == (f"{value:.0f}", ink)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == sources(whole)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [m.name for m in whole.models]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target", "source")
    assert ax.get_ylim() == (5.5, -0.5)  # the first source on top, all of the last one shown


def test_the_heat_map_parts_kinds_of_families_and_the_attackers_own() -> None:
    whole = tangled(settings(**MANY), "A", "M", "Q")
    lines = [(line.get_xdata(), line.get_ydata()) for line in heat_map(whole).axes[0].get_lines()]
    across = [ys[0] for xs, ys in lines if list(xs) == [0, 1]]
    down = [xs[0] for xs, ys in lines if list(ys) == [0, 1]]
    # dense, int8, A | M | Q | lab, A_substitute
    assert across == [2.5, 3.5, 4.5] and down == [2.5, 3.5]


def test_the_heat_map_parts_bases() -> None:
    params = settings(bases=["standard", "robust"], sweep={})
    models = [model(f, base=base) for base in params.bases for f in ("dense", "A")]
    whole = replace(study(params=params), models=exchange(models), adv_images={})
    ax = heat_map(whole).axes[0]
    names = ["dense-standard", "A-standard", "dense-robust", "A-robust"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert [line.get_xdata()[0] for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]] == [
        1.5
    ]
    other = scenario_table(whole, "robust")
    assert other.family.tolist() == ["A"] and other["compressed → model %"].tolist() == ["–"]


def test_a_single_model_has_no_heat_map_and_a_pair_has_one_that_can_be_drawn() -> None:
    whole = study(model("dense"), params=settings(sweep={}))
    assert heat_map(whole) is None and "transfer" not in figures(whole)
    assert len(png(heat_map(study(model("A"))))) > 1000


def test_without_networks_of_the_attacker_there_is_no_column_of_them() -> None:
    whole = study()
    assert set(transfer_table(whole).source) == {m.name for m in whole.models}
    assert not [c for c in scenario_table(whole, "standard") if c.startswith("lab")]
    assert written(heat_map(whole).axes[0]).keys() == {(r, c) for r in range(3) for c in range(3)}
