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
from planted import N, model, planted, study
from ruamel.yaml import YAML

from advprune.cli.app import app, main
from advprune.core.errors import UserError
from advprune.evaluate.statistics import rate
from advprune.report.gate import Gate, Side, judge, page
from advprune.report.outcomes import Outcomes, outcome_table, read_outcomes
from advprune.report.study import Model
from advprune.report.write import settings_of

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "robustness.yml"


def row(robust: np.ndarray, verdict: str = "reliable", clean: float = 0.9) -> dict[str, Any]:
    """The metrics that the gate reads, of a model that stands on these images."""
    found = {"n": len(robust), "clean_accuracy": clean, "verdict": verdict}
    return found | rate(robust).columns("robust_accuracy")


def side(images: str | None = "same", **rows: np.ndarray) -> Side:
    """A revision of reliable models; without `images` nothing is known image by image."""
    metrics = {name: row(robust) for name, robust in rows.items()}
    known = {name: Outcomes(images, robust) for name, robust in rows.items()} if images else {}
    return Side(metrics, known)


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
    assert "tested as two rates" in found.warnings[0] and "every row" in found.warnings[0]


@pytest.mark.parametrize("why", ["other images", "stale outcomes", "other number"])
def test_outcomes_that_do_not_belong_together_are_not_paired(why: str) -> None:
    before, after = side(A=planted(26)), side(A=planted(20))
    if why == "other images":
        after = side("other", A=planted(20))
    elif why == "stale outcomes":
        after = replace(after, outcomes={"A": Outcomes("same", planted(21))})
    else:
        after = side(A=planted(20, 80))
    (only,) = judge(before, after).rows
    assert not only.paired and only.p is not None


def test_a_verdict_may_not_get_worse() -> None:
    order = ["reliable", "suspect", "broken"]
    for old, before in enumerate(order):
        for new, after in enumerate(order):
            sides = [Side({"A": row(planted(9), level)}) for level in (before, after)]
            found = judge(*sides)
            assert found.passed == (new <= old)
            assert found.failures == ([] if new <= old else [f"A was {before} and is {after}."])


def test_metrics_of_long_ago_are_shown_and_not_judged() -> None:
    old = Side({"A": {"n": N, "clean_accuracy": 0.9, "remnant_accuracy": 0.5}})
    for found in (judge(old, side(A=planted(0))), judge(side(A=planted(9)), old)):
        assert found.passed and p_of(found) == {"A": None}
        assert "| A " in page(found, "G")


def test_rows_that_are_gone_or_new_are_named_in_a_stable_order() -> None:
    found = judge(
        side(B=planted(1), C=planted(1), Z=planted(1)),
        side(C=planted(1), B=planted(1), A=planted(1)),
        order=["C", "B", "missing"],
    )
    assert [one.name for one in found.rows] == ["C", "B", "A", "Z"] and found.passed
    assert found.warnings[:2] == ["No longer there: Z.", "New: A."]
    text = page(found, "Gate")
    assert text.startswith("## Gate: passed\n") and "| gone |" in text and "| new " in text


def test_other_settings_of_the_measurement_are_pointed_out() -> None:
    one, other = (replace(side(A=planted(9)), settings={"eps": e}) for e in (1, 2))
    assert any("be the measurement" in line for line in judge(one, other).warnings)
    assert judge(one, one).warnings == [] == judge(one, side(A=planted(9))).warnings


def test_outcomes_are_those_of_the_worst_case_and_come_back() -> None:
    whole = study(model("A", (4, 20, 4)))
    table = outcome_table(whole)
    assert list(table.model) == ["dense-standard", "A-standard"]
    assert table.robust[1] == "1111" + "0" * (N - 4)
    assert table.images.nunique() == 1
    found = read_outcomes(table.to_csv(index=False), "here")
    assert found["A-standard"].robust.tolist() == planted(4).tolist()
    assert found["A-standard"].images == table.images[0]
    changed = replace(whole, clean_images=whole.clean_images + np.uint8(1))
    assert outcome_table(changed).images[0] != table.images[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no table of outcomes"),
        ("a,b\n1,2\n", "its columns are"),
        ("model,images,robust\nA,0a,0120\n", "outcomes of A are not all 0 or 1"),
        ("model,images,robust\nA,0a,\n", "outcomes of A"),
    ],
)
def test_a_damaged_table_of_outcomes_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_outcomes(text, "here")


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
    whole = study(*models)
    for one in whole.models:
        place = Path("metrics/digits", f"{one.name}.json")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(whole.metrics(one)))
    folder = Path("reports/digits")
    folder.mkdir(parents=True, exist_ok=True)
    outcome_table(whole).to_csv(folder / "outcomes.csv", index=False)
    (folder / "params.yaml").write_text(settings_of(whole))
    Path("params.yaml").write_text(settings_of(whole))


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
    assert cells[5:] == ["1", "reliable", "reliable", "="]
    assert "two rates" not in out and "measurement" not in out


def test_a_harmful_branch_fails(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(model("dense"), standing("A", 4), standing("B"))
    status, out, _ = run(capsys, "--base", "main")
    assert status == 1 and ": FAILED\n" in out
    # 10 images lost and none gained, of three rows: 3 * 2 / 1024.
    assert "- ✗ A-standard fell from 35.0 to 10.0 % robust (p = 0.0059)." in out
    assert out.count("✗") == 2
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


def test_a_row_that_vanished_is_a_warning(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("metrics/digits/B-standard.json").unlink()
    status, out, _ = run(capsys)
    assert status == 0 and "- No longer there: B-standard." in out


def test_a_base_without_results_compares_nothing_and_fails_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git("checkout", "-q", "--orphan", "empty")
    git("rm", "-rqf", "--cached", "metrics", "reports")
    git("commit", "-q", "-m", "no results")
    status, out, _ = run(capsys, "--base", "empty")
    assert status == 0 and "- New: dense-standard, A-standard and B-standard." in out


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


def test_damaged_metrics_are_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("metrics/digits/A-standard.json")
    place.write_text(place.read_text()[:40])
    status, _, err = run(capsys)
    assert status == 2 and "metrics/digits/A-standard.json is damaged" in err
    git("commit", "-q", "-am", "damaged")
    write(model("dense"), model("A"), model("B"))
    assert "branch:metrics/digits/A-standard.json is damaged" in run(capsys, "--base", "branch")[2]
    for path in Path("metrics/digits").iterdir():
        path.unlink()
    assert "there are no metrics in metrics/digits" in run(capsys)[2]


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
