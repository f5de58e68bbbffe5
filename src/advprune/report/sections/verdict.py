"""Whether each robust accuracy can be believed: checks on the records of every model, and the one
that models of studies go through as well."""

import json
from pathlib import Path

import pandas as pd

from advprune.evaluate.verdict import PASS, RELIABLE, beside_one_step
from advprune.report.formats import counted, listed, percent
from advprune.report.section import Part, Parts, Run, section
from advprune.report.tables import columns, explained, rated

CALIBRATION = Path("bench/verdict.json")
HIDDEN = 0.05  # of the images: a trick that hides no more masks nothing


@section("Verdict", order=20)
def verdict(run: Run) -> Parts:
    """The checks that are not passed, how often each check is passed, and all figures."""
    checks = pd.DataFrame(
        {"model": model.name, "verdict": run.verdict(model).level} | vars(check)
        for model in run.models
        for check in run.verdict(model).checks
    ).rename(columns={"name": "check"})
    against = checks[checks.outcome != PASS]
    yield Part(
        "Verdict",
        f"{len(checks) - len(against)} of {counted(len(checks), 'check')} on "
        f"{counted(len(run.models), 'model')} passed. A check in doubt makes a robust accuracy "
        f"suspect, a failed one makes it broken. {calibration(run.folder / CALIBRATION)}".strip(),
        against if len(against) else None,
    )
    if len(against):
        tally = pd.crosstab(checks.check, checks.outcome).reindex(checks.check.unique())
        yield Part("By check", table=tally.rename_axis(columns=None).reset_index())
    every = checks.pivot_table("figure", "model", "check", aggfunc="; ".join, sort=False)
    every = every.rename_axis(columns=None).reset_index()
    yield Part("The figures of all checks", table=every, folded=True)


def calibration(path: Path) -> str:
    """How often the verdict is wrong, as bench/verdict.py measured it; empty where not known."""
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    passed, wrong, deceived, alarmed = (
        f"{one['hits']} of {one['n']} ({percent(one['rate_low'])}–{percent(one['rate_high'])} %)"
        for one in (found[f"false_{name}"] for name in ("pass", "number", "pass_suite", "alarm"))
    )
    planted = [one for one in found["models"] if one.get("hidden", 0) > HIDDEN]
    names = [one["name"] for one in planted if one["level"] == RELIABLE]
    which = listed([name.replace(", ", " on dense-") for name in names])
    return (
        f"Error rates on planted models ({CALIBRATION}: networks of the digits at that profile's "
        f"budget, {found['images']} images each; exact 95 % intervals). Of masked models, whose "
        f"trick hides more than 5 points from the main attack, {passed} are called reliable"
        f"{f', namely {which}' if which else ''}; {wrong} are called reliable with a robust "
        "accuracy more than 5 points too high. Of models that hide as much from all gradient "
        f"attacks of the suite, {deceived} are called reliable. Of honest models, {alarmed} are "
        "called suspect or broken."
    )


def iterative(records: pd.DataFrame, *model: str) -> Parts:
    """Which iterative attacks fail the check beside FGSM on models of a study, which the columns
    `model` tell apart; nothing where no single step was run."""
    tests = {
        (", ".join(map(str, name)), *key): test
        for name, own in records.groupby([*model], sort=False)
        for key, test in beside_one_step(own).items()
    }
    failed = [
        dict(zip(("model", "attack", "eps"), key, strict=True))
        | rated("accuracy:iterative", test.first)
        | rated("accuracy:one step", test.second)
        | columns(test)
        for key, test in tests.items()
        if test.better
    ]
    if tests:
        yield Part(
            "Iterative attacks beside FGSM",
            "An iterative attack that does significantly less harm than one step of the same "
            f"budget has failed: its result says nothing about the model. {len(failed)} of "
            f"{counted(len(tests), 'comparison')} failed this check (McNemar). "
            f"{explained('all attacks on a model')}",
            pd.DataFrame(failed) if failed else None,
        )
