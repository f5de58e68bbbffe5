"""The answer in a few sentences, each computed from the run."""

from collections.abc import Mapping

from advprune.evaluate.compare import Compared
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.verdict import LEVELS, PASS
from advprune.report.compared import against_dense, compared, jointly
from advprune.report.formats import budget, counted, levels, listed, p_text, percent, points, spell
from advprune.report.run import Model, Run

QUESTION = "What does compressing this network do to its adversarial robustness?"
NAMED = 4  # up to this many models are named one by one


def summary(run: Run) -> list[str]:
    """The sentences that the run allows: effect, dense networks, price, transfer, trust."""
    makers = (effect, accuracy, start, price, transfer, trust)
    return [sentence for make in makers if (sentence := make(run))]


def effect(run: Run) -> str:
    """How many compressed models differ from their dense network, in distance: robust accuracy at
    one budget says nothing where both models are at its floor or its ceiling."""
    tests = {model: against.distance for model, against in against_dense(run).items()}
    if not tests:
        return "No compressed model is part of this run."
    farther, nearer, same = (
        [model for model, test in tests.items() if test.outcome == outcome]
        for outcome in ("higher", "lower", "not significant")
    )
    void = len(tests) - len(farther) - len(nearer) - len(same)
    most = max((tests[model].difference for model in farther), default=0.0)
    by_most = f" (by at most {levels(most)}/255)" if farther else ""
    parts = [
        "The distance to a misclassification is significantly larger than the dense network's for "
        f"{_named(run, farther) or 'no compressed model'}{by_most}",
        f"smaller for {_named(run, nearer) or 'none'}",
    ]
    parts += [f"not significantly different for {len(same)} of {len(tests)}"] if same else []
    parts += [f"not compared for {void} (random, or less accurate when clean)"] if void else []
    return f"{listed(parts)} (Wilcoxon's test, Holm's correction)."


def accuracy(run: Run) -> str:
    """The same of robust accuracy at the budget."""
    tests = {model: against.robust for model, against in against_dense(run).items()}
    better, worse = _higher(tests), _lower(tests)
    floor = [m for m, test in tests.items() if not test.first.hits and not test.second.hits]
    if not tests:
        return ""
    parts = [
        f"At eps {budget(run.main_attack.eps)}, {_named(run, better) or 'no compressed model'} "
        f"{_is(better)} significantly more robust"
    ]
    parts += [f"{_named(run, worse)} {_is(worse)} less robust"] if worse else []
    parts += [f"for {len(floor)} of {len(tests)} both have 0 %"] if floor else []
    return f"{'; '.join(parts)} (McNemar's test, Holm's correction)."


def start(run: Run) -> str:
    """Clean and robust accuracy of each dense network."""
    setting = run.main_attack
    parts = [
        f"{dense.name} has {spell(clean_accuracy(dense.attack(run.main)))} clean and "
        f"{spell(remnant_accuracy(run.robust(dense)))} robust accuracy"
        for dense in run.roots
    ]
    return (
        f"Without compression, {listed(parts)} ({setting.norm}, eps {budget(setting.eps)}, "
        f"n = {run.n}; an image counts as robust only if no attack broke it)."
    )


def price(run: Run) -> str:
    """What compression costs in clean accuracy."""
    tests = {model: against.clean for model, against in against_dense(run).items()}
    lost = _lower(tests)
    if not lost:
        return "No compressed model has a significantly lower clean accuracy." if tests else ""
    model = min(lost, key=lambda one: tests[one].difference)
    verb = "loses" if len(lost) == 1 else "lose"
    return (
        f"{len(lost)} of {counted(len(tests), 'compressed model')} significantly {verb} clean "
        f"accuracy, {model.name} most: {points(tests[model].difference)} points at "
        f"{percent(model.card['sparsity'])} % sparsity."
    )


def transfer(run: Run) -> str:
    """Whether attacks on the dense network overstate the robustness of compressed models."""
    targets = {one: one.transferred(run.main) for one in run.compressed}
    tests = jointly(
        {one: compared(run, there, run.robust(one)) for one, there in targets.items() if len(there)}
    )
    higher = _higher(tests)
    if not higher:
        none = "Transfer attacks overstate robustness significantly for no compressed model."
        return none if tests else ""
    model, test = max(tests.items(), key=lambda item: item[1].difference)
    return (
        f"Transfer attacks overstate robustness for {len(higher)} of "
        f"{counted(len(tests), 'compressed model')}: {model.name} has {spell(test.first)} "
        f"accuracy on images crafted on its dense network, and {spell(test.second)} when "
        f"attacked directly ({p_text(test.p)})."
    )


def trust(run: Run) -> str:
    """How many robust accuracies passed every check."""
    doubts = [model for model in run.models if run.verdict(model).level != LEVELS[PASS]]
    total = counted(len(run.models), "robust accuracy", "robust accuracies")
    if not doubts:
        return f"All checks are passed for {total}."
    return (
        f"{len(run.models) - len(doubts)} of {total} passed every check; {_named(run, doubts)} "
        f"{_is(doubts)} in doubt and should be read as an upper bound."
    )


def _higher(tests: Mapping[Model, Compared]) -> list[Model]:
    return [model for model, test in tests.items() if test.better]


def _lower(tests: Mapping[Model, Compared]) -> list[Model]:
    return [model for model, test in tests.items() if test.differs and not test.better]


def _is(models: list[Model]) -> str:
    return "are" if len(models) > 1 else "is"


def _named(run: Run, models: list[Model]) -> str:
    """Models by name with their verdict where few, their number where many."""
    if len(models) > NAMED:
        return counted(len(models), "compressed model")
    levels = [(model.name, run.verdict(model).level) for model in models]
    return listed([n if level == LEVELS[PASS] else f"{n} ({level})" for n, level in levels])
