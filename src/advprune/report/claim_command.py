"""The shortest command that makes the models and the control of a claim, and judges it."""

from functools import cache

from advprune.core.claims import Claim
from advprune.core.params import DENSE, FILE, Params, load
from advprune.report.run import Run


def command(run: Run, claim: Claim, is_tested: bool) -> str:
    """By the run's own settings where it was tested or they declare what the run lacks, else by
    the register's. The last stages run alone: with what they depend on, they are the whole run."""
    if claim.run:
        return claim.run
    own, name = run.params, run.params.profile
    stages, file = stages_of(own, claim), f"reports/{name}/{FILE}"
    lacks = any(kind == "transfer" or (kind, one) in stages for kind, one, _ in run.absent)
    if not (is_tested or (lacks and all(stages.values()))):
        stages, file = stages_of(_load(run.folder / claim.params), claim), claim.params
    made = f"dvc repro {' '.join(stages.values())}"
    return f"cp {file} {FILE} && {made} && dvc repro -s transfer summarize"


def stages_of(params: Params, claim: Claim) -> dict[tuple[str, str], str]:
    """The stages that record a claim's model and control, and the dense networks that a report
    needs, by what they add: a `model` or a `study` and its name. Empty: it is not declared."""
    found: dict[tuple[str, str], str] = {}
    names = [claim.model, claim.control]
    for name in names if claim.study != "seeds" else (one for one in names if one != DENSE):
        what, stage, of = ("model", name), "", name
        if claim.study or claim.metric == "flips":
            for key, study in params.studies.items():
                named = study.settings.get("points" if claim.study == "seeds" else "members", {})
                flips = (study.study, study.of) == ("bitflip", name) and not claim.study
                if flips or (study.study == claim.study and name in named):
                    what, stage, of = ("study", key), f"study@{key}", study.of
                    break
        elif name in params.models:
            stage = f"attack@{name}"
        if (stage and of in params.models) or name in params.dense():
            root = params.root(of)
            found["model", root] = f"attack_dense@{root.removeprefix(f'{DENSE}-')}"
        if name not in params.dense() or what[0] == "study":
            found[what] = stage
    if claim.matched:  # the control is the best matched of a study's settings as well
        some = (k for k, s in params.studies.items() if s.study == "compression")
        found |= {("study", key): f"study@{key}" for key in some}
    return found


_load = cache(load)
