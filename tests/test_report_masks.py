"""Compression by masks in the report: tables, curves and GAP's claim from planted records."""

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure
from planted import (
    EXCHANGED,
    N,
    compressed,
    elsewhere,
    hears,
    model,
    only,
    planted,
    settings,
    study,
    swept_on,
)

from advprune.evaluate.statistics import Rate, mcnemar
from advprune.report.figures import figures, png, style
from advprune.report.findings import findings
from advprune.report.masks import (
    claims,
    curves,
    mask_table,
    quantized_table,
    variant_table,
)
from advprune.report.page import report_markdown, sections
from advprune.report.study import Model, Study
from advprune.report.tables import leaderboard
from advprune.report.text import with_interval

TUNED = {"epochs": 5, "lr": 0.02}
BRIEF = {"epochs": 1, "lr": 0.02}


def amount(compression: float, **more: Any) -> dict[str, Any]:
    """A setting with fine-tuning."""
    return {"compression": compression, "finetune": TUNED, **more}


def shown(hits: int) -> str:
    return with_interval(hits / N, *Rate(hits, N).interval)


def spelled(hits: int) -> str:
    return shown(hits).replace(" (", " % (")


def gap(
    carried: tuple[int, int] = (4, 4), clean: int = N, family: str = "GAP_layer", **more: Any
) -> Model:
    """A model with masks that keeps so many of the dense network's images, main and short."""
    kept = dict(zip(EXCHANGED, carried, strict=True)) | {"long": 4}
    more = {"setting": amount(4), "sparsity": 0.7} | more
    return model(family, clean=clean, carried=kept, **more)


def claim(
    carried: tuple[int, int],
    *controls: tuple[int, int, int],
    clean: int = N,
    white: int = 4,
) -> Study:
    """GAP beside controls: clean, and so many of the dense network's images, main and short.

    The first control is the model at the same setting, the others are points of its curve.
    """
    first, *others = controls
    over = [amount(2 * (order + 4)) for order in range(len(others))]
    tables = [compressed(order, 4, kept, at) for order, (at, *kept) in enumerate(others)]
    params = settings(
        masks={"random": amount(4), "GAP_layer": amount(4)},
        compression={"random": over} if over else {},
    )
    return study(
        gap(first[1:], first[0], "random"),
        gap(carried, clean, survivors=(white, 20, 4)),
        params=params,
        compressions={"random": tables} if over else {},
    )


# --- the claim -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("carried", "against", "words"),
    [
        # 8 images more and none fewer: p = 2 / 2^8 = 0.0078, 0.016 for two attacks
        ((12, 4), "better", "More than random pruning does"),
        ((12, 3), "better", "More than random pruning does"),
        # 7 more: p = 0.0156, 0.031 for two; 6 more: 0.031 alone, 0.062 as one of two
        ((11, 4), "better", "More than random pruning does"),
        ((10, 4), "same", "No more than random pruning does"),
        ((4, 4), "same", "No more than random pruning does"),
        ((4, 20), "better", "More than random pruning does"),
    ],
)
def test_the_claim_against_random_pruning(
    carried: tuple[int, int], against: str, words: str
) -> None:
    found = only(claims(claim(carried, (N, 4, 4))))
    assert found.figures["against_random"] == against
    question = "Does GAP_layer harden against images from its parent?"
    assert found.title == f"{question} {words}; attacked itself it keeps 10.0 %"


@pytest.mark.parametrize("carried", [(4, 12), (4, 4), (20, 4)])
def test_one_attack_by_which_it_is_worse_makes_it_worse(carried: tuple[int, int]) -> None:
    found = only(claims(claim(carried, (N, 12, 12))))
    assert found.figures["against_random"] == "worse"
    assert "parent? Less than random pruning does; attacked" in found.title


def test_a_network_at_chance_says_nothing() -> None:
    """10 of 40 right when clean: a network that always gives the same class keeps all of them."""
    found = only(claims(claim((10, 10), (10, 0, 0), clean=10)))
    assert found.figures["against_random"] == "void"
    assert "It is at chance when clean, so nothing is concluded" in found.title


def test_the_control_is_the_nearest_in_clean_accuracy() -> None:
    """GAP has 30 right when clean; random pruning at the same setting 40, at another one 31."""
    whole = claim((12, 12), (40, 20, 20), (31, 4, 4), (20, 30, 30), clean=30)
    found = only(claims(whole))
    assert found.figures["against_random"] == "better"
    assert "(compression 8, 5 epochs of fine-tuning; clean 77.5 %" in found.text
    assert "no difference shown): it keeps " + spelled(4) in found.text
    # 31 against 30: one image
    assert found.figures["clean_p"] == 1.0
    below = only(claims(claim((12, 12), (20, 4, 4), (40, 30, 30), clean=29)))
    assert "(compression 4, 5 epochs of fine-tuning; clean 50.0 %" in below.text


def test_of_controls_as_near_the_one_at_the_same_setting_is_taken() -> None:
    """Both are two images away: one below, from the curve, and one above, the model itself."""
    found = only(claims(claim((12, 12), (32, 12, 12), (28, 0, 0), clean=30)))
    assert "(compression 4, 5 epochs of fine-tuning; clean 80.0 %" in found.text
    assert found.figures["against_random"] == "same"
    swapped = claim((12, 12), (36, 0, 0), (32, 12, 12), (28, 0, 0), clean=30)
    swapped.params.compression["random"][1] = amount(4)  # the point further down its curve
    found = only(claims(swapped))
    assert "(compression 4, 5 epochs of fine-tuning; clean 70.0 %" in found.text


def test_a_control_that_differs_when_clean_is_said_to() -> None:
    found = only(claims(claim((12, 12), (20, 4, 4), clean=30)))
    assert "clean 50.0 % (35.2–64.8), which differs): it keeps" in found.text
    assert found.figures["clean_p"] == pytest.approx(2 / 2**10)


def test_the_words_of_the_claim_by_hand() -> None:
    whole = claim((16, 12), (N, 4, 6), white=2)
    found = only(claims(whole))
    first, second = found.text.split("\n\n")[:2]
    assert first.startswith(
        f"GAP_layer (compression 4, 5 epochs of fine-tuning; clean {spelled(40)}) keeps, of n = 40 "
        f"images crafted on its uncompressed parent at eps 48/255, {spelled(16)} under main and "
        f"{spelled(12)} under short; the parent keeps {spelled(4)} of those of main. Attacked "
        f"itself, GAP_layer keeps {spelled(2)}."
    )
    # 12 more under main: p = 2 / 2^12 = 0.0005; 6 more under short: p = 2 / 2^6 = 0.031
    assert first.endswith(
        "The control is random pruning, at the setting nearest in clean accuracy (compression 4, "
        f"5 epochs of fine-tuning; clean {spelled(40)}, no difference shown): it keeps "
        f"{spelled(4)} under main (p < 0.001) and {spelled(6)} under short (p = 0.03)."
    )
    # all sources: 16 of dense's main, 12 of its short, and the same of random's main
    assert "networks of their own" not in second
    assert second == (
        f"All sources together, per image the worst, leave {spelled(12)}, where dense's alone "
        f"leave {spelled(12)} (p = 1.00): no difference is shown."
    )
    assert found.figures["white_box"] == 0.05 and found.figures["all_sources"] == 0.3
    assert found.figures["p"] == pytest.approx({"main": 2 / 2**12, "short": 2 / 2**6})
    assert not found.folded


def test_other_sources_that_do_more_harm_than_the_parent_are_told() -> None:
    own = ("lab", "GAP_layer_substitute")
    surrogates = {(n, attack): elsewhere(attack, planted(0)) for n in own for attack in EXCHANGED}
    first = hears(
        gap((16, 14)),
        {
            ("lab", "main"): elsewhere("main", planted(20)),
            ("lab", "short"): elsewhere("short", planted(10)),
            (own[1], "main"): elsewhere("main", ~planted(4)),
            (own[1], "short"): elsewhere("short", planted(N)),
            ("random-standard", "main"): elsewhere("main", planted(30)),
        },
    )
    dense = hears(model("dense"), {("lab", "main"): elsewhere("main", planted(24))})
    params = settings(
        masks={"random": 4, "GAP_layer": amount(4)},
        surrogates={"lab": {}},
        substitutes={"GAP_layer": {}},
    )
    control = gap(family="random", setting=4)
    whole = study(dense, control, first, params=params, surrogates=surrogates)
    found = only(claims(whole))
    told = found.text.split("\n\n")[1]
    assert told.startswith(
        "Of the images that an attacker makes on networks of their own, by the worse of main and "
        "short, it keeps 25.0 % of lab's and 90.0 % of GAP_layer_substitute's. "
    )
    # 16 against 24 images: p = 2 / 2^8; the substitute has learned from GAP and is no stranger
    assert (
        "How much being another network does by itself: under main GAP_layer keeps 40.0 % of its "
        "parent's images; the parent, which nobody hardened, keeps 60.0 % of lab's (p = 0.0078). "
    ) in told
    # dense leaves images 0 to 13; lab of these 0 to 9; the substitute of these 4 to 9
    assert mcnemar(planted(10) & ~planted(4), planted(14)) == 2 / 2**8
    assert told.endswith(
        f"leave {spelled(6)}, where dense's alone leave {spelled(14)} (p = 0.0078): that is less "
        "than its parent's images leave."
    )
    assert found.figures["all_sources"] == 6 / N
    assert "(compression 4, not fine-tuned; clean" in found.text  # a bare number as a setting


def test_each_of_gaps_models_has_its_claim_and_others_have_none() -> None:
    names = ("random", "magnitude_global", "GAP_global", "GAP_layer")
    params = settings(masks={name: amount(4) for name in names})
    whole = study(*(gap(family=name) for name in names), params=params)
    titles = [finding.title.split()[1] for finding in claims(whole)]
    assert titles == ["GAP_global", "GAP_layer"]
    among = [one for one in findings(whole) if "harden against" in one.title]
    assert [one.title.split()[1] for one in among] == titles and not any(f.folded for f in among)


def test_without_random_pruning_or_without_gap_there_is_no_claim() -> None:
    params = settings(masks={"GAP_layer": amount(4)})
    assert not list(claims(study(gap(), params=params)))
    params = settings(masks={"random": amount(4)})
    assert not list(claims(study(gap(family="random"), params=params)))
    assert not list(claims(study()))


def test_a_claim_can_rest_on_the_curves_alone() -> None:
    """No model is kept: nothing is said of other sources, which no point of a curve is tried on."""
    over = {"random": [amount(4)], "GAP_layer": [amount(4), amount(8)]}
    tables = {
        "random": [compressed(0, 4, (4, 4))],
        "GAP_layer": [compressed(0, 4, (20, 4)), compressed(1, 4, (4, 4))],
    }
    whole = study(params=settings(compression=over), compressions=tables)
    found = only(claims(whole))
    assert found.figures["against_random"] == "better"
    assert found.figures["all_sources"] is None and "All sources" not in found.text
    assert "GAP_layer (compression 4, 5 epochs" in found.text


@pytest.mark.parametrize(
    ("clean", "against", "said"),
    [
        # at chance (10 of 40), or far from every control: the next point is told
        ((10, N, N), "same", "compression 8"),
        ((20, N, N), "same", "compression 8"),
        # a variant is no point of the same curve, and without another the first stays
        ((20, 20, N), "unmatched", "compression 4"),
    ],
)
def test_a_claim_is_about_a_point_that_has_a_control(
    clean: tuple[int, ...], against: str, said: str
) -> None:
    over = {"random": [amount(4)], "GAP_layer": [amount(4), amount(8), amount(4, published=True)]}
    points = [compressed(order, 4, (4, 4), at) for order, at in enumerate(clean)]
    tables = {"random": [compressed(0, 4, (4, 4))], "GAP_layer": points}
    found = only(claims(study(params=settings(compression=over), compressions=tables)))
    assert found.figures["against_random"] == against
    assert f"GAP_layer ({said}, " in found.text


@pytest.mark.parametrize(("inert", "said"), [(0.5, True), (0.02, False), (None, False)])
def test_parameters_that_meet_nothing_but_padding_are_told(inert: float | None, said: bool) -> None:
    whole = claim((4, 4), (N, 4, 4))
    whole.dense("standard").card["inert"] = inert
    found = only(claims(whole))
    assert ("50.0 % of the dense network's parameters" in found.text) == said


# --- tables --------------------------------------------------------------------------------------


def full() -> Study:
    """Two schemes, each a model and points of a curve, with variants of GAP among them."""
    over = {
        "random": [amount(2), {"compression": 4}],
        "GAP_layer": [
            amount(16),
            amount(2),
            {"compression": 4, "finetune": BRIEF},
            amount(4, score="absolute", remove="smallest"),
            amount(4, published=True),
        ],
    }
    tables = {
        "random": [compressed(0, 8, (20, 16), sparsity=0.5), compressed(1, 6, (18, 14), 36)],
        "GAP_layer": [
            compressed(0, 2, (28, 24), 32, sparsity=0.95),
            compressed(1, 10, (22, 18), 38, sparsity=0.5),
            compressed(2, 1, (2, 3), 34),
            compressed(3, 12, (26, 20), 30, sparsity=0.75),
            compressed(4, 14, (30, 22), 28, sparsity=0.75),
        ],
    }
    params = settings(masks={"random": 4, "GAP_layer": amount(4)}, compression=over)
    models = [
        gap((10, 12), 39, "random", setting=4, survivors=(5, 20, 4)),
        gap((24, 19), 35, survivors=(6, 20, 4)),
    ]
    return study(*models, params=params, compressions=tables)


def test_models_stand_beside_their_curves_on_the_images_of_the_curves() -> None:
    """Of the dense network's images random keeps 10, GAP_layer 24, the first 16 among them."""
    whole = full()
    over, swept = (
        {key: table[table["index"] < 16] for key, table in tables.items()}
        for tables in (whole.compressions, whole.sweeps)
    )
    few = replace(whole, compressions=over, sweeps=swept, params=swept_on(16, whole.params))
    table = mask_table(few)
    carried = table["dense → model, main %"].str.split().str[0].tolist()
    assert carried == ["62.5", "100.0", "100.0", "100.0", "100.0", "100.0", "12.5"]
    assert "of n = 16 images" in only(claims(few)).text
    (section,) = [one for one in sections(few, frozenset()) if one.title == "Compression by masks"]
    assert "n = 16 test images" in section.text.replace("\u00a0", " ")
    assert quantized_table(few).equals(quantized_table(whole))


def test_the_table_of_schemes_has_every_plain_setting_with_its_numbers() -> None:
    table = mask_table(full())
    assert table.columns.tolist() == [
        *("family", "setting", "sparsity %", "clean %", "white-box %"),
        *("dense → model, main %", "dense → model, short %"),
    ]
    tuned, other = "5 epochs of fine-tuning", "not fine-tuned"
    expected = [
        ("random", f"compression 4, {other}", "70.0", 39, 5, 10, 12),
        ("random", f"compression 2, {tuned}", "50.0", 40, 8, 20, 16),
        ("random", f"compression 4, {other}", "50.0", 36, 6, 18, 14),
        ("GAP_layer", f"compression 4, {tuned}", "70.0", 35, 6, 24, 19),
        ("GAP_layer", f"compression 16, {tuned}", "95.0", 32, 2, 28, 24),
        ("GAP_layer", f"compression 2, {tuned}", "50.0", 38, 10, 22, 18),
        ("GAP_layer", "compression 4, 1 epoch of fine-tuning", "50.0", 34, 1, 2, 3),
    ]
    assert table.to_numpy().tolist() == [
        [*words, *(shown(hits) for hits in numbers)]
        for *words, a, b, c, d in expected
        for numbers in [(a, b, c, d)]
    ]


def test_the_table_of_variants_has_them_beside_the_scheme_itself() -> None:
    table = variant_table(full())
    tuned = "5 epochs of fine-tuning"
    assert table.family.tolist() == ["GAP_layer"] * 3
    assert table.setting.tolist() == [
        f"compression 4, {tuned}",
        f"compression 4, score absolute, remove smallest, {tuned}",
        f"compression 4, published True, {tuned}",
    ]
    assert table["clean %"].tolist() == [shown(35), shown(30), shown(28)]
    assert table["white-box %"].tolist() == [shown(6), shown(12), shown(14)]
    assert table["dense → model, main %"].tolist() == [shown(24), shown(26), shown(30)]
    assert table["dense → model, short %"].tolist() == [shown(19), shown(20), shown(22)]


def test_schemes_without_variants_have_no_table_of_them() -> None:
    whole = claim((4, 4), (N, 4, 4), (30, 4, 4))
    assert variant_table(whole).empty and len(mask_table(whole)) == 3


def test_settings_by_sparsity_and_without_a_value_are_plain() -> None:
    params = settings(masks={"GAP_layer": 4})
    setting = {"compression": None, "sparsity": 0.9, "finetune": None}
    table = mask_table(study(gap(setting=setting), params=params))
    assert table.setting.tolist() == ["sparsity 0.9, not fine-tuned"]


def quantized_study() -> Study:
    """int8, a rounded copy of GAP's model and a trained one of the dense network."""
    trained = {"of": "dense", "bits": 4, "training": TUNED}
    params = settings(
        masks={"GAP_layer": amount(4)},
        quantized={"GAP_int8": {"of": "GAP_layer"}, "qat4": trained},
    )
    models = [
        model("dense", (3, 20, 4)),
        model("int8", (7, 20, 4), carried=9, bits=8, twin_agreement=0.98765),
        gap(survivors=(13, 20, 4)),
        hears(
            model("GAP_int8", (15, 20, 4), clean=33, carried=1, bits=8, twin_agreement=1.0),
            {("GAP_layer-standard", "main"): elsewhere("main", planted(17), 33)},
        ),
        model("qat4", (19, 20, 4), carried=21, bits=4, twin_agreement=0.9),
    ]
    return study(*models, params=params)


def test_the_table_of_quantized_models_tells_three_attacks_apart() -> None:
    table = quantized_table(quantized_study()).set_index("family")
    assert table.index.tolist() == ["int8", "GAP_int8", "qat4"]
    of = ["bits", "of", "made by", "agrees with twin %"]
    assert table.loc["int8", of].tolist() == ["8", "dense", "rounding", "98.77"]
    assert table.loc["GAP_int8", of].tolist() == ["8", "GAP_layer", "rounding", "100.00"]
    assert table.loc["qat4", of].tolist() == ["4", "dense", "training", "90.00"]
    numbers = [
        "clean %",
        "attacked through its twin %",
        "by its float copy %",
        "float copy, white-box %",
    ]
    assert table.columns.tolist()[-4:] == numbers
    assert table.loc["int8", numbers].tolist() == [shown(k) for k in (40, 7, 9, 3)]
    assert table.loc["GAP_int8", numbers].tolist() == [shown(k) for k in (33, 15, 17, 13)]
    assert table.loc["qat4", numbers].tolist() == [shown(k) for k in (40, 19, 21, 3)]


def test_models_are_grouped_for_figures_and_the_groups_named() -> None:
    whole = quantized_study()
    assert {name: [m.family for m in group] for name, group in whole.groups.items()} == {
        "standard": ["dense", "int8"],
        "masks": ["dense", "GAP_layer"],
        "quantized": ["dense", "int8", "GAP_int8", "qat4"],
    }
    assert whole.each_base("sweep") == [("standard", "sweep")]
    assert whole.each_group("steps") == [
        ("standard", "steps-standard"),
        ("masks", "steps-masks"),
        ("quantized", "steps-quantized"),
    ]
    made = figures(whole)
    lines = {
        name: [line.get_label() for line in made[f"security-{name}"].axes[0].get_lines()]
        for name in whole.groups
    }
    assert lines["masks"] == ["dense", "GAP_layer"]
    assert lines["quantized"] == ["dense", "int8", "GAP_int8", "qat4"]
    assert leaderboard(whole).family.tolist() == [m.family for m in whole.models]


# --- the curves ----------------------------------------------------------------------------------


def lines_of(figure: Figure) -> list[dict[str, tuple[list[float], list[float]]]]:
    """Per panel, each line's label with its points."""
    return [
        {
            line.get_label(): (list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()])
            for line in ax.get_lines()
        }
        for ax in figure.axes
    ]


def test_curves_are_drawn_over_compression_as_the_models_are_fine_tuned() -> None:
    whole = full()
    figure = curves(whole)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["clean", "white-box, main", "on the dense network's images, main"]
    clean, white, carried = lines_of(figure)
    # GAP's points are sorted; the one that is fine-tuned for one epoch and variants are left out
    across = [2.0, 4.0, 16.0]
    assert clean["GAP_layer"] == (across, [95.0, 87.5, 80.0])
    assert white["GAP_layer"] == (across, [25.0, 15.0, 5.0])
    assert carried["GAP_layer"] == (across, [55.0, 60.0, 70.0])
    # random's model is not fine-tuned, so its line has the other point that is not
    assert clean["random"] == ([4.0, 4.0], [97.5, 90.0])
    assert [set(panel) for panel in (clean, white, carried)] == [{"random", "GAP_layer"}] * 3
    ax = figure.axes[-1]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "compression"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "4", "16"]
    for line in figure.axes[0].get_lines():
        look = style(whole, str(line.get_label()))
        assert (line.get_color(), line.get_marker()) == (look["color"], look["marker"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "GAP_layer"]
    assert len(png(figure)) > 1000


def test_a_scheme_of_one_setting_has_no_curve() -> None:
    whole = claim((4, 4), (N, 4, 4), (30, 4, 4))
    (labels, *_) = lines_of(curves(whole))
    assert set(labels) == {"random"}
    assert curves(claim((4, 4), (N, 4, 4))) is None


# --- what a study has none of --------------------------------------------------------------------


def named(whole: Study) -> list[str]:
    return [section.title for section in sections(whole, {"compression"})]


def test_without_masks_and_quantized_models_there_is_nothing_of_them() -> None:
    whole = study()
    assert mask_table(whole).empty and variant_table(whole).empty
    assert quantized_table(whole).empty and curves(whole) is None
    assert whole.groups.keys() == {"standard"}
    assert whole.each_group("steps") == [("standard", "steps")]
    assert "compression" not in figures(whole)
    text = report_markdown(whole, {})
    for words in ("Compression by masks", "Quantized models", "harden against"):
        assert words not in text


def test_with_them_their_sections_stand_in_the_report() -> None:
    assert "Compression by masks" in named(full()) and "Quantized models" not in named(full())
    whole = quantized_study()
    assert "Quantized models" in named(whole) and "Compression by masks" in named(whole)
    text = report_markdown(full(), {"compression": b""})
    assert "figures/compression.png" in text and "Variants of GAP" in text
