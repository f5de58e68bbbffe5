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

from advprune.params import Params, load, parse
from advprune.report import tables
from advprune.report.anatomy import clamped_spread, standing, where_it_acts
from advprune.evaluate.compare import compare, holm
from advprune.report.figures import figures, png, style
from advprune.report.finding import Finding
from advprune.report.findings import findings
from advprune.report.page import html, report_markdown
from advprune.report.robustness import answer, schedules
from advprune.report.study import Model, Study
from advprune.report.text import budget, markdown, setting_text
from advprune.report.trust import quantized, sanity
from advprune.report.write import curves, write_metrics, write_report

ROOT = Path(__file__).resolve().parent.parent
N = 40
ATTACKS = {"main": (12 / 255, 10), "short": (1 / 255, 10), "long": (1 / 255, 40)}
LAYERS = ["normalize", "conv1", "bn1", "act1"]
LAYERS += [f"layer{s}.{b}.{x}" for s in (1, 2) for b in (0, 1) for x in ("conv1", "bn1", "act1")]
LAYERS += ["pool", "linear"]


def planted(first: int, of: int = N) -> np.ndarray:
    """Right on the first so many images."""
    return np.arange(of) < first


def rows(
    attack: str, right: np.ndarray, steps: int = 10, eps: float = 48 / 255, clean: int = N
) -> pd.DataFrame:
    """Records in which `right` says what survives and the first `clean` images start right."""
    label, n = np.arange(len(right)) % 4, len(right)
    sides = {"clean": planted(clean, n), "adv": right}
    table = {"index": np.arange(n), "label": label, "attack": attack, "seed": 0}
    table |= {"eps": eps, "step": 0.01, "steps": steps}
    for side, hit in sides.items():
        table[f"{side}_pred"] = np.where(hit, label, (label + 1) % 4)
        table |= {f"{side}_confidence": 0.75, f"{side}_nll": 0.5, f"{side}_brier": 0.25}
    return pd.DataFrame(table)


def layer_table(peaks: dict[str, float] | None = None, spread: float = 0.9) -> pd.DataFrame:
    """A network in which the named layers stand out, with sigma `spread` times the clean one."""
    moved = [(peaks or {}).get(name, 0.1 + 0.001 * i) for i, name in enumerate(LAYERS)]
    kinds = ["Normalize" if name == "normalize" else "Conv2d" for name in LAYERS]
    return pd.DataFrame(
        {
            "depth": range(len(LAYERS)),
            "layer": LAYERS,
            "kind": kinds,
            "relative_difference": moved,
            "distance": moved,
            "clean_sigma": 1.0,
            "adv_sigma": spread,
        }
    )


def model(
    family: str,
    survivors: Sequence[int] = (4, 20, 4),
    *,
    base: str = "standard",
    carried: int = 4,
    curve: Sequence[int] = (40, 20, 4, 0),
    steps: Sequence[int] = (20, 4, 4),
    setting: Any = 1,
    **more: Any,
) -> Model:
    """A model that keeps so many of N images under main, short and long, and over both curves."""
    tables = [
        rows(name, planted(kept), ATTACKS[name][1])
        for name, kept in zip(ATTACKS, survivors, strict=True)
    ]
    budgets = (0, 16 / 255, 48 / 255, 96 / 255)
    tables += [rows("curve_eps", planted(k), eps=e) for e, k in zip(budgets, curve, strict=True)]
    tables += [rows("curve_steps", planted(k), s) for s, k in zip((1, 5, 50), steps, strict=True)]
    transfer = None
    if family != "dense":
        crossings = [
            rows(name, planted(carried)).assign(source=s, target=t)
            for name in ATTACKS
            for s, t in (("dense", family), (family, "dense"))
        ]
        transfer = pd.concat(crossings, ignore_index=True)
    histogram = {"low": -1.0, "high": 1.0, "before": [1, 9, 1], "after": [0, 11, 0]}
    card = {"setting": setting, "prune_ratio": 0.25, "sparsity": 0.2, "bits": 32, "parameters": 9}
    card |= {"sha256": family, "twin_agreement": None, "histogram": histogram}
    layers = more.pop("layers", layer_table())
    return Model(family, base, card | more, pd.concat(tables, ignore_index=True), layers, transfer)


def settings(**changes: Any) -> Params:
    """The settings of a planted study."""
    raw = load(ROOT / "params.yaml", "digits").model_dump()
    attacks = {
        name: {"eps": "48/255", "step": step, "steps": steps}
        for name, (step, steps) in ATTACKS.items()
    }
    curves_of = {"eps": [0, 16 / 255, 48 / 255, 96 / 255], "steps": [1, 5, 50]}
    raw["profiles"]["digits"] |= {"attacks": attacks, "curves": curves_of}
    raw["profiles"] = {"digits": raw["profiles"]["digits"]}
    raw |= {"attack": {"main": "main"}, "prune": {"A": 1, "B": 2}, "sweep": {"A": [1, 2]}}
    return parse(Params, raw | changes, "test")


def point(order: int, survivors: Sequence[int] = (4, 20, 4)) -> pd.DataFrame:
    tables = [
        rows(name, planted(kept), ATTACKS[name][1])
        for name, kept in zip(ATTACKS, survivors, strict=True)
    ]
    facts = {"order": order, "value": str(order + 1), "prune_ratio": 0.5, "sparsity": 0.5}
    return pd.concat(tables, ignore_index=True).assign(**facts)


def study(
    *models: Model, points: Sequence[pd.DataFrame] | None = None, params: Params | None = None
) -> Study:
    """A study of one base: a dense network first, then the given models."""
    chosen = list(models) or [model("A"), model("B")]
    if chosen[0].family != "dense":
        chosen = [model("dense"), *chosen]
    params = params or settings()
    points = [point(0), point(1)] if points is None else points
    sweeps = {(name, "standard"): pd.concat(points) for name in params.sweep}
    clean = np.full((N, 1, 8, 8), 100, np.uint8)
    adv = {one.name: clean + np.uint8(48) for one in chosen}
    return Study(params, chosen, sweeps, "planted", list("abcd"), clean, adv)


def only(found: Any) -> Finding:
    (finding,) = found
    return finding


# --- tables --------------------------------------------------------------------------------------


def test_leaderboard_numbers_by_hand() -> None:
    whole = study(model("dense", (20, 20, 4)), model("A", (4, 20, 4)), model("B", (17, 20, 4)))
    table = tables.leaderboard(whole).set_index("family")
    # 20 of 40, Wilson with z = 1.96: 0.5 +- 1.96 sqrt(0.25/40 + 1.96^2/(4 40^2)) / (1 + 1.96^2/40)
    assert table.loc["dense", "remnant % (white-box)"] == "50.0 (35.2–64.8)"
    assert table.loc["dense", "against dense"] == "–"
    # 16 images lost and none won: p = 2 / 2^16; 3 lost and none won: p = 2 / 2^3 = 0.25
    assert table.loc["A", "against dense"] == "▼ worse"
    assert table.loc["A", "p"] == "< 0.001"
    assert table.loc["B", ["against dense", "p"]].tolist() == ["=", "0.25"]
    assert table.loc["A", ["change %", "strict ASR %"]].tolist() == ["90.0", "90.0"]
    assert table.loc["A", "transfer %"].startswith("10.0 (")
    # confidence 0.75, always right when clean, right in 10 % under attack
    assert table.loc["A", ["ECE clean", "ECE attacked"]].tolist() == ["0.250", "0.650"]
    assert table.loc["A", ["prune ratio %", "sparsity %"]].tolist() == ["25.0", "20.0"]


def test_strict_success_counts_only_images_that_were_right() -> None:
    records = rows("main", planted(10), clean=20)
    other = model("A")
    first = replace(other, records=pd.concat([records, other.records[N:]], ignore_index=True))
    table = tables.leaderboard(study(first)).set_index("family")
    assert table.loc["A", "strict ASR %"] == "50.0"  # 20 right before, 10 of them after
    assert table.loc["A", "change %"] == "25.0"  # the other 20 keep their wrong class


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


def test_transfer_matrix_counts_images_that_both_have_right() -> None:
    carried = tables.transfer_matrix(study(model("A", carried=30)), "standard")
    assert carried["dense → model: accuracy %"][0].startswith("75.0 (")
    assert carried["dense → model: success %"][0].startswith("25.0 (")


def test_settings_table_writes_budgets_both_ways_and_names_extra_attacks() -> None:
    extra = [{"name": "MIFGSM", "eps": "8/255", "steps": 7}]
    whole = study(params=settings(attack={"main": "main", "extra": extra}))
    table = tables.settings_table(whole).set_index("attack")
    assert table.loc["short", ["eps", "eps (number)", "step"]].tolist() == [
        "48/255",
        "0.1882",
        "1/255",
    ]
    assert table.loc["long", ["steps", "n", "seed"]].tolist() == ["40", str(N), "0"]
    assert table.loc["MIFGSM", "eps"] == "8/255"
    assert "steps 7" in table.loc["MIFGSM", "note"]


# --- findings ------------------------------------------------------------------------------------


def test_a_difference_inside_the_interval_is_not_called_one() -> None:
    found = only(answer(study(model("A", (7, 20, 4)), model("B", (9, 20, 4))), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert "No difference from the dense network is shown" in found.title
    assert "n = 40" in found.text


def test_a_difference_beyond_the_test_is_called_one_with_its_side() -> None:
    models = (model("dense", (20, 20, 4)), model("A", (36, 20, 4)), model("B", (4, 20, 4)))
    found = only(answer(study(*models), "standard"))
    assert (found.figures["better"], found.figures["worse"]) == (["A"], ["B"])
    assert "A more robust" in found.title and "B less robust" in found.title
    assert "A 90.0 %" in found.text and "p < 0.001" in found.text


def test_a_difference_at_another_budget_is_found_when_the_main_attack_is_at_its_floor() -> None:
    weaker = model("A", curve=(40, 5, 4, 0))
    found = only(answer(study(weaker, model("B")), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert list(found.figures["over_budgets"]) == ["A"]
    assert "A differs at other budgets" in found.title
    assert "12.5 against 50.0 %" in found.text


def test_a_difference_that_several_tests_may_give_by_chance_is_not_called_one() -> None:
    """Six images more and none fewer: p = 0.031 alone, 0.062 as the smaller of two."""
    found = only(answer(study(model("A", (10, 20, 4)), model("B")), "standard"))
    assert found.figures["same"] == ["A", "B"]
    assert "Tested alone, without that correction, it would be for A 25.0 %" in found.text
    single = only(answer(study(model("A", (10, 20, 4))), "standard"))
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
    found = only(schedules(study(model("S"), points=points, params=params), "standard"))
    assert "For S = 5 the published table (CIFAR-10) gives 32 to 34 %" in found.text
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
    stuck = only(sanity(study(model("A", curve=(40, 20, 12, 12))), "standard"))
    assert stuck.figures["above_chance"] == ["A"] and "hidden gradients" in stuck.text
    assert stuck.figures["gaps"] == {"A": pytest.approx(8 / N)}


def test_every_finding_says_n_and_several_bases_are_named() -> None:
    params = settings(bases={"one": {}, "two": {}})
    models = [model(f, base=base) for base in ("one", "two") for f in ("dense", "A")]
    found = findings(replace(study(params=params), models=models, sweeps={}))
    assert {finding.title.partition(":")[0] for finding in found} == {"one", "two"}
    assert all("40 images" in f.text for f in found if "strong enough" not in f.title)


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

HOSTILE = {"x": "<script>alert(1)</script>|[a](b)"}


def test_text_of_settings_cannot_inject_markup() -> None:
    whole = replace(study(model("A", setting=HOSTILE)), source="<b>bold</b>")
    page, text = html(whole, {}), report_markdown(whole, {})
    for rendered in (page, text):
        assert "<script" not in rendered and "<b>" not in rendered
        assert "&lt;script&gt;" in rendered
    assert r"\|\[a\](b)" in text and "|[a]" not in text
    rows_of = [line for line in text.splitlines() if line.startswith("| A ")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in rows_of[:1]}
    head = next(line for line in text.splitlines() if line.startswith("| family "))
    assert cells == {head.count("|")}


def test_page_stands_alone_and_holds_its_figures() -> None:
    whole = study()
    pngs = {name: png(figure) for name, figure in figures(whole).items()}
    page = html(whole, pngs)
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert sorted(base64.b64decode(data) for data in inside) == sorted(pngs.values())
    assert "http" not in page and "<script" not in page
    assert set(pngs) == {"sweep", "security", "steps", "transfer", "layers", "images", "weights"}


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
    assert files[0] == files[1] and len(files[0]) == 12
    for name in files[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


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
    order = [line.split()[0] for line in shown if "-standard" in line]
    assert order == [f"{family}-standard" for family in ("dense", "int8", *params.prune)]


def test_neither_report_nor_scripts_import_torch() -> None:
    code = (
        "import sys; sys.path[:0] = ['src', 'stages'];"
        "import summarize, show, advprune.report.study, advprune.report.write;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
