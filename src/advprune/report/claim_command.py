"""The shortest command that adds to a run what a claim lacks."""

from functools import cache

from advprune.core.claims import Claim
from advprune.core.params import DENSE, FILE, Params, load
from advprune.report.run import Run


def command(run: Run, claim: Claim) -> str:
    """By the run's own settings where they declare what is absent, else by the claim's.

    The last stages run by themselves: with what they depend on, they would make the whole run.
    """
    if claim.run:
        return claim.run
    params, stages = _load(run.folder / claim.params), stages_of(run.params, claim)
    same, absent = params.profile == run.params.profile, {(k, n) for k, n, _ in run.absent}
    lacking = {key: stage for key, stage in stages.items() if key in absent}
    declared = all(stages.values()) and (lacking or any(kind == "transfer" for kind, _ in absent))
    if not declared:
        lacking = stages = stages_of(params, claim)
        if same:  # what there is need not be named again
            has = {("model", model.name) for model in run.models}
            lacking = {key: stage for key, stage in stages.items() if key not in has} or stages
    steps = [f"cp {claim.params} {FILE}"] if same or not declared else []
    steps += [f"dvc repro {' '.join(lacking.values())}"] if lacking else []
    return " && ".join([*steps, "dvc repro -s transfer summarize"])


def stages_of(params: Params, claim: Claim) -> dict[tuple[str, str], str]:
    """The stages that record a claim's model and control, and the dense networks that a report
    needs, by what they add: a `model` or a `study` and its name. Empty: it is not declared."""
    found: dict[tuple[str, str], str] = {}
    names = {claim.model, claim.control} - ({DENSE} if claim.study == "seeds" else set())
    for name in sorted(names, key=[claim.model, claim.control].index):
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
    return found


_load = cache(load)
