"""The page: what it says first, its leaderboard, plots and parts, and all of it in a browser."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, run_in
from planted import ROOT, model, point, searched, settings, study

from advprune.report import plots
from advprune.report.board import FLIPS, board
from advprune.report.families import Claim, claim_of, parts, read_claims
from advprune.report.page import anchor, html
from advprune.report.study import Model, Study
from advprune.report.summary import effect, group_of, price, start, summary, transfer, trust

ATTACK = "</script><img src=x onerror=hacked=1>"
HOSTILE = (f"A{ATTACK}", f"B$$x$$\"'&{ATTACK}")
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
LIVE = ("tradeoff", "security", "steps", "layers", "transfer")
DRAWN = dict.fromkeys((*LIVE, "images", "weights"), PIXEL)


def two_bases(*more: Model) -> Study:
    """dense and A on two bases; the second one's networks keep 30 of 40 images."""
    params = settings(bases=["standard", "robust"], prune={"A": 1})
    robust = [firm(name, base="robust") for name in ("dense", "A")]
    return study(model("dense"), model("A"), *more, *robust, params=params)


@cache
def plain() -> Study:
    """A study in which nothing differs from the dense network."""
    return study()


def firm(name: str, **more: Any) -> Model:
    """A model that keeps 30 of 40 images whatever is tried."""
    return model(name, (30, 30, 30), carried=30, steps=(36, 30, 30), **more)


# --- summary -------------------------------------------------------------------------------------


def test_the_answer_comes_first_and_counts_what_differs() -> None:
    assert effect(plain()).startswith(
        "No compressed model is shown to be more robust than its uncompressed network; "
        "for 2 of 2 no difference is shown"
    )
    better = effect(study(firm("A"), model("B")))
    assert better.startswith("A is shown to be more robust") and "for 1 of 2 no" in better
    worse = effect(study(firm("dense"), model("A"), firm("B")))
    assert worse.startswith("No compressed model") and "; A is shown to be less robust;" in worse


def test_what_is_more_robust_is_named_with_its_verdict() -> None:
    hidden = model("A", (36, 36, 36), suite=[searched(20)])
    assert effect(study(hidden)).startswith("A (broken) is shown to be more robust")


def test_what_is_at_chance_is_counted_apart() -> None:
    assert "; 1 cannot be compared, being at chance when clean; for 1 of 2 no" in effect(
        study(model("A", (4, 4, 4), clean=10), model("B"))
    )


def test_the_start_is_told_of_each_base() -> None:
    assert "it falls from 100.0 % (91.2–100.0) to 10.0 % (4.0–23.1) accuracy." in start(plain())
    both = start(two_bases())
    assert "10.0 % (4.0–23.1) accuracy (standard) and from" in both
    assert "75.0 % (59.8–85.8) accuracy (robust)." in both


def test_the_price_is_the_largest_loss_of_clean_accuracy() -> None:
    assert price(plain()) == "No loss of clean accuracy is shown for any compressed model."
    lost = price(study(model("A", clean=30), model("B", clean=20, sparsity=0.75)))
    assert "2 of 2 compressed models are shown to lose some, most B with -50.0 points" in lost
    assert "(75.0 % of its parameters are zero)" in lost


def test_images_carried_over_are_set_beside_the_models_own() -> None:
    flattered = transfer(study(model("A", carried=30), model("B")))
    assert "of images crafted on the dense one, A keeps 75.0 % (59.8–85.8)" in flattered
    assert "attacked itself 10.0 % (4.0–23.1) (p < 0.001)" in flattered
    assert transfer(plain()).startswith("Images crafted on the dense network do as much harm")


def test_trust_names_what_is_not_reliable() -> None:
    assert trust(plain()) == "Every automatic check was passed by all 3 robust accuracies."
    doubted = study(model("A", (36, 36, 36), suite=[searched(20)]), model("B"))
    assert trust(doubted).startswith("2 of 3 robust accuracies passed every automatic check; A (br")


def test_a_run_of_dense_networks_alone_has_a_summary() -> None:
    alone = study(model("dense"), params=settings(prune={"A": 1}, sweep={}), points=[])
    assert summary(alone)[0] == "No compressed model is part of this run."
    assert len(summary(alone)) == 3 and len(summary(two_bases())) == 5
    page = html(alone, {})
    assert all(sentence.split(" ")[0] in page for sentence in summary(alone))


def test_kinds_of_models_are_counted_and_shown_apart() -> None:
    changes: dict[str, Any] = {"prune": {"A": 1}, "masks": {"M": 4}, "quantized": {"Q": {}}}
    models = [model(name) for name in ("dense", "int8", "A", "M", "Q")]
    whole = study(*models, params=settings(**changes))
    groups = [group_of(whole, one) for one in whole.models]
    assert groups == ["standard", "standard", "standard", "masks", "quantized"]
    assert "for 4 of 4 (2 standard, 1 masks and 1 quantized) no difference" in effect(whole)


# --- leaderboard ---------------------------------------------------------------------------------


def column(whole: Study, name: str) -> list[tuple[str, Any]]:
    """A column of the leaderboard: what is read and what it is sorted by."""
    made = board(whole)
    at = [one.name for one in made.columns].index(name)
    return [(row[at].text, row[at].value) for row in made.rows]


def test_cells_are_sorted_by_their_value_and_verdicts_by_severity() -> None:
    hidden = model("A", (36, 36, 36), suite=[searched(20)])
    whole = study(model("dense"), hidden, model("B", (30, 30, 30), carried=6, bits=8))
    # A: 36 of 40 under gradients, 20 under the search, so 20 in the worst case
    assert [value for _, value in column(whole, "robust %")] == [0.1, 0.5, 0.75]
    assert column(whole, "robust %")[1][0] == "50.0 (35.2–64.8)"
    assert column(whole, "verdict")[1] == ("✗ broken", 2.0)
    assert column(whole, "transfer %")[0] == ("–", None)
    assert column(whole, "transfer %")[2][1] == 0.15
    assert column(whole, "bits") == [("32", 32.0), ("32", 32.0), ("8", 8.0)]
    assert [value for _, value in column(whole, "against dense")] == [None, 0.4, 0.65]
    # 2 + 1 passes a step: 10 under main and short, 40 under long; 300 steps of 2 under the search
    assert column(whole, "passes")[0] == ("780", 780.0)


def test_columns_without_a_word_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [one.name for one in board(study(params=settings(bitflip={}))).columns]
    assert "base" not in names and "flips" not in names
    assert "base" in [one.name for one in board(two_bases()).columns]
    whole, found = plain(), Study.metrics
    flips = {"dense": 12, "A": None, "B": 1500}
    monkeypatch.setattr(Study, "metrics", lambda s, m: found(s, m) | {FLIPS: flips[m.family]})
    assert column(whole, "flips") == [("12", 12.0), ("–", None), ("1,500", 1500.0)]
    monkeypatch.setattr(Study, "metrics", lambda s, m: found(s, m) | {FLIPS: None})
    assert "flips" not in [one.name for one in board(plain()).columns]


class Tables(HTMLParser):
    """The cells of the tables of a page, by class, as they are read without scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.table: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.table = self.found.setdefault(dict(attrs).get("class") or "", [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.table[-1][-1] += data


def test_without_scripts_the_leaderboard_is_a_plain_table() -> None:
    whole = plain()
    page = re.sub(r"<script.*?</script>", "", html(whole, {}), flags=re.DOTALL)
    head, *rows = Tables(page).found["board"]
    frame = board(whole).frame()
    assert head == list(frame.columns) and rows == frame.to_numpy().tolist()
    assert "<button" not in page and "<select" not in page


# --- families ------------------------------------------------------------------------------------


def test_claim_and_source_are_taken_from_a_page() -> None:
    page = (
        "# E: zeros\n\n**Claim** (nn-prune). Small weights *matter*,\nsee [S](S.md) and `E`.\n\n"
        "**Formula.** `w = 0`.\n\n**Source.** nn-prune, `E`. Code: `src/e.py`.\n"
    )
    assert claim_of(page) == Claim("Small weights matter, see S and E.", "nn-prune", "nn-prune, E.")
    assert claim_of(page.replace("**Claim**", "Claim")) is None
    assert claim_of(page.replace("**Source.**", "Source.")) is None


def test_the_page_of_every_family_has_a_claim_and_a_source(tmp_path: Path) -> None:
    folder = ROOT / "docs/families"
    found = read_claims(folder)
    assert sorted(found) == sorted(page.stem for page in folder.glob("*.md"))
    for claim in found.values():
        words = (claim.text, claim.by, claim.source)
        assert all(words) and not any(sign in word for word in words for sign in "`[]\n")
        assert "Code:" not in claim.source
    assert read_claims(tmp_path / "missing") == {}


def test_a_part_holds_settings_claim_findings_and_rows_of_its_family() -> None:
    claim = Claim("It protects.", "Somebody, 2020", "A paper.")
    lost = model("B", (30, 30, 30), clean=30, carried=8, suite=[searched(4)])
    first, second = parts(study(model("A"), lost), {"B": claim})
    assert (first.family, first.claim, second.claim) == ("A", None, claim)
    assert first.settings == [("Setting", "1"), ("Sweep", "1; 2")]
    assert first.brief == "clean 100.0\u00a0%, robust 10.0\u00a0%"
    (text,) = second.found
    plain = text.replace("\u00a0", " ")
    assert "Clean accuracy 75.0 % (59.8–85.8), below dense's 100.0 % (91.2–100.0), p" in plain
    assert "robust accuracy 10.0 % (4.0–23.1), no difference from dense's 10.0 %" in plain
    assert "Of images crafted on the dense network it keeps 20.0 %" in plain
    assert "Verdict: broken; " in plain and "does more harm than the attacks by gradient" in plain
    assert [len(table) for _, table in first.tables] == [1, 2]
    assert [table.family.unique().tolist() for _, table in second.tables] == [["B"]]


def test_a_family_with_two_bases_has_a_finding_and_a_row_for_each() -> None:
    (part,) = parts(two_bases(), {})
    assert [text.split(":")[0] for text in part.found] == ["On standard", "On robust"]
    assert part.tables[0][1].base.tolist() == ["standard", "robust"]


# --- plots ---------------------------------------------------------------------------------------


@cache
def hostile() -> Study:
    """A study in which every name and text wants to be more than text."""
    names = dict.fromkeys(HOSTILE, 1)
    params = settings().model_copy(update={"prune": names, "sweep": {HOSTILE[0]: [1]}})
    hidden = model(HOSTILE[1], (36, 36, 36), carried=8, suite=[searched(20)], bits=8)
    models = [model(HOSTILE[0], (30, 30, 30), setting={"x": ATTACK}), hidden]
    whole = study(*models, params=params, points=[point(0)])
    return replace(whole, source=ATTACK, classes=[ATTACK] * 4)


def hostile_page() -> str:
    claims = {HOSTILE[0]: Claim(ATTACK, ATTACK, ATTACK)}
    return html(hostile(), DRAWN, claims)


def test_the_same_study_makes_the_same_bytes() -> None:
    whole = plain()
    first = html(whole, DRAWN)
    assert "security-1" in first and first == html(whole, DRAWN)


def test_plots_show_the_numbers_of_the_study() -> None:
    whole = study(model("A", curve=(40, 30, 10, 2)))
    made = plots.plots(whole, {"security", "transfer"})
    assert list(made) == ["security", "transfer"]
    text = json.dumps(made["security"].item, ensure_ascii=False)
    assert '["y", [100.0, 75.0, 25.0, 5.0]]' in text  # A
    assert '["beside", ["+0.0", "+25.0", "+15.0", "+5.0"]]' in text  # against 40, 20, 4, 0
    assert [name for name, _ in made["security"].legend] == ["dense", "A"]
    assert '"kept", ["10.0 (4.0–23.1)"' in json.dumps(made["transfer"].item, ensure_ascii=False)


def test_figures_with_an_interactive_form_are_not_put_in_twice() -> None:
    page = html(plain(), DRAWN)
    assert set(re.findall(r'data-plot="([^"]+)"', page)) == set(LIVE)
    assert page.count("<img ") == len(DRAWN) - len(LIVE)
    assert page.count("Copyright (c) Anaconda, Inc., and Bokeh Contributors") == 1
    assert "Bokeh Contributors" not in html(plain(), {})


def test_every_colour_of_lines_is_seen_on_a_dark_page() -> None:
    def light(colour: str) -> float:
        values = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    whole = study(*(model(name) for name in ["dense", *"ABCDEFGHIJKL"]))
    used = {colour for _, colour in plots._legend(whole, whole.models)} | {plots.INK}
    for colour in used:
        shown = plots.DARK.get(colour, colour)
        assert (light(shown) + 0.05) / (light("#15181c") + 0.05) >= 3, colour


def test_no_text_leaves_its_place() -> None:
    page = hostile_page()
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img src=x" not in page and "<img src=x" not in plots.library()
    assert not re.search(r"""(src|href)=["']?https?:""", page.split("<script>")[0])
    assert anchor("SAP's <b>") == "sap-s-b"


# --- in a browser --------------------------------------------------------------------------------

EXERCISE = r"""
const table = document.querySelector("table.board");
const heads = [...table.tHead.rows[0].cells];
const at = (name) => heads.findIndex((head) => head.textContent.startsWith(name));
const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
const read = (name) => shown().map((row) => row.cells[at(name)].textContent);
const click = (name) => heads[at(name)].querySelector("button").click();
const orders = () => heads.map((head) => head.getAttribute("aria-sort"));
const deep = (root) => [...root.querySelectorAll("*")].flatMap(
  (one) => [one, ...(one.shadowRoot ? deep(one.shadowRoot) : [])]);

// sorting
found.start = read("family");
for (const name of ["robust %", "verdict", "family", "transfer %"]) {
  click(name); found[`up ${name}`] = read(name);
  found[`aria ${name}`] = orders()[at(name)];
  click(name); found[`down ${name}`] = read(name);
  found.sorted = orders().filter((order) => order !== "none").length;
  click(name);
}
found.again = read("family");

// filters
const fields = [...document.querySelectorAll(".filters select")];
found.filters = fields.map((field) => field.parentElement.firstChild.textContent);
const set = (field, value) => {
  field.value = value; field.dispatchEvent(new Event("input", {bubbles: true}));
};
const input = document.querySelector(".filters input");
set(input, "BROKEN"); found.text = read("verdict");
set(input, "");
set(fields[found.filters.indexOf("bits")], "=8"); found.bits = read("bits");
found.told = document.querySelector(".filters output").value;
document.querySelector(".filters button").click(); found.reset = shown().length;

// plots: one is drawn where the reader comes to it, all of them for paper
const places = [...document.querySelectorAll("[data-plot]")];
const painted = (place) => deep(place).filter((one) => one.tagName === "CANVAS").some((canvas) =>
  canvas.width > 0 && new Uint32Array(canvas.getContext("2d").getImageData(
    0, 0, canvas.width, canvas.height).data.buffer).some(Boolean));
found.unseen = places.map(painted);
found.tall = document.documentElement.scrollHeight;
places.at(-1).scrollIntoView();
for (let i = 0; i < 100 && !painted(places.at(-1)); i++) await sleep(50);
found.come = places.map(painted);
dispatchEvent(new Event("beforeprint"));
for (let i = 0; i < 100 && !places.every(painted); i++) await sleep(50);
await sleep(300);
found.grown = document.documentElement.scrollHeight - found.tall;
found.plots = Object.fromEntries(places.map((place) => [place.dataset.plot, painted(place)]));

// legend
const lines = () => Bokeh.documents.flatMap((one) => one.roots()).flatMap((root) => root.children ??
  [root]).flatMap((panel) => panel.renderers).filter((one) => one.muted).map((one) => one.name);
const button = places.find((place) => place.dataset.plot === "layers").closest("figure")
  .querySelectorAll(".legend button")[1];
button.click(); found.muted = lines(); found.pressed = button.getAttribute("aria-pressed");
button.click(); found.unmuted = lines();

// pointing at a plot
const view = [...Bokeh.index].find((one) => one.model.id.startsWith("transfer"));
const hover = view.tool_views.get(view.model.toolbar.inspectors[0]);
const {x0, y0, width, height} = view.frame.bbox;
hover._move({sx: x0 + width * 0.5, sy: y0 + height * 0.9});
await sleep(300);
found.tip = deep(document.body).filter((one) => one.classList.contains("bk-Tooltip"))
  .map((one) => one.shadowRoot.querySelector(".bk-tooltip-content").textContent).join();
found.images = deep(document.body).filter((one) => one.getAttribute("onerror")).length;

// dark
const before = Bokeh.documents.length;
scheme.matches = true; scheme.dispatchEvent(new Event("change"));
await sleep(1500);
found.documents = [before, Bokeh.documents.length];
found.ink = Bokeh.documents.flatMap((one) => one.roots()).flatMap((root) => root.children ?? [root])
  .flatMap((panel) => panel.xaxis ?? panel.below).map((axis) => axis.axis_label_text_color);
found.dark = places.every(painted);

// links into folded parts
const link = table.querySelector("a");
location.hash = link.hash; await sleep(100);
found.opened = [...document.querySelectorAll("details.part[open] h3")].map((h) => h.textContent);
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser found in the page of the hostile study."""
    if BROWSER is None:
        pytest.skip("there is no Chromium on the path")
    return run_in(hostile_page(), EXERCISE, tmp_path_factory.mktemp("browser"))


def test_in_a_browser_nothing_goes_wrong_and_nothing_is_let_in(seen: dict[str, Any]) -> None:
    assert seen["errors"] == [] and seen["hacked"] == 0 and seen["images"] == 0


def test_in_a_browser_headings_sort(seen: dict[str, Any]) -> None:
    robust = ["10.0 (4.0–23.1)", "50.0 (35.2–64.8)", "75.0 (59.8–85.8)"]
    assert seen["up robust %"] == robust and seen["down robust %"] == robust[::-1]
    assert seen["down verdict"] == ["✗ broken", "✗ broken", "✓ reliable"]
    assert seen["up family"] == [*HOSTILE, "dense"]
    assert seen["up transfer %"][-1] == seen["down transfer %"][-1] == "–"
    assert seen["aria robust %"] == "ascending" and seen["sorted"] == 1
    assert seen["start"] == seen["again"] == ["dense", *HOSTILE]


def test_in_a_browser_filters_choose_rows(seen: dict[str, Any]) -> None:
    assert seen["filters"] == ["family", "bits", "verdict"]
    assert seen["text"] == ["✗ broken"] * 2 and seen["bits"] == ["8"]
    assert seen["told"] == "1 of 3 rows" and seen["reset"] == 3


def test_in_a_browser_plots_are_drawn_and_answer(seen: dict[str, Any]) -> None:
    assert seen["plots"] == dict.fromkeys(LIVE, True)
    assert seen["muted"] == [plots.shown(HOSTILE[0])] * 6 and seen["pressed"] == "false"
    assert seen["unmuted"] == []
    tip = seen["tip"].replace("\u200b", "")
    assert f"source: {HOSTILE[1]}-standard target: {HOSTILE[0]}-standard accuracy" in tip


def test_in_a_browser_a_plot_is_drawn_where_the_reader_comes_to_it(seen: dict[str, Any]) -> None:
    assert seen["unseen"] == [False] * len(LIVE)
    assert seen["come"][-1] and not all(seen["come"])
    assert seen["grown"] == 0  # nothing moves when plots come


def test_in_a_browser_plots_follow_the_readers_scheme(seen: dict[str, Any]) -> None:
    assert seen["documents"] == [5, 5] and seen["dark"]
    assert set(seen["ink"]) == {plots.DARK[plots.INK]}


def test_in_a_browser_a_link_opens_the_part_that_it_leads_to(seen: dict[str, Any]) -> None:
    assert seen["opened"] == [HOSTILE[0]]
