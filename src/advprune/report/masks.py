"""Compression by masks in the report: curves, variants of GAP, and what is left of its claim.

Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using Greedy
Adversarial Pruning (2022), say that GAP's networks resist images crafted on their uncompressed
parents. What decides whether that says anything about GAP: random pruning at the same clean
accuracy, a network that nobody compressed, the model attacked itself, and other sources.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from advprune.core.params import CARRIED
from advprune.evaluate.compare import ALPHA, Comparison, at_chance, compare, right
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate, mcnemar, rate
from advprune.report.drawing import (
    SIZES,
    band,
    legend,
    panels,
    percent_axis,
    percents,
    style,
    title,
)
from advprune.report.finding import Finding, paragraphs, spell
from advprune.report.study import Model, Point, Study
from advprune.report.text import (
    budget,
    count,
    listed,
    p_value,
    percent,
    setting_text,
    with_interval,
)
from advprune.report.transfers import everything, exchanged, least, own_networks, stands

GREEDY = ("GAP_global", "GAP_layer")
CONTROL = "random"
ANSWERS = ("better", "worse", "same")  # what a comparison with the control can show
INERT = 0.05  # share of parameters without effect that is worth a word
AMOUNTS = ("compression", "sparsity", "images", "finetune")  # keys that make no variant


@dataclass(frozen=True, eq=False)
class Subject:
    """A compressed network, kept as a model or passing as a point of a curve.

    white: its records under the main attack. carried: those on images from the dense network, by
    attack.
    """

    family: str
    setting: dict[str, Any]
    sparsity: float
    white: pd.DataFrame
    carried: dict[str, pd.DataFrame]

    @property
    def amount(self) -> float | None:
        """Its compression, where that is how it was set."""
        return self.setting.get("compression")

    @property
    def words(self) -> str:
        """Its setting in words."""
        rest = {key: value for key, value in self.setting.items() if key != "finetune"}
        tuned = self.setting.get("finetune")
        ending = f"{count(tuned['epochs'], 'epoch')} of fine-tuning" if tuned else "not fine-tuned"
        return f"{setting_text(rest)}, {ending}"


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a compression; keys without a value are left out."""
    mapping = setting if isinstance(setting, dict) else {"compression": setting}
    return {key: value for key, value in mapping.items() if value is not None}


def of_model(study: Study, model: Model) -> Subject:
    """A kept model as a subject."""
    carried = {attack: model.transferred(attack) for attack in exchanged(study)}
    setting = as_mapping(model.card["setting"])
    white = model.attack(study.main)
    return Subject(model.family, setting, model.card["sparsity"], white, carried)


def of_point(study: Study, point: Point) -> Subject:
    """A point of a curve as a subject."""
    carried = {attack: point.attack(CARRIED + attack) for attack in exchanged(study)}
    setting = as_mapping(point.setting)
    return Subject(point.family, setting, point.sparsity, point.attack(study.main), carried)


def masked(study: Study) -> list[Model]:
    """The models with masks, on the first base."""
    return [m for m in study.of(study.params.bases[0]) if m.family in study.params.masks]


def subjects(study: Study, family: str) -> list[Subject]:
    """All that is known of a family, on the same images: its model, then its curve's points."""
    study, base = study.swept, study.params.bases[0]
    kept = [of_model(study, model) for model in masked(study) if model.family == family]
    return kept + [of_point(study, point) for point in study.compressed(family, base)]


def _is_plain(subject: Subject) -> bool:
    """Whether a subject is its scheme as it stands, and not a variant of GAP."""
    return subject.family not in GREEDY or set(subject.setting) <= set(AMOUNTS)


# --- tables --------------------------------------------------------------------------------------


def mask_table(study: Study) -> pd.DataFrame:
    """A row a scheme and setting: size, clean accuracy, white-box beside transfer."""
    families = dict.fromkeys([*study.params.masks, *study.params.compression])
    found = [one for family in families for one in subjects(study, family) if _is_plain(one)]
    return pd.DataFrame(_row(study, subject) for subject in found)


def variant_table(study: Study) -> pd.DataFrame:
    """The variants of GAP beside the scheme as it stands, as much and as tuned."""
    rows = []
    for family in GREEDY:
        found = subjects(study, family)
        variants = [one for one in found if not _is_plain(one)]
        kinds = [_amount(one) for one in variants]
        plain = [one for one in found if _is_plain(one) and _amount(one) in kinds]
        rows += [_row(study, one) for one in [*plain, *variants]]
    return pd.DataFrame(rows)


def _amount(subject: Subject) -> tuple[Any, ...]:
    """How much was removed and how it was trained afterwards."""
    return tuple(subject.setting.get(key) for key in ("compression", "sparsity", "finetune"))


def _row(study: Study, subject: Subject) -> dict[str, str]:
    row = {
        "family": subject.family,
        "setting": subject.words,
        "sparsity %": percent(subject.sparsity),
        "clean %": _shown(clean_accuracy(subject.white)),
        "white-box %": _shown(remnant_accuracy(subject.white)),
    }
    return row | {
        f"dense → model, {attack} %": _shown(remnant_accuracy(records))
        for attack, records in subject.carried.items()
    }


def quantized_table(study: Study) -> pd.DataFrame:
    """A row a quantized model: attacked through its twin, by its float copy, and the float copy.

    All of the images are scored on the integers, except those of the float copy's own attack.
    """
    models = [model for model in study.models if model.kind == "quantized"]
    return pd.DataFrame(_quantized_row(study, model) for model in models)


def _quantized_row(study: Study, model: Model) -> dict[str, str]:
    chosen = study.params.quantized.get(model.family)
    copy = study.model(f"{chosen.of if chosen else 'dense'}-{model.base}")
    own = model.attack(study.main)
    return {
        "family": model.family,
        "base": model.base,
        "bits": str(model.card["bits"]),
        "of": copy.family,
        "made by": "training" if chosen and chosen.training else "rounding",
        "agrees with twin %": percent(model.card["twin_agreement"], 2),
        "clean %": _shown(clean_accuracy(own)),
        "attacked through its twin %": _shown(remnant_accuracy(own)),
        "by its float copy %": _shown(remnant_accuracy(model.transferred(study.main, copy.name))),
        "float copy, white-box %": _shown(remnant_accuracy(copy.attack(study.main))),
    }


def _shown(found: Rate) -> str:
    return with_interval(found.value, *found.interval)


# --- the curves ----------------------------------------------------------------------------------


def curves(study: Study) -> Figure | None:
    """Clean, white-box and transfer accuracy of each scheme over compression, as fine-tuned."""
    families = dict.fromkeys([*study.params.masks, *study.params.compression])
    lines = {family: _line(study, family) for family in families}
    lines = {family: points for family, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    words = ["clean", f"white-box, {study.main}", f"on the dense network's images, {study.main}"]
    figure, axes = panels(len(words), 2.3, sharex=True)
    for family, points in lines.items():
        look = style(study, family) | {"lw": 1.1, "ms": 5.0, "mfc": "none"}
        x = [float(one.amount or 1) for one in points]
        for ax, rates in zip(
            axes, zip(*(_three(study, one) for one in points), strict=True), strict=True
        ):
            band(ax, x, list(rates), look["color"])
            ax.plot(x, percents(list(rates)), label=family, **look)
    for ax, text in zip(axes, words, strict=True):
        title(ax, text)
        percent_axis(ax, "accuracy %")
    marks = sorted({one.amount for points in lines.values() for one in points if one.amount})
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes[-1].set_xlabel("compression", fontsize=SIZES["label"])
    legend(figure, axes[0])
    return figure


def _line(study: Study, family: str) -> list[Subject]:
    """A family's points by compression, fine-tuned as its model is."""
    found = [one for one in subjects(study, family) if _is_plain(one) and one.amount]
    alike = [
        one for one in found if one.setting.get("finetune") == found[0].setting.get("finetune")
    ]
    return sorted(alike, key=lambda one: one.amount or 0)


def _three(study: Study, subject: Subject) -> tuple[Rate, Rate, Rate]:
    carried = remnant_accuracy(subject.carried[study.main])
    return clean_accuracy(subject.white), remnant_accuracy(subject.white), carried


# --- the claim -----------------------------------------------------------------------------------


def claims(study: Study) -> Iterator[Finding]:
    """For each of GAP's schemes: does it resist its parent's images more than random pruning?

    Of its model, or where none is kept of the first point of its curve that stands above chance and
    beside a control of its clean accuracy; where there is no such point, of the first.
    """
    study = study.swept
    controls, kept = subjects(study, CONTROL), {model.family: model for model in masked(study)}
    for family in GREEDY:
        found = subjects(study, family)
        if found and controls:
            model = kept.get(family)
            same = [one for one in found if set(one.setting) == set(found[0].setting)]
            tried = [_claim(study, one, model, controls) for one in (found[:1] if model else same)]
            answers = [one for one in tried if one.figures["against_random"] in ANSWERS]
            yield (answers or tried)[0]


def _claim(study: Study, subject: Subject, model: Model | None, controls: list[Subject]) -> Finding:
    control = min(controls, key=lambda one: _distance(one, subject))
    tests = {
        attack: compare(subject.carried[attack], control.carried[attack])
        for attack in exchanged(study)
    }
    clean = compare(subject.white, control.white, "clean")
    against = _against(tests, clean, control)
    others = [*_own_network_words(study, model), *_everything_words(study, model)] if model else []
    text = paragraphs(
        [_parents_images(study, subject), _control_words(control, tests, clean)],
        others,
        list(_inert_words(study)),
    )
    figures = {
        "against_random": against,
        "clean_p": clean.p,
        "white_box": remnant_accuracy(subject.white).value,
        "all_sources": everything(study, model).value if model else None,
        "p": {attack: test.p for attack, test in tests.items()},
    }
    left = percent(remnant_accuracy(subject.white).value)
    title = (
        f"Does {subject.family} harden against images from its parent? {_title(against)}; attacked "
        f"itself it keeps {left} %"
    )
    return Finding(title, text, figures)


def _distance(control: Subject, subject: Subject) -> float:
    """How far two are apart in clean accuracy; of equals, the same setting is nearer."""
    gap = (clean_accuracy(control.white).value or 0.0) - (
        clean_accuracy(subject.white).value or 0.0
    )
    return abs(gap) + (0.0 if control.setting == subject.setting else 1e-9)


def _against(tests: dict[str, Comparison], clean: Comparison, control: Subject) -> str:
    """better, worse or same over all attacks, Bonferroni for there being several; void where the
    model is at chance, unmatched where no control has about its clean accuracy."""
    if any(test.void for test in tests.values()):
        return "void"
    if clean.p < ALPHA or at_chance(control.white):
        return "unmatched"
    shown = [test for test in tests.values() if test.p * len(tests) < ALPHA]
    if any(test.difference < 0 for test in shown):
        return "worse"
    return "better" if shown else "same"


def _title(against: str) -> str:
    return {
        "better": "More than random pruning does",
        "worse": "Less than random pruning does",
        "same": "No more than random pruning does",
        "void": "It is at chance when clean, so nothing is concluded",
        "unmatched": "Random pruning has no setting of its clean accuracy to compare with",
    }[against]


def _parents_images(study: Study, subject: Subject) -> str:
    dense = study.dense(study.params.bases[0])
    carried = [
        f"{spell(remnant_accuracy(records))} under {attack}"
        for attack, records in subject.carried.items()
    ]
    clean = spell(clean_accuracy(subject.white))
    return (
        f"{subject.family} ({subject.words}; clean {clean}) keeps, of n = {len(subject.white)} "
        f"images crafted on its uncompressed parent at eps {budget(study.main_attack.eps)}, "
        f"{listed(carried)}; the parent keeps "
        f"{spell(remnant_accuracy(dense.attack(study.main)))} of those of {study.main}. Attacked "
        f"itself, {subject.family} keeps {spell(remnant_accuracy(subject.white))}."
    )


def _control_words(control: Subject, tests: dict[str, Comparison], clean: Comparison) -> str:
    found = [
        f"{spell(test.second)} under {attack} ({p_value(test.p)})" for attack, test in tests.items()
    ]
    apart = "which differs" if clean.p < ALPHA else "no difference shown"
    return (
        f"The control is random pruning, at the setting nearest in clean accuracy "
        f"({control.words}; clean {spell(clean.second)}, {apart}): it keeps {listed(found)}."
    )


def _own_network_words(study: Study, model: Model) -> Iterator[str]:
    names = own_networks(study)
    if not names:
        return
    found = [f"{percent(least(study, model, name).value)} % of {name}'s" for name in names]
    yield (
        "Of the images that an attacker makes on networks of their own, by the worse of "
        f"{listed(exchanged(study))}, it keeps {listed(found)}."
    )
    dense = study.dense(model.base)
    strangers = [
        f"{percent(test.second.value)} % of {name}'s ({p_value(test.p)})"
        for name in names
        if name in study.params.surrogates
        for test in [_beside_stranger(study, model, dense, name)]
    ]
    if strangers:
        yield (
            f"How much being another network does by itself: under {study.main} {model.family} "
            f"keeps {percent(remnant_accuracy(model.transferred(study.main)).value)} % of its "
            f"parent's images; the parent, which nobody hardened, keeps {listed(strangers)}."
        )


def _beside_stranger(study: Study, model: Model, dense: Model, name: str) -> Comparison:
    """A model on its parent's images against the parent on those of an unrelated network."""
    return compare(model.transferred(study.main), dense.transferred(study.main, name))


def _everything_words(study: Study, model: Model) -> Iterator[str]:
    dense, attacks = study.dense(model.base), exchanged(study)
    from_dense = right(model.transferred(study.main))
    for attack in attacks[1:]:
        from_dense = from_dense & right(model.transferred(attack))
    left = stands(study, model)
    p = mcnemar(left, from_dense)
    words = "that is less than its parent's images leave" if p < ALPHA else "no difference is shown"
    yield (
        f"All sources together, per image the worst, leave {spell(rate(left))}, where "
        f"{dense.family}'s alone leave {spell(rate(from_dense))} ({p_value(p)}): {words}."
    )


def _inert_words(study: Study) -> Iterator[str]:
    """Where much of the network meets only padding, ranking by gradients is a special case."""
    inert = study.dense(study.params.bases[0]).card["inert"]
    if inert and inert > INERT:
        yield (
            f"With images of this size, {percent(inert)} % of the dense network's parameters meet "
            "nothing but padding and have no gradient: schemes that rank by gradients remove them "
            "first or last, so compression does not mean the same for all schemes here."
        )
