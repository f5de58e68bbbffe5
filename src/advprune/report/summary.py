"""The answer in five sentences, each computed from the study.

What a sentence is about may be missing from a run: then it says so, or is left out.
"""

from collections import Counter
from collections.abc import Callable

from advprune.evaluate.compare import Comparison, compare, corrected
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.verdict import LEVELS, PASS
from advprune.report.finding import spell
from advprune.report.study import Model, Study
from advprune.report.text import budget, count, listed, p_value, percent

QUESTION = "What does compressing this network do to its adversarial robustness?"
NAMED = 4  # so many models are named one by one


def summary(study: Study) -> list[str]:
    """The sentences that this study allows: the effect, from where, price, transfer, trust."""
    made: list[Callable[[Study], str]] = [effect, start, price, transfer, trust]
    return [sentence for make in made if (sentence := make(study))]


def group_of(study: Study, model: Model) -> str:
    """The group of `Study.groups` that a model is shown in: its base, or one of its own kind.

    Dense networks and the rounded ones beside them stand with their base.
    """
    if model.family in ("dense", "int8"):
        return model.base
    groups = [name for name, models in study.groups.items() if model in models]
    return groups[-1] if groups else model.base


def compressed(study: Study) -> list[Model]:
    """All models but the dense networks."""
    return [model for model in study.models if model.family != "dense"]


def label(study: Study, model: Model) -> str:
    """A model's family, with its base where there are several."""
    return model.name if len(study.params.bases) > 1 else model.family


def start(study: Study) -> str:
    """Clean and robust accuracy of the uncompressed network of each base."""
    setting, first = study.main_attack, study.dense(study.params.bases[0])
    n = len(first.attack(study.main))
    parts = [_fall(study, study.dense(base)) for base in study.params.bases]
    if len(parts) > 1:
        parts = [f"{f} ({b})" for b, f in zip(study.params.bases, parts, strict=True)]
    return (
        f"Uncompressed, on n = {n} images and in the worst case over the attacks of the suite "
        f"({setting.norm}, eps {budget(setting.eps)}), it falls {listed(parts)}."
    )


def _fall(study: Study, dense: Model) -> str:
    clean, robust = clean_accuracy(dense.attack(study.main)), remnant_accuracy(study.robust(dense))
    return f"from {spell(clean)} to {spell(robust)} accuracy"


def effect(study: Study) -> str:
    """How many compressed models differ from their dense network in robust accuracy."""
    tests = _tests(study, "adv")
    if not tests:
        return "No compressed model is part of this run."
    better = [model for model, test in tests.items() if test.better]
    worse = [model for model, test in tests.items() if test.differs and not test.better]
    void = sum(test.void for test in tests.values())
    same = len(tests) - len(better) - len(worse) - void
    parts = [
        f"{_some(study, better) if better else 'No compressed model'} {_is(better)} shown to be "
        "more robust than its uncompressed network"
    ]
    parts += [f"{_some(study, worse)} {_is(worse)} shown to be less robust"] if worse else []
    parts += [f"{void} cannot be compared, being at chance when clean"] if void else []
    parts += [f"for {same} of {len(tests)}{_kinds(study)} no difference is shown"]
    return f"{'; '.join(parts)} (McNemar on the same images, Holm's correction)."


def _kinds(study: Study) -> str:
    """How many compressed models there are of each group, in brackets."""
    found = Counter(group_of(study, model) for model in compressed(study))
    if len(found) < 2:
        return ""
    return f" ({listed([f'{found[group]} {group}' for group in study.groups if found[group]])})"


def _is(models: list[Model]) -> str:
    return "are" if len(models) > 1 else "is"


def _some(study: Study, models: list[Model]) -> str:
    """Models by name where they are few, and their number where they are many."""
    if len(models) > NAMED:
        return f"{len(models)} compressed models"
    return listed([_doubted(study, model) for model in models])


def _doubted(study: Study, model: Model) -> str:
    """A model's name, with the verdict in brackets where its number is not reliable."""
    level = study.verdict(model).level
    name = label(study, model)
    return name if level == LEVELS[PASS] else f"{name} ({level})"


def _tests(study: Study, side: str) -> dict[Model, Comparison]:
    """Each compressed model against its dense network, corrected base by base.

    side: adv for the worst case over the suite, clean.
    """
    found: dict[Model, Comparison] = {}
    for base in study.params.bases:
        models, dense = study.of(base)[1:], study.robust(study.dense(base))
        tests = [compare(study.robust(model), dense, side) for model in models]
        found |= dict(zip(models, corrected(tests), strict=True))
    return found


def price(study: Study) -> str:
    """What compression costs in clean accuracy."""
    tests = _tests(study, "clean")
    lost = {model: test for model, test in tests.items() if test.differs and test.difference < 0}
    if not tests:
        return ""
    if not lost:
        return "No loss of clean accuracy is shown for any compressed model."
    model, test = min(lost.items(), key=lambda item: item[1].difference)
    shown = "is shown" if len(lost) == 1 else "are shown"
    return (
        f"The price is clean accuracy: {len(lost)} of {count(len(tests), 'compressed model')} "
        f"{shown} to lose some, most {label(study, model)} with {100 * test.difference:+.1f} "
        f"points ({percent(model.card['sparsity'])} % of its parameters are zero)."
    )


def transfer(study: Study) -> str:
    """Whether images of the dense network flatter the compressed models."""
    heard = [m for m in compressed(study) if (f"dense-{m.base}", study.main) in m.received]
    if not heard:
        return ""
    tests = {m: compare(m.transferred(study.main), study.robust(m)) for m in heard}
    model, test = max(tests.items(), key=lambda item: item[1].difference)
    if not test.differs:
        return (
            f"Images crafted on the dense network do as much harm to "
            f"{count(len(heard), 'compressed model')} as attacking them does: no difference is "
            f"shown."
        )
    return (
        "What looks like protection is an attack on the wrong network: of images crafted on the "
        f"dense one, {label(study, model)} keeps {spell(test.first)}, and attacked itself "
        f"{spell(test.second)} ({p_value(test.p)})."
    )


def trust(study: Study) -> str:
    """How many of the numbers passed every check."""
    doubts = [m for m in study.models if study.verdict(m).level != LEVELS[PASS]]
    total = count(len(study.models), "robust accuracy", "robust accuracies")
    if not doubts:
        return f"Every automatic check was passed by {'all ' * (len(study.models) > 1)}{total}."
    verb = "is" if len(doubts) == 1 else "are"
    return (
        f"{len(study.models) - len(doubts)} of {total} passed every automatic check; "
        f"{_some(study, doubts)} {verb} in doubt, and what is left there is an upper bound."
    )
