"""The page: what it says first, and all of it in a browser, with names that want to be markup."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from browser import BROWSER, run_in
from planted import elsewhere, model, run_of, searched, settings
from planted import planted as first
from test_claims import against, claim

from advprune.report import chart_live
from advprune.report.formats import budgets_in
from advprune.report.page import html, report_markdown, shown_sections
from advprune.report.summary import accuracy, effect, price, start, summary, transfer, trust

ATTACK = "</script><img src=x onerror=hacked=1>"
HOSTILE = (f"A{ATTACK}", f"B$$x$$\"'&{ATTACK}")


def firm(name, **more):
    """A model that withstands the attacks on 30 of 40 images, whatever is tried."""
    return model(name, (30, 30, 30), carried=30, steps=(36, 30, 30), **more)


# --- summary -------------------------------------------------------------------------------------
DENSE = "than the dense network's for"
BROKEN = {"survivors": (36, 36, 36), "curve": (40, 20, 36, 0)}  # a curve that rises
FLOOR = {"survivors": (0, 0, 0), "carried": 0}


@pytest.mark.parametrize(
    ("sentence", "models", "words"),
    [
        (
            effect,
            [model("A"), model("B")],
            "Distance (the smallest change of an image that fools a model) is significantly larger "
            f"{DENSE} none of 2 other models, smaller for none and not significantly "
            "different for 2.",
        ),
        (
            accuracy,
            [model("A"), model("B")],
            f"Robust accuracy at eps 48/255 is significantly higher {DENSE} none of 2 other "
            "models, lower for none and not significantly different for 2.",
        ),
        (effect, [firm("A"), model("B")], f"larger {DENSE} 1 of 2 other models (A-standard),"),
        (accuracy, [firm("A"), model("B")], "for 1 of 2 other models (A-standard), lower for"),
        (effect, [firm("dense"), model("A"), firm("B")], ", smaller for 1 (A-standard) and not"),
        (accuracy, [firm("dense"), model("A"), firm("B")], ", lower for 1 (A-standard) and not"),
        (
            accuracy,
            [model(name, **FLOOR) for name in ("dense", "A", "B")],
            "; both are 0 % for 2, of which distances are larger for 0 and smaller for 0.",
        ),
        (  # all are broken within the budget, half of A's images by less than those of dense
            accuracy,
            [model("dense", (0, 0, 0)), model("A", **FLOOR, curve=(40, 0, 0, 0))],
            "both are 0 % for 1, of which distances are larger for 0 and smaller for 1",
        ),
        # Neither what an upper bound appears to gain nor a loss against one is counted.
        (
            accuracy,
            [model("dense", (0, 0, 0)), model("A", **BROKEN)],
            "for none of 1 other model, lower for none, not significantly different for none "
            "and undecided, as an upper bound or at lower clean accuracy, for 1",
        ),
        (effect, [model("dense", (0, 0, 0)), model("A", **BROKEN)], "lower clean accuracy, for 1"),
        (
            accuracy,
            [model("dense", **BROKEN), model("A", (0, 0, 0))],
            "lower clean accuracy, for 1",
        ),
        (effect, [model("dense", **BROKEN), model("A", (0, 0, 0))], "lower clean accuracy, for 1"),
        (effect, [firm("dense"), firm("A", clean=20)], "smaller for 1 (A-standard)"),
    ],
)
def test_the_answer_counts_what_differs(sentence, models, words):
    assert words in sentence(run_of(*models))


def test_what_is_higher_than_a_control_is_said_to_be_compared_with_it(monkeypatch):
    run = run_of(firm("dense"), model("A"), model("B"))
    outcomes = {"A": ("higher (control: B-standard)", "B-standard"), "B": ("not significant", "")}
    tests = {
        run.model(f"{name}-standard"): SimpleNamespace(
            distance=SimpleNamespace(outcome=said, better=bool(by), differs=bool(by), control=by)
        )
        for name, (said, by) in outcomes.items()
    }
    monkeypatch.setattr("advprune.report.summary.against_dense", lambda run: tests)
    words = "(A-standard) (A-standard compared with B-standard, of equal clean accuracy), smaller"
    assert words in effect(run)


def test_every_dense_network_is_named_with_its_accuracies():
    both = run_of(model("dense"), model("A"), firm("dense", base="robust"))
    assert start(both).startswith(
        "Without compression, dense-standard has 100.0 % (91.2–100.0) clean and 10.0 % (4.0–23.1) "
        "robust accuracy; dense-robust has 100.0 % (91.2–100.0) clean and 75.0 % (59.8–85.8)"
    )
    assert start(both).endswith(
        "(Linf, eps 48/255, n = 40; an image counts as robust only if no attack broke it)."
    )


def test_price_transfer_and_trust_are_a_sentence_each():
    assert price(run_of(model("A", clean=30), model("B"))) == (
        "Clean accuracy is significantly lower for 1 of 2 other models, most for A-standard: "
        "-25.0 points at 20.0 % sparsity."
    )
    assert price(run_of()) == "No other model has a significantly lower clean accuracy."
    found = transfer(run_of(model("A", carried=30)))
    assert found.startswith(
        "Transfer attacks overstate robustness for 1 of 1 other model, most for A-standard: 75"
    )
    assert "75.0 % (59.8–85.8) accuracy on images that main crafts on its dense network" in found
    assert "but 10.0 % (4.0–23.1) when main attacks it directly (p < 0.001)" in found
    assert "significantly for no other model" in transfer(run_of(model("A")))
    # Beside the same attack: what stronger ones break is no overstatement by transfer.
    assert "significantly for no other model" in transfer(
        run_of(model("A", (30, 20, 4), carried=30))
    )
    # What either breaks alone is the same: nothing is overstated, whatever both break together.
    other = {("dense-standard", "main"): elsewhere("main", ~first(20))}
    apart = replace(model("A", (20, 20, 20)), transfers=other)
    assert "significantly for no other model" in transfer(run_of(apart))
    assert trust(run_of()) == "All 3 robust accuracies passed every check."
    hidden = model("A", (36, 36, 36), carried=8, suite=[searched(20)])
    assert trust(run_of(hidden)) == (
        "1 of 2 robust accuracies passed every check; robust accuracy and distances of the rest "
        "are upper bounds (the broken A-standard)."
    )


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "48/255"), ("L2", "0.1882")])
def test_one_network_is_told_of_in_the_norm_of_its_budget(norm, eps):
    run = run_of(model("dense"))
    with budgets_in(norm):
        first, last = summary(run)
    assert first.startswith(
        "The network has 100.0 % (91.2–100.0) clean and 10.0 % (4.0–23.1) robust"
    )
    assert (
        f"eps {eps}," in first and "Half of the images are fooled by a change of at most" in first
    )
    assert ("/255 (" in first) == (
        norm == "Linf"
    ) and last == "The robust accuracy passed every check."


# --- the page ------------------------------------------------------------------------------------
@cache
def hostile():
    """A run in which every name and text wants to be more than text."""
    params = settings()
    profile = {**params.profiles["digits"], "show_images": False, "note": ATTACK}
    params = params.model_copy(update={"profiles": {"digits": profile}})
    hidden = model(
        HOSTILE[1], (36, 36, 36), carried=20, suite=[searched(20)], bits=8, steps=(20, 36, 36)
    )
    first = model(HOSTILE[0], (30, 30, 30), setting={"x": ATTACK})
    return replace(run_of(first, hidden, params=params), source=ATTACK, classes=[ATTACK] * 4)


@cache
def hostile_page():
    return html(hostile(), shown_sections(hostile()))


def test_no_text_leaves_its_place_and_the_same_run_makes_the_same_bytes():
    page = hostile_page()
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img src=x" not in page and "<img src=x" not in chart_live.library()
    assert not re.search(r"""(src|href)=["']?https?:""", page.split("<script>")[0])
    text = report_markdown(hostile(), shown_sections(hostile()))
    assert "<img" not in text and "&lt;img src=x" in text
    assert html(hostile(), shown_sections(hostile())) == hostile_page()


def test_the_answer_the_leaderboard_and_one_figure_come_before_anything_else():
    claimed = replace(against(30, 2), claims=(claim("a", effect=0.1),))
    page = html(claimed, shown_sections(claimed))
    parts = ('class="answer"', 'data-plot="tradeoff"', 'class="board"', 'id="claims"')
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "Published claims: 1 reproduced, 0 refuted, " in summary(claimed)[-1]


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
found.start = read("model");
for (const name of ["robust %", "verdict", "model", "transfer %"]) {
  click(name); found[`up ${name}`] = read(name);
  found[`aria ${name}`] = orders()[at(name)];
  click(name); found[`down ${name}`] = read(name);
  found.sorted = orders().filter((order) => order !== "none").length;
  click(name);
}
found.again = read("model");

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
set(fields[found.filters.indexOf("bits")], "");

// plots: one is drawn where the reader comes to it, all of them for paper
const places = [...document.querySelectorAll("[data-plot]")];
const painted = (place) => deep(place).filter((one) => one.tagName === "CANVAS").some((canvas) =>
  canvas.width > 0 && new Uint32Array(canvas.getContext("2d").getImageData(
    0, 0, canvas.width, canvas.height).data.buffer).some(Boolean));
found.unseen = places.map(painted);
found.tall = document.documentElement.scrollHeight;
const open = places.filter((place) => !place.closest("details:not([open])"));
open.at(-1).scrollIntoView();
for (let i = 0; i < 100 && !painted(open.at(-1)); i++) await sleep(50);
found.come = open.map(painted);
dispatchEvent(new Event("beforeprint"));
for (let i = 0; i < 100 && !places.every(painted); i++) await sleep(50);
await sleep(300);
found.grown = document.documentElement.scrollHeight - found.tall;
found.plots = Object.fromEntries(places.map((place) => [place.dataset.plot, painted(place)]));

// legend
const lines = () => Bokeh.documents.flatMap((one) => one.roots()).flatMap((root) => root.children ??
  [root]).flatMap((panel) => panel.renderers).filter((one) => one.muted).map((one) => one.name);
const button = places.find((place) => place.dataset.plot.startsWith("layers")).closest("figure")
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

// phone: nothing is wider than the screen but what scrolls by itself
found.wide = document.documentElement.scrollWidth - innerWidth;
"""


@pytest.fixture(scope="module", params=[1200, 390])
def seen(request, tmp_path_factory):
    """What the browser found in the page of the hostile run, on a desk and on a phone."""
    if BROWSER is None:
        pytest.skip("there is no Chromium on the path")
    return run_in(hostile_page(), EXERCISE, tmp_path_factory.mktemp("browser"), request.param)


def test_in_a_browser_nothing_goes_wrong_nothing_is_let_in_and_all_fits(seen):
    assert seen["errors"] == [] and seen["hacked"] == 0 and seen["images"] == 0
    assert seen["wide"] <= 0


def test_in_a_browser_headings_sort_and_filters_choose(seen):
    robust = ["10.0 (4.0–23.1)", "50.0 (35.2–64.8)", "75.0 (59.8–85.8)"]
    names = [f"{name}-standard" for name in ("dense", *HOSTILE)]
    assert seen["up robust %"] == robust and seen["down robust %"] == robust[::-1]
    assert seen["up model"] == [*names[1:], names[0]]
    assert seen["up transfer %"][-1] == seen["down transfer %"][-1] == "–"
    assert seen["aria robust %"] == "ascending" and seen["sorted"] == 1
    assert seen["start"] == seen["again"] == names
    assert seen["filters"] == ["against dense", "verdict", "bits"]
    assert seen["text"] == ["broken"] and seen["bits"] == ["8"]
    assert seen["told"] == "1 of 3 rows"


def test_in_a_browser_plots_are_drawn_where_the_reader_comes_and_answer(seen):
    assert all(seen["plots"].values()) and {"tradeoff", "transfer"} <= set(seen["plots"])
    assert not all(seen["unseen"]) and seen["come"][-1] and not all(seen["come"])
    assert seen["grown"] == 0  # nothing moves when plots come
    assert seen["muted"] and seen["pressed"] == "false" and seen["unmuted"] == []
    assert "onerror" in seen["tip"]
