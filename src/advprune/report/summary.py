"""The answer in a few sentences, each computed from the run."""

from collections import Counter
from collections.abc import Mapping

from advprune.evaluate.compare import NOT_SIGNIFICANT, UPPER_BOUND, Compared
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.robust import union
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
    if not run.absent:
        return ""
    lost = Counter(one.kind for one in run.absent)
    models, studies = len(run.params.leaderboard()), len(run.params.studies)
    parts = [f"{models - lost['model']} of {counted(models, 'model')}"]
    if studies:
        parts.append(f"{studies - lost['study']} of {counted(studies, 'study', 'studies')}")
    bare = [one.name for one in run.absent if one.kind == "transfer"]
    how = "" if not bare else f", {'some models' if all(bare) else 'all'} without transfer attacks"
    return f"Partial run: {listed(parts)}{how}. What is missing is listed under “Not run”."


def effect(run: Run) -> str:
    """How many compressed models differ from their dense network in distance. Robust accuracy at
    one budget says nothing where both models are at 0 or at 100 %."""
    tests = {model: against.distance for model, against in against_dense(run).items()}
    if not tests:
        return ""
    larger, smaller, same, bounds = (
        [model for model, test in tests.items() if test.outcome.partition(" (")[0] == outcome]
        for outcome in ("higher", "lower", NOT_SIGNIFICANT, UPPER_BOUND)
    )
    most = max((tests[model].difference for model in larger), default=0.0)
    kind = kind_of("median_distance")
    notes = [f"by at most {kind.text(most)}{kind.unit}"] if kind.text(most) != kind.text(0) else []
    notes += [
        f"{model.name} compared with {control}, a control of equal clean accuracy"
        for model in larger
        if (control := tests[model].control)
    ]
    void = len(tests) - len(larger) - len(smaller) - len(same) - len(bounds)
    rest = f" ({void} less accurate when clean: not compared)" if void else ""
    return (
        "Distance (the smallest change of an image that fools a model) is significantly larger "
        f"than the dense network's for {_these(run, larger, *notes, of=len(tests))}, smaller for "
        f"{_these(run, smaller)}, and not significantly different for {len(same) or 'none'}{rest}"
        f"{_uncounted(run, {model: tests[model] for model in bounds}, 'larger', 'smaller')}."
    )


def accuracy(run: Run) -> str:
    """How many compressed models differ from their dense network in robust accuracy."""
    tests = {model: against.robust for model, against in against_dense(run).items()}
    if not tests:
        return ""
    better = [model for model, test in tests.items() if test.better]
    worse = [model for model, test in tests.items() if test.differs and not test.better]
    bounds = {one: test for one, test in tests.items() if test.outcome.startswith(UPPER_BOUND)}
    found = (
        f"Robust accuracy at eps {budget(run.main_attack.eps)} is significantly higher than the "
        f"dense network's for {_these(run, better, of=len(tests))}, lower for {_these(run, worse)}"
        f"{_uncounted(run, bounds, 'higher', 'lower')}"
    )
    floor = [m for m, test in tests.items() if not test.first.hits and not test.second.hits]
    if not floor:
        return f"{found}."
    far = [against_dense(run)[model].distance for model in floor]
    larger, smaller = (sum(t.differs and t.better is up for t in far) for up in (True, False))
    return (
        f"{found}; both are 0 % for {len(floor)}, of which distances are larger for {larger} and "
        f"smaller for {smaller}."
    )


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
        return "No compressed model has a significantly lower clean accuracy." if tests else ""
    most = min(lost, key=lambda model: tests[model].difference)
    loss = kind_of("difference").text(tests[most].difference)
    sparsity = kind_of("sparsity").text(most.card["sparsity"])
    return (
        f"Clean accuracy is significantly lower for {len(lost)} of "
        f"{counted(len(tests), 'compressed model')}, most for {most.name}: {loss} points at "
        f"{sparsity} % sparsity."
    )


def transfer(run: Run) -> str:
    """Whether attacks on the dense network overstate the robustness of compressed models, beside
    all attacks on the models themselves: both may break what the other does not."""
    norm, eps = run.main_attack.norm, run.main_attack.eps
    targets = {one: one.transferred(run.main) for one in run.compressed}
    known = {one: there for one, there in targets.items() if len(there)}
    direct = {one: union(one.records, [], norm, eps) for one in known}
    tests = jointly({one: compared(run, there, direct[one]) for one, there in known.items()})
    higher = sum(test.better for test in tests.values())
    if not higher:
        none = "Transfer attacks overstate robustness significantly for no compressed model."
        return none if tests else ""
    model, test = max(tests.items(), key=lambda item: item[1].difference)
    total = counted(len(tests), "compressed model")
    return (
        f"Transfer attacks overstate robustness for {higher} of {total}, most for {model.name}: "
        f"{rate_text(test.first)} accuracy on images crafted on its dense network, but "
        f"{rate_text(test.second)} when attacked directly ({p_text(test.p)})."
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
        f"{len(run.models) - len(doubts)} of {total} passed every check. Robust accuracy and "
        f"distances of {_named(run, doubts) or counted(len(doubts), 'model')} are upper bounds."
    )


def published(run: Run) -> str:
    """How the published claims came out."""
    outcomes = Counter(one.outcome for one in judged(run))
    counts = listed([f"{outcomes[name]} {name}" for name in OUTCOMES])
    return f"Published claims: {counts}." if outcomes else ""


def _uncounted(run: Run, bounds: Mapping[Model, Compared], higher: str, lower: str) -> str:
    """The models that differ by an upper bound alone: their own, or that of what they are compared
    with."""
    own = [model for model, test in bounds.items() if test.direction > 0]
    others = [model for model in bounds if model not in own]
    far = "distances are only upper bounds", "robust accuracy is only an upper bound"
    whose = f"{'its' if len(own) == 1 else 'their'} {far[higher != 'larger']}"
    return "".join(
        f"; {_named(run, models) or counted(len(models), 'model')} also "
        f"appear{'s' * (len(models) == 1)} {word}, but {why}"
        for word, models, why in (
            (higher, own, whose),
            (lower, others, "compared with an upper bound only"),
        )
        if models
    )


def _named(run: Run, models: list[Model]) -> str:
    """Up to `NAMED` models by name, with their verdict if it is not reliable; of more, nothing."""
    levels = {model.name: run.verdict(model).level for model in models}
    names = [name if at == RELIABLE else f"the {at} {name}" for name, at in levels.items()]
    return listed(names) if len(models) <= NAMED else ""


def _these(run: Run, models: list[Model], *notes: str, of: int = 0) -> str:
    """`2 of 16 compressed models (A-standard and B-standard; a note)`, or `none`."""
    total = f" of {counted(of, 'compressed model')}" if of else ""
    aside = "; ".join(one for one in (_named(run, models), *notes) if one)
    return f"{len(models) or 'none'}{total}{f' ({aside})' if aside else ''}"
