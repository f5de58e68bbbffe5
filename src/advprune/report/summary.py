"""The answer in a few sentences, each computed from the run."""

from collections import Counter

from advprune.evaluate.compare import NOT_SIGNIFICANT
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import median_distance
from advprune.evaluate.verdict import RELIABLE
from advprune.report.formats import budget, counted, kind_of, listed, p_text, rate_text
from advprune.report.run import Model, Run
from advprune.report.sections.claims import OUTCOMES, judged
from advprune.report.tables import against_dense, compared, jointly

QUESTION = "What does compressing this network do to its adversarial robustness?"
OF_ONE = "How robust is this network, and can the number be believed?"
NAMED = 4  # more models than this are only counted


def summary(run: Run) -> list[str]:
    """The sentences that the run allows: what is missing, what changed, and what to believe."""
    makers = (scope, effect, accuracy, start, price, transfer, trust, published)
    return [sentence for make in makers if (sentence := make(run))]


def scope(run: Run) -> str:
    """How much of what the settings declare has been run."""
    lost = Counter(one.kind for one in run.absent)
    shares = {
        "models": (len(run.params.leaderboard()), lost["model"]),
        "studies": (len(run.params.studies), lost["study"]),
    }
    parts = [f"{n - without} of {n} {what}" for what, (n, without) in shares.items() if n]
    bare = ", some without transfer attacks" * (lost["transfer"] > 0)
    told = f"Partial run: {listed(parts)}{bare}. What is missing is listed under “Not run”."
    return told if run.absent else ""


def effect(run: Run) -> str:
    """How many models differ from their dense network in distance. Robust accuracy at
    one budget says nothing where both models are at 0 or at 100 %."""
    what = "Distance (the smallest change of an image that fools a model)"
    return _counted(run, f"{what} is significantly", "distance", "larger", "smaller", ".")


def accuracy(run: Run) -> str:
    """How many models differ from their dense network in robust accuracy."""
    against = against_dense(run).values()
    floor = [one for one in against if not one.robust.first.hits and not one.robust.second.hits]
    larger, smaller = (
        sum(one.distance.differs and one.distance.better is up for one in floor)
        for up in (True, False)
    )
    end = (
        f"; both are 0 % for {len(floor)}, of which distances are larger for {larger} and smaller "
        f"for {smaller}."
    )
    what = f"Robust accuracy at eps {budget(run.main_attack.eps)} is significantly"
    return _counted(run, what, "robust", "higher", "lower", end if floor else ".")


def _counted(run: Run, what: str, test: str, up: str, down: str, end: str) -> str:
    """For how many models a test of `Against` shows a difference from their dense
    network, in either direction, and for how many none or nothing; empty without models."""
    tests = {model: getattr(one, test) for model, one in against_dense(run).items()}
    above = [model for model, one in tests.items() if one.better]
    below = [model for model, one in tests.items() if one.differs and not one.better]
    same = [
        model
        for model, one in tests.items()
        if one.outcome.startswith((NOT_SIGNIFICANT, "equivalent"))
    ]
    left = [model for model in tests if model not in (*above, *below, *same)]
    parts = [
        f"{up} than the dense network's for {len(above) or 'none'} of "
        f"{counted(len(tests), 'other model')}{_named(run, above)}",
        f"{down} for {len(below) or 'none'}{_named(run, below)}",
        f"not significantly different for {len(same) or 'none'}",
    ]
    if left:
        why = "as an upper bound or at lower clean accuracy"
        parts.append(f"undecided, {why}, for {len(left)}{_named(run, left)}")
    beside = {one.name: tests[one].control for one in above if tests[one].control}
    if beside:
        pairs = listed([f"{model} compared with {control}" for model, control in beside.items()])
        parts[0] += f" ({pairs}, of equal clean accuracy)"
    return f"{what} {listed(parts)}{end}" if tests else ""


def start(run: Run) -> str:
    """Clean and robust accuracy of each dense network; of one alone its distance as well."""
    setting, alone, kind = run.main_attack, len(run.models) == 1, kind_of("median_distance")
    parts = []
    for dense in run.roots:
        clean, robust = clean_accuracy(dense.attack(run.main)), remnant_accuracy(run.robust(dense))
        name = "The network" if alone else dense.name
        parts.append(f"{name} has {rate_text(clean)} clean and {rate_text(robust)} robust accuracy")
    before = "Without compression, " if run.compressed else ""
    found = (
        f"{before}{'; '.join(parts)} ({setting.norm}, eps {budget(setting.eps)}, "
        f"n = {run.n}; an image counts as robust only if no attack broke it)."
    )
    if not alone:
        return found
    median, low, high = map(kind.text, median_distance(run.distances(run.models[0])))
    return (
        f"{found} Half of the images are fooled by a change of at most {median}{kind.unit} "
        f"({low}–{high} at 95 %)."
    )


def price(run: Run) -> str:
    """What compression costs in clean accuracy."""
    tests = {model: against.clean for model, against in against_dense(run).items()}
    lost = [model for model, test in tests.items() if test.differs and not test.better]
    if not lost:
        return "No other model has a significantly lower clean accuracy." if tests else ""
    most = min(lost, key=lambda model: tests[model].difference)
    loss = kind_of("difference").text(tests[most].difference)
    sparsity = kind_of("sparsity").text(most.card["sparsity"])
    return (
        f"Clean accuracy is significantly lower for {len(lost)} of "
        f"{counted(len(tests), 'other model')}, most for {most.name}: {loss} points at "
        f"{sparsity} % sparsity."
    )


def transfer(run: Run) -> str:
    """Whether the main attack on the dense network overstates the robustness of other models,
    beside the same attack on the models themselves."""
    targets = {one: one.transferred(run.main) for one in run.compressed}
    known = {one: there for one, there in targets.items() if len(there)}
    direct = {one: one.attack(run.main) for one in known}
    tests = jointly({one: compared(run, there, direct[one]) for one, there in known.items()})
    higher = sum(test.better for test in tests.values())
    if not higher:
        none = "Transfer attacks overstate robustness significantly for no other model."
        return none if tests else ""
    model, test = max(tests.items(), key=lambda item: item[1].difference)
    total = counted(len(tests), "other model")
    return (
        f"Transfer attacks overstate robustness for {higher} of {total}, most for {model.name}: "
        f"{rate_text(test.first)} accuracy on images that {run.main} crafts on its dense network, "
        f"but {rate_text(test.second)} when {run.main} attacks it directly ({p_text(test.p)})."
    )


def trust(run: Run) -> str:
    """How many robust accuracies passed every check."""
    doubts = [model for model in run.models if run.in_doubt(model)]
    if len(run.models) == 1 and doubts:
        verdict = run.verdict(doubts[0])
        reasons = "; ".join(f"{check.name}: {check.reason}" for check in verdict.against)
        return f"The robust accuracy is {verdict.level}, an upper bound at most ({reasons})."
    total = counted(len(run.models), "robust accuracy", "robust accuracies")
    if not doubts:
        return f"{f'All {total}' if run.compressed else 'The robust accuracy'} passed every check."
    return (
        f"{len(run.models) - len(doubts)} of {total} passed every check; robust accuracy and "
        f"distances of the rest are upper bounds{_named(run, doubts)}."
    )


def published(run: Run) -> str:
    """How the published claims came out."""
    outcomes = Counter(one.outcome for one in judged(run))
    counts = listed([f"{outcomes[name]} {name}" for name in OUTCOMES])
    return f"Published claims: {counts}." if outcomes else ""


def _named(run: Run, models: list[Model]) -> str:
    """` (A and the suspect B)`; empty of none, and of more than `NAMED`."""
    levels = {model.name: run.verdict(model).level for model in models[: NAMED + 1]}
    names = [name if at == RELIABLE else f"the {at} {name}" for name, at in levels.items()]
    return f" ({listed(names)})" if 0 < len(names) <= NAMED else ""
