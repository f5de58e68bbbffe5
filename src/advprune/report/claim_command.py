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
    stages, absent = stages_of(run.params, claim), {(one.kind, one.name) for one in run.absent}
    lacking = [stage for key, stage in stages.items() if key in absent]
    if all(stages.values()) and (lacking or any(kind == "transfer" for kind, _ in absent)):
        return _repro(lacking)
    params = _load(run.folder / claim.params)
    stages = stages_of(params, claim)
    if params.profile == run.params.profile:  # what there is need not be named again
        has = {("model", model.name) for model in run.models}
        stages = {key: stage for key, stage in stages.items() if key not in has} or stages
    return f"cp {claim.params} {FILE} && {_repro(list(stages.values()))}"


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


def _repro(stages: list[str]) -> str:
    first = f"dvc repro {' '.join(stages)} && " if stages else ""
    return f"{first}dvc repro -s transfer summarize"


_load = cache(load)
