"""The gate: p-values worked out by hand, two branches of a real repository, and the workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from planted import N, model, planted, run_of, settings
from planted import record as planted_files
from ruamel.yaml import YAML
from workspace import ROOT, git

from advprune.core.errors import UserError
from advprune.report.gate import judge
from advprune.report.gate_page import page
from advprune.report.margin import Rules, least, loss
from advprune.report.results import metrics_of, read_results, results
from advprune.report.revision import ModelResult, Revision, revision_of, settings_of

WORKFLOW = ROOT / ".github" / "workflows" / "robustness.yml"


def side(images="same", verdict="reliable", **robust):
    """A revision of models that withstand the suite on these images, of the given fingerprint."""
    found = {name: (hits, np.full(len(hits), 0.1)) for name, hits in robust.items()}
    return Revision({name: ModelResult(*one, 0.9, verdict, images) for name, one in found.items()})


def p_of(gate):
    return {one.name: one.tests["robust"].p for one in gate.rows}


def test_a_fall_on_the_same_images_is_judged_by_mcnemar():
    """Of each model two tests are made, and distances do not differ: Holm doubles p."""
    lost_7 = judge(side(A=planted(27)), side(A=planted(20)))
    assert p_of(lost_7) == {"A": 4 * 0.5**7}  # 7 images lost, none gained
    assert lost_7.failures == ["A fell from 67.5 to 50.0 % robust (p = 0.031)."]
    lost_6 = judge(side(A=planted(26)), side(A=planted(20)))
    assert p_of(lost_6) == {"A": 4 * 0.5**6} and lost_6.passed
    risen = judge(side(A=planted(20)), side(A=planted(27)))
    assert risen.passed and "▲" in page(risen, "G")
    assert judge(side(A=planted(27)), side(A=planted(20)), Rules(alpha=0.03)).passed
    # Several models are corrected together.
    found = judge(side(A=planted(27), B=planted(9)), side(A=planted(20), B=planted(9)))
    assert p_of(found) == {"A": 8 * 0.5**7, "B": 1.0} and found.passed
    # 40 images of 26,032 fall and none rises: p = 2 / 2^40, whatever the rates round to.
    before = np.random.default_rng(0).random(26032) < 0.5
    after = before.copy()
    after[np.flatnonzero(before)[:40]] = False
    found = judge(side(A=before), side(A=after))
    assert not found.passed and p_of(found)["A"] == pytest.approx(4 * 0.5**40)


def test_a_fall_of_distances_is_judged_where_robust_accuracy_is_at_its_floor():
    """All of 40 images are fooled before and after, each by a change half as large."""
    far = np.linspace(0.01, 0.1, N)
    one = side(A=np.zeros(N, bool)).results["A"]
    before, after = (Revision({"A": replace(one, distances=size)}) for size in (far, far / 2))
    assert judge(before, before).passed and judge(after, before).passed
    (failure,) = judge(before, after).failures
    assert failure.startswith("A: the median distance went from 14.0/255 to 7.01/255")
    found = judge(*(replace(one, norm="L2") for one in (before, after)))  # a length, no grey levels
    assert found.failures[0].startswith("A: the median distance went from 0.0550 to 0.0275,")
    assert "| distance before " in page(found, "G") and "| distance /255 before " in page(
        judge(before, after), "G"
    )


def test_other_images_are_red_and_are_compared_as_two_counts():
    four, none = np.ones(4, bool), np.zeros(4, bool)
    found = judge(side(A=four), side("other", A=none), Rules(allow=["images"]))
    # Fisher: of all ways to choose 4 of 8, the two extreme ones.
    assert p_of(found)["A"] == pytest.approx(2 / 70)
    assert found.failures == [r"A fell from 100.0 to 0.0 % robust (p = 0.029\*)."]
    assert "Tested as two counts" in found.warnings[0]
    for images, n, words in (("other", N, "Other images: A"), ("same", N - 10, "Fewer images: A")):
        changed = judge(side(A=planted(9)), side(images, A=planted(9, n)))
        assert changed.failures == [f"{words} (--allow images)."]
        bounded = judge(side(A=planted(9)), side(images, A=planted(9, n)), Rules(margin=0.02))
        assert "A: a loss cannot be bounded where the images differ." in bounded.failures


def test_a_verdict_may_not_get_worse_or_be_unknown():
    order = ["reliable", "suspect", "broken"]
    for old, before in enumerate(order):
        for new, after in enumerate(order):
            found = judge(*(side(verdict=level, A=planted(9)) for level in (before, after)))
            assert found.failures == ([] if new <= old else [f"A was {before} and is {after}."])
    for unknown in (None, float("nan"), "fine"):
        assert not judge(side(A=planted(9)), side(verdict=unknown, A=planted(9))).passed


def test_numbers_in_doubt_are_upper_bounds():
    """To be lower than one is no fall, for a model that is reliable now; to be higher by one is no
    rise, and keeps no margin."""
    low, high = planted(20), planted(30)
    for level in ("suspect", "broken"):
        bound = side(verdict=level, A=high)
        found = judge(bound, side(A=low), Rules(margin=0.2))
        lines = [line for line in page(found, "G").splitlines() if "| A " in line]
        assert [line.split("|")[-2].strip() for line in lines] == ["="]
        assert found.passed and found.warnings == ["Lower than an upper bound, no fall: A."]
        (fallen,) = judge(bound, side(verdict=level, A=low)).failures
        assert fallen.startswith("A fell from ")
        risen = page(judge(side(verdict="broken", A=low), bound), "G")
        assert "▲" not in risen
        (kept,) = judge(bound, bound, Rules(margin=0.2)).failures
        assert kept == f"A is {level}: an upper bound rules out no loss."
        (floor,) = judge(bound, bound, Rules(floors={"A": 0.1})).failures
        assert floor == f"A is {level}: an upper bound shows no floor."
    assert not judge(side(A=high), side(A=low)).passed
    # Of distances alone, at the floor of robust accuracy.
    sizes = np.linspace(0.01, 0.1, N)
    one = side(verdict="suspect", A=np.zeros(N, bool)).results["A"]
    before, after = (Revision({"A": replace(one, distances=size)}) for size in (sizes, sizes / 2))
    assert not judge(before, after).passed
    trusted = Revision({"A": replace(after.results["A"], verdict="reliable")})
    assert judge(before, trusted).passed and judge(before, trusted).warnings
    for unknown in (None, "fine"):  # is no bound to be lower than
        assert not judge(side(verdict=unknown, A=high), side(A=low)).passed


def test_rows_that_are_gone_or_new_are_named_in_a_stable_order():
    before = side(B=planted(1), C=planted(1), Z=planted(1))
    after = side(C=planted(1), B=planted(1), A=planted(1))
    assert judge(before, after).failures == ["Z is no longer there (--allow Z)."]
    found = judge(before, after, Rules(allow=["Z"]), order=["C", "B", "missing"])
    assert [one.name for one in found.rows] == ["C", "B", "A", "Z"] and found.passed
    text = page(found, "Gate")
    assert text.startswith("## Gate: passed\n") and "| gone |" in text and "| new " in text


def test_other_settings_of_the_measurement_are_red():
    one, other = (replace(side(A=planted(9)), settings={"eps": e}) for e in (1, 2))
    for changed in (other, side(A=planted(9))):  # fail closed: also where nothing is known
        assert judge(one, changed).failures == [
            "The settings of data, seed or attacks differ (--allow settings)."
        ]
        assert judge(one, changed, Rules(allow=["settings"])).passed
    assert judge(one, one).passed and judge(side(A=planted(9)), one).passed
    weaker = revision_of(read_results(RESULTS_TEXT.replace("0.188235294", "0.188"), "here"))
    (failure,) = judge(revision_of(results(run_of(model("A")))), weaker).failures
    assert failure == "Attacked otherwise: A-standard and dense-standard (--allow settings)."
    named = judge(side(settings=planted(9)), side(settings=planted(9)), Rules(allow=["settings"]))
    assert named.failures == ["settings is what --allow takes for a change of all models."]
    before, after = (run_of(model("A"), model("B", suite=more)) for more in (None, []))
    failures = judge(revision_of(results(before)), revision_of(results(after))).failures
    assert failures[-1] == "B-standard went without square (--allow settings)."
    alone = replace(before, models=[replace(one, transfers={}) for one in before.models])
    failures = judge(revision_of(results(before)), revision_of(results(alone))).failures
    without = [f"{name}-standard went without transfer (--allow settings)." for name in "AB"]
    assert failures[-2:] == without


@pytest.mark.parametrize(
    "hostile",
    ["fine <img src=x>", "@all", "![x](https://x.invalid)", "a`b", "www.x.invalid", "a|b\n\n# c"],
)
def test_text_from_files_is_code_in_the_comment(hostile):
    """In code no markup, link or mention acts; whatever would end it is taken out."""
    after = Revision({hostile: side(verdict=hostile, A=planted(9)).results["A"]})
    text = page(judge(side(A=planted(9)), after), "G")
    outside = re.sub(r"`[^`\n|]*`", "", text)
    assert "`" not in outside and not any(word in outside for word in ("fine", "@", "x.inv", "# c"))


def test_outcomes_are_those_of_the_worst_case_and_come_back():
    whole = run_of(model("A", (4, 20, 4)))
    read = revision_of(read_results(results(whole).to_csv(index=False), "here"))
    assert read.norm == "Linf"
    found = read.results["A-standard"]
    assert found.robust.tolist() == planted(4).tolist() and found.verdict == "reliable"
    changed = replace(whole, clean_images=whole.clean_images + np.uint8(1))
    assert results(changed).images[0] != found.images


RESULTS_TEXT = results(run_of(model("A"))).to_csv(index=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged"),
        ("a,b\n1,2\n", "has no column model"),
        (RESULTS_TEXT.replace(",eps,", ",x,", 1), "has no column eps"),
        (RESULTS_TEXT.replace(",1111000", ",1112000"), "not 0 or 1 per image"),
        (RESULTS_TEXT.replace(",1111000", ",111000"), "not 0 or 1 per image"),
        (
            RESULTS_TEXT.replace(",1111000", ",1111100"),
            "contradicts its outcomes",
        ),
        (RESULTS_TEXT.replace("A-standard", "dense-standard", 1), "named twice"),
        (RESULTS_TEXT[:900], "is damaged"),
        (re.sub(r",[0-9a-f]{4}([0-9a-f]{156}\n)", r",007e\1", RESULTS_TEXT), "contradict"),
        (re.sub(r",[0-9a-f]{4}([0-9a-f]{156}\n)", r",042c\1", RESULTS_TEXT), "contradict"),
        (re.sub(r",0636", ",f636", RESULTS_TEXT.replace(",1111000", ",0111000")), "contradict"),
        (RESULTS_TEXT.replace("0.18823529411764706", "0.8"), "contradict each other"),
        (RESULTS_TEXT.replace("0.18823529411764706", "0"), "eps no budget"),
        (RESULTS_TEXT.replace(",40,", f",{10**400},"), "not 0 or 1 per image"),
        (RESULTS_TEXT.replace("0.18823529411764706", "8/255"), "could not convert"),
        (RESULTS_TEXT.replace(",reliable", ",not run", 1), "was not run has numbers"),
        (RESULTS_TEXT.replace(",reliable", ",not run"), "models are missing"),
    ],
)
def test_damaged_results_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        revision_of(read_results(text, "here"))


# --- a margin and a floor ------------------------------------------------------------------------
def test_ten_drops_that_each_pass_fail_against_the_first_revision():
    """A point each of 300 images: no step is significant, but 2 points are not ruled out."""
    revisions = [side(A=planted(200 - 3 * step, 300)) for step in range(11)]
    bounded = Rules(margin=0.02)
    for before, after in pairwise(revisions):
        assert judge(before, after).passed
        (failure,) = judge(before, after, bounded).failures
        assert failure.startswith("A: robust accuracy, 3 images lost and 0 gained of 300")
        assert re.search(r"not ruled out, 2 are allowed; about \d{3} images would decide", failure)
    (failure,) = judge(revisions[0], revisions[-1], bounded).failures[1:]
    assert "30 images lost" in failure and "would decide" not in failure
    assert judge(revisions[0], revisions[0], bounded).passed
    assert "| 30 " in page(judge(revisions[0], revisions[-1]), "G")  # right before, wrong now


@pytest.mark.parametrize(("lost", "n"), [(0, 40), (3, 300)])
def test_the_images_needed_are_those_at_which_the_margin_is_kept(lost, n):
    found = re.findall(r"about ([\d,]+) images", loss(lost, 0, n, 0.02, 0.05))
    needed = int(found[0].replace(",", ""))
    if lost == 0:  # Tango's bound is then z^2 / (n + z^2)
        assert 1 < needed / (0.98 * 1.645**2 / 0.02) < 1.06
    more, less = round(1.1 * needed), round(needed / 1.2)
    assert loss(lost * more // n, 0, more, 0.02, 0.05) == ""
    assert loss(round(lost * less / n), 0, less, 0.02, 0.05) != ""


def test_clean_accuracy_and_distances_are_bounded_too():
    one = side(A=planted(200, 300)).results["A"]
    wrong = np.where(np.arange(300) < 290, one.distances, 0.0)  # 10 are misclassified as they are
    near, less = one.distances * 0.97, one.distances * 0.99
    for distances, words in (
        (wrong, "A: clean accuracy, 10 images lost"),
        (near, "smaller by 2 %"),
    ):
        after = Revision({"A": replace(one, distances=distances)})
        failures = judge(Revision({"A": one}), after, Rules(margin=0.02)).failures
        assert any(words in failure for failure in failures)
    kept = judge(
        Revision({"A": one}), Revision({"A": replace(one, distances=less)}), Rules(margin=0.02)
    )
    assert not any("ruled out" in failure for failure in kept.failures)


def test_a_floor_is_absolute():
    both = side(A=planted(150, 300), B=planted(100, 300))
    z = 1.6449 / sqrt(300)  # Wilson's bound at 1/2, in closed form
    assert least(both.results["A"].rate, 0.05) == pytest.approx(
        (0.5 + z**2 / 2 - z * sqrt(0.25 + z**2 / 4)) / (1 + z**2), abs=1e-5
    )
    assert judge(both, both, Rules(floors={"": 0.28})).passed
    (failure,) = judge(both, both, Rules(floors={"": 0.3})).failures
    assert failure.startswith("B: 33.3 % robust, at least 29.") and "30.0" in failure
    assert judge(both, both, Rules(floors={"A": 0.3})).passed
    assert not judge(Revision({}), both, Rules(floors={"A": 0.5})).passed  # of a new model too


# --- a repository of its own ---------------------------------------------------------------------
def standing(family, kept=14, **more):
    """A model that keeps so many of N images under whatever is tried at its budget."""
    planted_here = {"carried": kept, "curve": (40, 20, kept, 0), "steps": (20, kept, kept)}
    return model(family, (kept, 24, kept), **(planted_here | more))


def planted_run(*models):
    """A run whose settings name its models, so that its records can be read again."""
    entries = {
        one.name: {"do": "prune", "of": "dense-standard", "by": f"prune.{one.family}"}
        for one in models
    }
    params = settings(recipes={"standard": {"method": "standard"}}, models=entries)
    whole = run_of(*models, params=params)

    def made(one):
        setting = params.setting(one.name)
        return {"setting": setting.model_dump() if one.is_dense else setting}

    return replace(whole, models=[replace(m, card=m.card | made(m)) for m in whole.models])


def write(*models):
    """The files of a run that a repository holds, as summarize writes them."""
    whole, folder = planted_run(*models), Path("reports/digits")
    folder.mkdir(parents=True, exist_ok=True)
    results(whole).to_csv(folder / "results.csv", index=False)
    for place in (folder, Path()):
        (place / "params.yaml").write_text(settings_of(whole.params))


def record(*models):
    """The files of a run that a repository does not hold, as the other stages write them."""
    planted_files(planted_run(*models))
    shutil.copy(ROOT / "claims.yaml", "claims.yaml")


def forge(model="A-standard", hits=36):
    """Results and metrics that claim more of a model than was found, in every column."""
    place = Path("reports/digits/results.csv")
    table = read_results(place.read_text(), "it").set_index("model", drop=False)
    table.loc[model, "robust_accuracy"] = hits / N
    table.loc[model, "robust_images"] = "1" * hits + "0" * (N - hits)
    far = np.full(hits, np.inf, "<f2").tobytes().hex()
    table.loc[model, "image_distances"] = far + table.image_distances[model][len(far) :]
    table.to_csv(place, index=False)
    Path("metrics/digits").mkdir(parents=True, exist_ok=True)
    for name, row in metrics_of(table).items():
        Path("metrics/digits", f"{name}.json").write_text(json.dumps(row))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with results on its main branch, on a branch of its own."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write(standing("A"), standing("B"))
    git(Path(), "init", "-q", "-b", "main")
    git(Path(), "add", ".")
    git(Path(), "commit", "-q", "-m", "results")
    git(Path(), "checkout", "-q", "-b", "branch")
    return folder


def test_a_harmless_branch_passes_and_one_against_no_results(repository, run):
    write(standing("A", 13), standing("B", 16))
    status, out, _ = run("gate", "--base", "main")
    assert status == 0 and "against `main`" in out and ": passed\n" in out
    lines = [line for line in out.splitlines() if line.startswith("| ") and "standard" in line]
    assert [line.split()[1] for line in lines] == [f"{f}-standard" for f in ("dense", "A", "B")]
    cells = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert cells[1:4] == ["100.0", "100.0", "0"]
    assert cells[4].startswith("35.0 (") and cells[5].startswith("32.5 (")
    assert cells[6:8] == ["1", "1.00"] and cells[11:] == ["reliable", "reliable", "="]
    git(Path(), "checkout", "-q", "--orphan", "empty")
    git(Path(), "rm", "-rqf", "--cached", "reports")
    git(Path(), "commit", "-q", "-m", "no results")
    status, out, _ = run("gate", "--base", "empty")
    assert status == 0 and out.count("| new ") == 3


def test_a_harmful_branch_fails(repository, run):
    write(standing("A", 4), standing("B"))
    status, out, _ = run("gate", "--base", "main")
    assert status == 1 and ": FAILED\n" in out
    # 10 images lost and none gained, of three models with two tests each: 5 * 2 / 1024, after
    # the distances of the same model.
    assert "- ✗ A-standard fell from 35.0 to 10.0 % robust (p = 0.0098)." in out
    assert "- ✗ A-standard: the median distance went from" in out and out.count("✗") == 3
    git(Path(), "commit", "-q", "-am", "worse")
    assert run("gate", "--base", "main")[0] == 1  # what counts is the working tree
    assert run("gate", "--base", "branch")[0] == 0
    assert run("gate", "--base", "main", "--alpha", "0.001")[0] == 0
    assert run("gate", "--base", "main", "--allow", "A-standard")[0] == 0
    for more in (("--margin", "2"), ("--floor", "30"), ("--floor", "B-standard=30")):
        assert run("gate", "--base", "branch", *more)[0] == 1  # of 40 images, little is certain
    assert run("gate", "--base", "branch", "--margin", "8", "--floor", "B-standard=20")[0] == 0


def test_every_profile_is_compared_and_metrics_may_not_contradict(repository, run):
    other, table = Path("reports/cifar10/results.csv"), results(planted_run(standing("A")))
    other.parent.mkdir()
    table.to_csv(other, index=False)
    git(Path(), "add", ".")
    git(Path(), "commit", "-q", "-m", "another profile")
    table.assign(verdict=["reliable", "broken"]).to_csv(other, index=False)
    status, out, _ = run("gate", "--base", "branch")
    assert status == 1 and "A-standard was reliable and is broken" in out
    assert "Robustness of `cifar10`" in out and "Robustness of `digits`" in out
    other.unlink()
    assert run("gate", "--base", "branch")[0] == 1
    for place, words in (
        ("cifar10/A-standard", "metrics/cifar10/ has no reports/cifar10/results.csv"),
        ("digits/A-standard", "A-standard.json contradicts reports/digits/results.csv"),
        ("digits/renamed", "renamed.json contradicts reports/digits/results.csv"),
    ):
        forged = Path(f"metrics/{place}.json")
        forged.parent.mkdir(parents=True, exist_ok=True)
        forged.write_text(json.dumps({"verdict": "reliable"}))
        status, _, err = run("gate", "--base", "branch")
        assert status == 2 and words in err
        forged.unlink()


REFUSED = {
    "--base nowhere": "error: --base nowhere: there is no such revision here; check its name",
    "--base=--output=x": "--base --output=x: there is no such revision here",
    "--alpha 1": "--alpha lies between 0 and 1 (got 1.0)",
    "--margin nan": "--margin lies between 0 and 100 (got nan)",
    "--floor A=30": "--floor: there is no model 'A'; check its name",
    "--floor A=many": "--floor is a percentage, or <model>=<percentage> (got A=many)",
    "--allow nonesuch": "--allow: there is no model, profile or change 'nonesuch'; check its name",
    "--profile cifar10": "no profile 'cifar10'",
    "--recompute": "records.parquet in runs/digits; run `dvc repro`",
}


def test_what_cannot_be_compared_is_refused(repository, run):
    for arguments, words in REFUSED.items():
        status, out, err = run("gate", *arguments.split())
        assert status == 2 and out == "" and words in err and err.count("\n") == 1
    assert not Path("x").exists()


def test_damaged_results_of_either_side_are_refused(repository, run):
    place = Path("reports/digits/results.csv")
    whole = place.read_text()
    for text, base, words in (
        (whole[:400], "main", "error: reports/digits/results.csv is damaged"),
        (whole, "branch", "branch:reports/digits/results.csv is damaged"),
        (None, "main", "there are no results in reports/digits"),
    ):
        place.unlink() if text is None else place.write_text(text)
        status, out, err = run("gate", "--base", base)
        assert status == 2 and out == "" and words in err
        git(Path(), "commit", "-q", "--allow-empty", "-am", "as it is")


@pytest.mark.parametrize("place", ["reports/digits/results.csv", "metrics/digits/A-standard.json"])
def test_results_and_metrics_are_plain_files(repository, run, place):
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    for make in (
        os.mkfifo,
        lambda one: one.symlink_to("/dev/zero"),
        lambda one: one.symlink_to(Path("params.yaml").absolute()),
        Path.mkdir,
    ):
        path.unlink(missing_ok=True)
        make(path)
        status, out, err = run("gate", "--base", "main")
        assert (status, out) == (2, "")
        assert err == f"error: {place} is no plain file; run `dvc repro`\n"
    path.rmdir()
    path.write_text("")
    path.parent.rename("aside")
    path.parent.symlink_to(Path("aside").absolute())
    assert run("gate", "--base", "main")[2] == f"error: {place} is no plain file; run `dvc repro`\n"


def test_settings_that_the_report_does_not_hold_are_red(repository, run):
    """prune.A is edited and nothing is run again; of another profile nothing is asked."""
    chosen = Path("params.yaml").read_text()
    assert "  A: 1\n" in chosen
    Path("params.yaml").write_text(chosen.replace("  A: 1\n", "  A: 3\n"))
    status, out, _ = run("gate", "--base", "main")
    told = "params.yaml holds other settings than reports/digits/params.yaml; run `dvc repro`"
    assert status == 1 and f"- ✗ {told} (--allow settings).\n" in out
    assert run("gate", "--base", "main", "--allow", "settings")[0] == 0
    record(standing("A"), standing("B"))
    status, _, err = run("gate", "--recompute")
    assert status == 2 and err == (
        "left out, as made by other settings: A-standard\n"
        "error: --recompute needs a whole run: run `dvc repro attack@A-standard`\n"
    )


def test_results_that_the_records_do_not_show_are_red(repository, run):
    record(standing("A"), standing("B"))
    assert run("gate", "--recompute")[0] == 0
    place = Path("reports/digits/results.csv")
    table = read_results(whole := place.read_text(), "it").set_index("model", drop=False)
    table.loc["A-standard", ["ece", "bits", "against_dense"]] = [0.5, 4, "lower"]
    table.to_csv(place, index=False)
    assert run("gate")[0] == 0
    status, out, _ = run("gate", "--recompute")
    told = "A-standard: the records give another `ece`, `against_dense` and `bits`."
    assert status == 1 and f"- ✗ {told}" in out
    assert run("gate", "--recompute", "--allow", "A-standard")[0] == 0
    place.write_text(whole)
    forge()  # 35 % become 90 %
    assert run("gate")[0] == 0
    status, out, _ = run("gate", "--recompute")
    assert status == 1 and "| A-standard     | 100.0            | 100.0   | 0      | 35.0" in out
    assert "A-standard fell from 90.0 to 35.0 % robust" in out
    assert "- A-standard: the records give another `robust_accuracy`, " in out  # a warning
    moved = Path("records/digits/transfer.parquet").rename("transfer.parquet")  # fewer attacks
    status, _, err = run("gate", "--recompute")
    assert status == 2 and err == "error: --recompute needs a whole run: run `dvc repro transfer`\n"
    moved.rename("records/digits/transfer.parquet")
    shutil.copytree("reports/digits", "reports/cifar10")  # of another profile there are no records
    write(standing("A"), standing("B"))
    shutil.rmtree("metrics")
    status, out, _ = run("gate", "--recompute")
    assert status == 1 and "no records here show them (--allow cifar10)" in out
    assert run("gate", "--recompute", "--allow", "cifar10")[0] == 0
    chosen = Path("params.yaml").read_text()
    Path("params.yaml").write_text(chosen.replace("profile: digits", "profile: cifar10"))
    git(Path(), "commit", "-q", "-am", "another profile")
    Path("params.yaml").write_text(chosen)
    shutil.rmtree("reports/cifar10")
    status, out, _ = run("gate", "--recompute", "--base", "branch")
    assert status == 1 and "It was not the active profile" in out
    git(Path(), "rm", "-q", "--cached", "params.yaml")
    git(Path(), "commit", "-q", "-m", "no settings")
    status, _, err = run("gate", "--recompute", "--base", "branch")
    assert status == 2 and "--base branch has results, but no params.yaml beside them" in err


# --- the workflow --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def workflow():
    return YAML(typ="safe", pure=True).load(WORKFLOW.read_text(encoding="utf-8"))


def test_the_workflow_may_do_little_and_its_actions_are_pinned(workflow):
    assert set(workflow["on"]) == {"pull_request"} and workflow["permissions"] == {}
    jobs = workflow["jobs"]
    readers = ("measure", "wheel", "judge")
    assert all(jobs[name]["permissions"] == {"contents": "read"} for name in readers)
    assert jobs["comment"]["permissions"] == {"contents": "write", "pull-requests": "write"}
    taken = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert [one.split("@")[0] for one in taken] == ["actions/download-artifact"]  # and no code
    assert "!cancelled()" in jobs["comment"]["if"]  # a job that is skipped counts as passed
    steps = [step for job in jobs.values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert len(used) == 11 and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", u) for u in used)
    text, scripts = WORKFLOW.read_text(encoding="utf-8"), [s["run"] for s in steps if "run" in s]
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}
    assert not any("${{" in script for script in scripts)  # nothing is pasted into shell
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (?:-C base )?(\w+)$", "\n".join(scripts), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


BASE_TOOLS = """\
setup:
	mkdir -p .venv/bin
	printf '#!/bin/sh\\n[ "$$1" = report ] || PYTHONPATH="%s" exec "%s" -m advprune "$$@"\\n' \\
	"$$PWD/src" "{python}" > .venv/bin/advprune
	printf '#!/bin/sh\\necho "| $$* <img>"\\n' > .venv/bin/dvc
	chmod +x .venv/bin/*
"""


@pytest.mark.parametrize(("attack", "status"), [("none", 0), ("forged", 1), ("damaged", 2)])
def test_a_forged_row_is_red_whatever_else_is_edited(
    workflow, repository, tmp_path, attack, status
):
    """The workflow's own steps over a pull request that edits results, metrics, hashes in dvc.lock
    and the gate itself; what its run recorded are the models of main."""
    git(Path(), "checkout", "-q", "main")
    shutil.copytree(ROOT / "src", "src", ignore=shutil.ignore_patterns("__pycache__"))
    Path("Makefile").write_text(BASE_TOOLS.format(python=sys.executable))
    Path("dvc.lock").write_text("md5: 1")
    git(Path(), "add", ".")
    git(Path(), "commit", "-q", "-m", "code")
    git(Path(), "checkout", "-q", "-B", "branch")
    if attack == "forged":
        forge()
        Path("dvc.lock").write_text("md5: 2")
        for module in ("cli/gate.py", "report/gate.py", "cli/app.py"):
            Path("src/advprune", module).write_text("raise SystemExit(0)\n")
        Path("records").symlink_to("/etc")
        git(Path(), "add", ".")
        git(Path(), "commit", "-q", "-m", "an improvement")
    place = tmp_path / "workspace"
    place.mkdir()
    git(Path(), "clone", "-q", str(repository), str(place / "change"))
    steps = {step.get("name"): step for step in workflow["jobs"]["judge"]["steps"]}
    outputs = {"GITHUB_OUTPUT": str(tmp_path / "out"), "GITHUB_STEP_SUMMARY": str(tmp_path / "sum")}
    environment = os.environ | outputs | {"BASE": "origin/main", "PYTHONSAFEPATH": "1"}

    def step(name):
        command = ["bash", "-eo", "pipefail", "-c", steps[name]["run"]]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False)

    done = step("Set up the base's code in a folder and an environment of its own")
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:  # what the artifact of the first job holds
        patch.chdir(place / "change")
        record(standing("A"), standing("B"))
        if attack == "damaged":
            Path("runs/digits/A-standard/records.parquet").write_bytes(b"PAR1")
    done = step("Judge the records")
    assert done.returncode == (2 if status == 2 else 0), done.stderr
    if status == 2:
        return
    first, second, *body, last = (tmp_path / "out").read_text().splitlines()
    assert first == f"status={status}" and second == f"comment<<{last}"
    text = "\n".join(body)
    assert text.startswith("<!-- robustness -->\n## Robustness of `digits` against `origin/main`")
    assert "\n    | metrics diff origin/main <img>" in text
    if attack == "forged":
        assert "A-standard fell from 90.0 to 35.0 % robust" in text
        assert "\n     src/advprune/report/gate.py " in text


GH = """\
#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
*--paginate*) echo 5 ;;
*/git/blobs*) echo blob ;;
*/git/trees*) echo tree ;;
*/git/commits*) echo abc123 ;;
*PATCH*/git/refs*) exit 1 ;;
esac
"""


@pytest.mark.parametrize("figure", [True, False])
def test_the_comment_shows_the_trade_off_and_is_renewed(workflow, tmp_path, figure):
    """The step itself, with what GitHub's command would answer at the first push of #7."""
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    if figure:
        (tmp_path / "tradeoff.png").write_bytes(b"\x89PNG")
    (step,) = (s for s in workflow["jobs"]["comment"]["steps"] if "COMMENT" in s.get("env", {}))
    known = {
        "COMMENT": "<!-- robustness -->\nfine",
        "NUMBER": "7",
        "PAGES": "https://x.invalid/a/b",
    }
    known |= {"REPOSITORY": "repos/a/b", "ISSUES": "repos/a/b/issues", "LOG": str(tmp_path / "log")}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-eo", "pipefail", "-c", step["run"]]
    subprocess.run(command, cwd=tmp_path, env=os.environ | known | path, check=True)
    *_, last = asked = (tmp_path / "log").read_text().splitlines()
    assert last == "api --silent --method PATCH repos/a/b/issues/comments/5 -F body=@comment.md"
    comment = (tmp_path / "comment.md").read_text()
    shown = "\n![Robust accuracy over compression](https://x.invalid/a/b/raw/abc123/tradeoff.png)\n"
    assert comment == known["COMMENT"] + "\n" + (shown if figure else "")
    if figure:
        assert json.loads((tmp_path / "blob.json").read_text())["content"] == "iVBORw=="
        assert json.loads((tmp_path / "tree.json").read_text())["tree"][0]["sha"] == "blob"
        assert "api --silent repos/a/b/git/refs -f ref=refs/robustness/7 -f sha=abc123" in asked


# --- what is installed ---------------------------------------------------------------------------
def test_the_lock_names_a_hash_of_each_file_and_no_host():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    packages = re.sub(r" \\\n +", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    pin = r"[\w.-]+==[\w.]+( ; sys_platform == 'linux')?( --hash=sha256:[0-9a-f]{64})+"
    assert len(packages) > 100 and all(re.fullmatch(pin, package) for package in packages)
    assert "://" not in text and "--require-hashes" in (ROOT / "Makefile").read_text()
