"""The gate: p-values worked out by hand, two branches of a real repository, and the workflow."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from dvc.cli.parser import get_main_parser
from planted import N, model, planted, run_of
from ruamel.yaml import YAML

from advprune.cli.app import app, main
from advprune.core.errors import UserError
from advprune.report.gate import Gate, Result, Side, judge, page, side_of
from advprune.report.results import read_results, results
from advprune.report.run import Model
from advprune.report.write import settings_of

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "robustness.yml"


def side(images: str | None = "same", verdict: str = "reliable", **robust: np.ndarray) -> Side:
    """A revision of models that withstand the suite on these images; images: their fingerprint,
    None where nothing is known image by image."""
    return Side(
        {
            name: Result(int(hits.sum()), len(hits), 0.9, verdict, images, hits if images else None)
            for name, hits in robust.items()
        }
    )


def p_of(gate: Gate) -> dict[str, float | None]:
    return {one.name: one.p for one in gate.rows}


def test_a_fall_on_the_same_images_is_judged_by_mcnemar() -> None:
    lost_6 = judge(side(A=planted(26)), side(A=planted(20)))
    assert p_of(lost_6) == {"A": 2 * 0.5**6}  # 6 images lost, none gained
    assert lost_6.failures == ["A fell from 65.0 to 50.0 % robust (p = 0.031)."]
    lost_5 = judge(side(A=planted(25)), side(A=planted(20)))
    assert p_of(lost_5) == {"A": 2 * 0.5**5} and lost_5.passed
    risen = judge(side(A=planted(20)), side(A=planted(26)))
    assert risen.passed and "▲" in page(risen, "G")
    stricter = judge(side(A=planted(26)), side(A=planted(20)), alpha=0.03)
    assert stricter.passed


def test_a_fall_of_distances_is_judged_where_robust_accuracy_is_at_its_floor() -> None:
    """All of 40 images are fooled before and after, each by a change half as large."""
    far = np.linspace(0.01, 0.1, N)
    one = side(A=np.zeros(N, bool)).results["A"]
    before, after = (Side({"A": replace(one, distances=size)}) for size in (far, far / 2))
    assert not judge(before, after).passed and judge(before, before).passed
    assert judge(after, before).passed
    (failure,) = judge(before, after).failures
    assert failure.startswith("A: the median distance went from 14/255 to 7.01/255")


def test_several_rows_are_corrected_together() -> None:
    before, after = side(A=planted(26), B=planted(9)), side(A=planted(20), B=planted(9))
    found = judge(before, after)
    assert p_of(found) == {"A": 4 * 0.5**6, "B": 1.0} and found.passed  # Holm: twice 2 / 64


def test_without_outcomes_of_each_image_the_rates_are_compared() -> None:
    four, none = np.ones(4, bool), np.zeros(4, bool)
    found = judge(side(None, A=four), side(None, A=none))
    (only,) = found.rows
    # Fisher: of all ways to choose 4 of 8, the two extreme ones.
    assert only.p == pytest.approx(2 / 70) and not only.paired and not found.passed
    assert "tested as two counts" in found.warnings[0] and "every model" in found.warnings[0]


def test_a_fall_is_found_on_more_images_than_a_rate_of_four_digits_tells_apart() -> None:
    """40 images of 26,032 fall and none rises: p = 2 / 2^40, whatever the rates round to."""
    before = np.random.default_rng(0).random(26032) < 0.5
    after = before.copy()
    after[np.flatnonzero(before)[:40]] = False
    found = judge(side(A=before), side(A=after))
    assert not found.passed and found.rows[0].paired
    assert found.rows[0].p == pytest.approx(2 * 0.5**40)


@pytest.mark.parametrize("after", [side("other", A=planted(20)), side(A=planted(20, 80))])
def test_outcomes_of_other_images_are_not_paired(after: Side) -> None:
    (only,) = judge(side(A=planted(26)), after).rows
    assert not only.paired and only.p is not None


def test_a_verdict_may_not_get_worse() -> None:
    order = ["reliable", "suspect", "broken"]
    for old, before in enumerate(order):
        for new, after in enumerate(order):
            found = judge(*(side(verdict=level, A=planted(9)) for level in (before, after)))
            assert found.passed == (new <= old)
            assert found.failures == ([] if new <= old else [f"A was {before} and is {after}."])


def test_rows_that_are_gone_or_new_are_named_in_a_stable_order() -> None:
    found = judge(
        side(B=planted(1), C=planted(1), Z=planted(1)),
        side(C=planted(1), B=planted(1), A=planted(1)),
        order=["C", "B", "missing"],
        allow=["Z"],
    )
    assert [one.name for one in found.rows] == ["C", "B", "A", "Z"] and found.passed
    assert found.warnings[:2] == ["No longer there: Z.", "New: A."]
    text = page(found, "Gate")
    assert text.startswith("## Gate: passed\n") and "| gone |" in text and "| new " in text


def test_other_settings_of_the_measurement_are_pointed_out() -> None:
    one, other = (replace(side(A=planted(9)), settings={"eps": e}) for e in (1, 2))
    for changed in (other, side(A=planted(9))):  # fail closed: also where nothing is known
        assert judge(one, changed).failures == [
            "The settings of data, seed or attacks differ (--allow settings)."
        ]
        assert judge(one, changed, allow=["settings"]).passed
    assert judge(one, one).passed and judge(side(A=planted(9)), one).passed
    for images, words in (("other", "Other images: A"), ("same", "Fewer images: A")):
        fewer = side(images, A=planted(9, N if images == "other" else N - 10))
        found = judge(side(A=planted(9)), fewer)
        assert found.failures == [f"{words} (--allow images)."]
    unknown = judge(side(A=planted(9)), side(verdict="fine <img src=x> @all", A=planted(9)))
    assert not unknown.passed and "<img" not in page(unknown, "Gate")


def test_outcomes_are_those_of_the_worst_case_and_come_back() -> None:
    whole = run_of(model("A", (4, 20, 4)))
    found = side_of(read_results(results(whole).to_csv(index=False), "here")).results["A-standard"]
    assert found.robust is not None and found.robust.tolist() == planted(4).tolist()
    assert (found.hits, found.n, found.verdict) == (4, N, "reliable")
    changed = replace(whole, clean_images=whole.clean_images + np.uint8(1))
    assert results(changed).images[0] != found.images


RESULTS_TEXT = results(run_of(model("A"))).to_csv(index=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged"),
        ("a,b\n1,2\n", "has no column model"),
        (RESULTS_TEXT.replace(",1111000", ",1112000"), "not 0 or 1 per image"),
        (RESULTS_TEXT.replace(",1111000", ",111000"), "not 0 or 1 per image"),
        (RESULTS_TEXT.replace(",1111000", ",1111100"), "another rate than its outcomes"),
        (RESULTS_TEXT.replace("A-standard", "dense-standard", 1), "named twice"),
        (RESULTS_TEXT[:900], "is damaged"),
    ],
)
def test_damaged_results_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_results(text, "here")


# --- a repository of its own ---------------------------------------------------------------------


def git(*command: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    subprocess.run(["git", *identity, *command], check=True, capture_output=True)


def standing(family: str, kept: int = 14, **more: Any) -> Model:
    """A model that keeps so many of N images under whatever is tried at its budget."""
    planted_here = {"carried": kept, "curve": (40, 20, kept, 0), "steps": (20, kept, kept)}
    return model(family, (kept, 24, kept), **(planted_here | more))


def write(*models: Model) -> None:
    """The files of a run that a repository holds, as summarize writes them."""
    whole, folder = run_of(*models), Path("reports/digits")
    folder.mkdir(parents=True, exist_ok=True)
    results(whole).to_csv(folder / "results.csv", index=False)
    for place in (folder, Path()):
        (place / "params.yaml").write_text(settings_of(whole.params))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with results on its main branch, on a branch of its own."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write(model("dense"), standing("A"), standing("B"))
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "results")
    git("checkout", "-q", "-b", "branch")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `advprune gate`."""
    sys.argv = ["advprune", "gate", *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_harmless_branch_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(model("dense"), standing("A", 13), standing("B", 16))
    status, out, _ = run(capsys, "--base", "main")
    assert status == 0 and "against `main`" in out and ": passed\n" in out
    lines = [line for line in out.splitlines() if line.startswith("| ") and "standard" in line]
    assert [line.split()[1] for line in lines] == [f"{f}-standard" for f in ("dense", "A", "B")]
    cells = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert cells[1:3] == ["100.0", "100.0"]
    assert cells[3].startswith("35.0 (") and cells[4].startswith("32.5 (")
    assert cells[5] == "1.00" and cells[9:] == ["reliable", "reliable", "="]
    assert "two counts" not in out and "measurement" not in out


def test_a_harmful_branch_fails(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(model("dense"), standing("A", 4), standing("B"))
    status, out, _ = run(capsys, "--base", "main")
    assert status == 1 and ": FAILED\n" in out
    # 10 images lost and none gained, of three models with two tests each: 5 * 2 / 1024, after
    # the distances of the same model.
    assert "- ✗ A-standard fell from 35.0 to 10.0 % robust (p = 0.0098)." in out
    assert "- ✗ A-standard: the median distance went from" in out and out.count("✗") == 3
    git("commit", "-q", "-am", "worse")
    assert run(capsys, "--base", "main")[0] == 1  # what counts is the working tree
    assert run(capsys, "--base", "branch")[0] == 0
    assert run(capsys, "--base", "main", "--alpha", "0.001")[0] == 0


def test_a_branch_that_is_no_longer_believed_fails(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = standing("A", curve=(40, 20, 14, 34))  # a larger budget does less harm
    write(model("dense"), hidden, standing("B"))
    status, out, _ = run(capsys)
    assert status == 1 and "- ✗ A-standard was reliable and is broken." in out


def test_a_model_may_vanish_only_if_that_is_allowed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(model("dense"), standing("A"))
    status, out, _ = run(capsys)
    assert status == 1 and "- ✗ B-standard is no longer there (--allow B-standard)." in out
    assert run(capsys, "--allow", "B-standard")[0] == 0


def test_every_profile_with_metrics_is_compared_and_metrics_may_not_contradict(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("metrics/cifar10/A-standard.json")
    place.parent.mkdir(parents=True)
    found = {"n": N, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "verdict": "reliable"}
    place.write_text(json.dumps(found))
    git("add", ".")
    git("commit", "-q", "-m", "another profile")
    for change, words in (
        ({"verdict": "broken"}, "A-standard was reliable and is broken"),
        ({"verdict": None}, "A-standard has no known verdict"),
        ({"robust_accuracy": None}, "A-standard is no longer there"),
    ):
        place.write_text(json.dumps(found | change))
        status, out, _ = run(capsys, "--base", "branch")
        assert status == 1 and words in out and "Robustness of `cifar10`" in out
    for change in ({"robust_accuracy": -1}, {"robust_accuracy": "much"}, {"n": 26032}):
        place.write_text(json.dumps(found | change))
        status, _, err = run(capsys, "--base", "branch")
        assert status == 2 and "metrics/cifar10/A-standard.json is damaged" in err
    place.write_text(json.dumps(found))
    forged = Path("metrics/digits/A-standard.json")
    forged.parent.mkdir()
    forged.write_text(json.dumps(found))
    assert "contradicts reports/digits/results.csv" in run(capsys, "--base", "branch")[2]


def test_a_base_without_results_compares_nothing_and_fails_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git("checkout", "-q", "--orphan", "empty")
    git("rm", "-rqf", "--cached", "reports")
    git("commit", "-q", "-m", "no results")
    status, out, _ = run(capsys, "--base", "empty")
    assert status == 0 and "- New: dense-standard, A-standard and B-standard." in out


def test_a_base_of_before_there_were_results_is_compared_by_its_metrics(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git("checkout", "-q", "--orphan", "old")
    git("rm", "-rqf", "--cached", "reports")
    found = {"n": N, "clean_accuracy": 1.0, "robust_accuracy": 0.9, "verdict": "reliable"}
    place = Path("metrics/digits/A-standard.json")
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(found))
    git("add", "metrics")
    git("commit", "-q", "-m", "metrics alone")
    place.unlink()
    status, out, _ = run(capsys, "--base", "old")
    assert status == 1 and "A-standard fell from 90.0 to 35.0 % robust" in out
    assert "tested as two counts" in out
    place.write_text("{")
    git("commit", "-q", "-am", "damaged")
    place.unlink()
    assert "old:metrics/digits/A-standard.json is damaged" in run(capsys, "--base", "old")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base", "nowhere"), "Needed a single revision"),
        (("--base=--output=x",), "Needed a single revision"),
        (("--alpha", "1"), "--alpha lies between 0 and 1 (got 1.0)"),
        (("--profile", "cifar10"), "no profile 'cifar10'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1
    assert not Path("x").exists()


def test_damaged_results_of_either_side_are_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("reports/digits/results.csv")
    place.write_text(place.read_text()[:400])
    status, out, err = run(capsys)
    assert status == 2 and out == "" and "reports/digits/results.csv is damaged" in err
    git("commit", "-q", "-am", "damaged")
    write(model("dense"), model("A"), model("B"))
    assert "branch:reports/digits/results.csv is damaged" in run(capsys, "--base", "branch")[2]
    place.unlink()
    assert "there are no results in reports/digits" in run(capsys)[2]


# --- the workflow --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(WORKFLOW.read_text(encoding="utf-8"))


def scripts(workflow: dict[str, Any]) -> list[str]:
    return [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]


def test_the_workflow_may_do_little_and_its_actions_are_pinned(workflow: dict[str, Any]) -> None:
    assert set(workflow["on"]) == {"pull_request"} and workflow["permissions"] == {}
    jobs = workflow["jobs"]
    assert jobs["measure"]["permissions"] == {"contents": "read"}
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    assert all("uses" not in step for step in jobs["comment"]["steps"])  # and no code of the branch
    used = [step["uses"] for step in jobs["measure"]["steps"] if "uses" in step]
    assert len(used) == 2 and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", u) for u in used)
    assert jobs["measure"]["steps"][1]["with"]["python-version"] == "3.11"
    text = WORKFLOW.read_text(encoding="utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}
    assert not any("${{" in script for script in scripts(workflow))  # nothing is pasted into shell


def test_the_commands_of_the_workflow_exist(workflow: dict[str, Any]) -> None:
    whole = "\n".join(scripts(workflow))
    for script in scripts(workflow):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (target,) = re.findall(r"^make (\w+)$", whole, re.MULTILINE)
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    ((name, option),) = re.findall(r"advprune (\w+) (--\w+)", whole)
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert option in {o for parameter in known.params for o in parameter.opts}
    (arguments,) = re.findall(r"dvc (metrics diff) \"\$BASE\" (--md)", whole)
    parsed = get_main_parser().parse_args([*arguments[0].split(), "main", arguments[1]])
    assert parsed.a_rev == "main"


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_comparing_step_hands_on_table_and_status(
    workflow: dict[str, Any], tmp_path: Path, status: int
) -> None:
    (step,) = [s for s in workflow["jobs"]["measure"]["steps"] if s.get("id") == "compare"]
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, text, code in (("advprune", "| gate |", status), ("dvc", "| metric |", 0)):
        (tools / name).write_text(f"#!/bin/sh\necho '{text}' \"$@\"\nexit {code}\n")
        (tools / name).chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    outputs = {"GITHUB_OUTPUT": str(tmp_path / "out"), "GITHUB_STEP_SUMMARY": str(tmp_path / "sum")}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env=os.environ | outputs | {"BASE": "origin/main"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == (status if status > 1 else 0), done.stderr
    if status > 1:
        return
    first, second, *body, last = (tmp_path / "out").read_text().splitlines()
    assert first == f"status={status}" and second == f"comment<<{last}"
    assert body[:2] == ["<!-- robustness -->", "| gate | gate --base origin/main"]
    assert "| metric | metrics diff origin/main --md" in body
    assert (tmp_path / "sum").read_text().splitlines() == body
