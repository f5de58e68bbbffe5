"""Tables: pure functions of a study, in words and numbers that are ready to be shown.

Rates are in percent, and stand with their 95 % Wilson interval in brackets.
"""

import platform
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

import advprune
from advprune.core.attack_settings import (
    AttackSettings,
    AutoAttackSettings,
    ExtraAttack,
    SquareSettings,
)
from advprune.evaluate.compare import compare
from advprune.evaluate.measures import (
    attack_success_rate,
    clean_accuracy,
    prediction_change_rate,
    remnant_accuracy,
)
from advprune.evaluate.statistics import Rate
from advprune.report.bits import needed
from advprune.report.costs import attack_names, passes
from advprune.report.randomized import most_draws, single_draw
from advprune.report.study import Model, Point, Study, curve
from advprune.report.text import NOTHING, p_value, percent, setting_text, with_interval
from advprune.report.verdicts import level_text

Attack = AttackSettings | SquareSettings | AutoAttackSettings
PACKAGES = ("torch", "torchattacks", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")


def shown(rate: Rate) -> str:
    """A rate in percent with its interval."""
    return with_interval(rate.value, *rate.interval)


def leaderboard(study: Study) -> pd.DataFrame:
    """A row a model: what is left in the worst case over its suite, in params order."""
    return pd.DataFrame([_leader(study, model) for model in study.models])


def _leader(study: Study, model: Model) -> dict[str, str]:
    records, robust = model.attack(study.main), study.robust(model)
    against = compare(robust, study.robust(study.dense(model.base)))
    carried, is_dense = model.transferred(study.main), model.family == "dense"
    return {
        "family": model.family,
        "base": model.base,
        "clean %": shown(clean_accuracy(records)),
        "robust %": shown(remnant_accuracy(robust)),
        f"{study.main} %": shown(remnant_accuracy(records)),
        "transfer %": NOTHING if is_dense else shown(remnant_accuracy(carried)),
        "against dense": NOTHING if is_dense else against.mark,
        "p": NOTHING if is_dense else p_value(against.p).removeprefix("p ").removeprefix("= "),
        "verdict": level_text(study.verdict(model)),
        **_flips(study, model),
        "setting": setting_text(model.card["setting"]),
    }


def _flips(study: Study, model: Model) -> dict[str, str]:
    """Bits to chance, where any were attacked."""
    if not study.bitflips:
        return {}
    reached = study.flips(model)
    return {"flips to chance": NOTHING if reached is None else needed(reached)}


def sizes_table(study: Study) -> pd.DataFrame:
    """A row a model: how small it is, what the main attack does to it, and what the suite cost."""
    return pd.DataFrame([_size(study, model) for model in study.models])


def _size(study: Study, model: Model) -> dict[str, str]:
    records, found = model.attack(study.main), study.metrics(model)
    return {
        "family": model.family,
        "base": model.base,
        "prune ratio %": percent(model.card["prune_ratio"]),
        "sparsity %": percent(model.card["sparsity"]),
        "bits": str(model.card["bits"]),
        "not zero": f"{model.card['nonzero']:,}",
        "MACs": f"{model.card['macs']:,}",
        "file kB": f"{model.card['file_bytes'] / 1000:,.0f}",
        "change %": percent(prediction_change_rate(records).value),
        "strict ASR %": percent(attack_success_rate(records).value),
        "ECE clean": f"{found['ece']:.3f}",
        "ECE attacked": f"{found['ece_attacked']:.3f}",
        "gradients per image": passes(found["gradients"]),
        "forwards per image": passes(found["forwards"]),
    }


def draws_table(study: Study) -> pd.DataFrame:
    """Randomized models' robust accuracy by three ways of scoring; empty where there are none."""
    rows = [(m, study.robust(m)) for m in study.models if m.kind == "randomized"]
    return pd.DataFrame(
        {
            "family": model.family,
            "base": model.base,
            "mean logits %": shown(remnant_accuracy(robust)),
            "single draw %": shown(single_draw(robust)),
            "9 of 10 draws %": shown(most_draws(robust)),
        }
        for model, robust in rows
    )


def published_table(study: Study) -> dict[str, pd.DataFrame]:
    """The sweep as nn-prune's table, by base: dense, each setting of each family, int8.

    All rows are of the images of the sweeps. The int8 row is scored under transfer, on images
    crafted on the dense float network.
    """
    return {base: _published(study.swept, base) for base in study.params.bases}


def _published(study: Study, base: str) -> pd.DataFrame:
    rows = [_published_row(study, study.dense(base), "dense", NOTHING)]
    for family in study.params.sweep:
        for point in study.points(family, base):
            rows.append(_published_row(study, point, family, setting_text(point.setting)))
    for model in study.of(base):
        if model.family == "int8":
            setting = f"{model.card['bits']} bits (transfer)"
            rows.append(_published_row(study, model, "int8", setting))
    return pd.DataFrame(rows)


def _published_row(
    study: Study, subject: Model | Point, family: str, setting: str
) -> dict[str, str]:
    attacks = list(study.attacks)
    ratio = subject.card["prune_ratio"] if isinstance(subject, Model) else subject.prune_ratio
    row = {
        "family": family,
        "setting": setting,
        "prune ratio %": percent(ratio),
        "clean %": percent(clean_accuracy(_scored(subject, attacks[0])).value),
    }
    dense = study.dense(subject.base)
    for attack in attacks:
        records = _scored(subject, attack)
        against = compare(records, dense.attack(attack)).mark
        row |= {
            f"{attack}: remnant %": shown(remnant_accuracy(records)),
            f"{attack}: against dense": NOTHING if subject is dense else against,
            f"{attack}: change %": percent(prediction_change_rate(records).value),
            f"{attack}: ASR %": percent(attack_success_rate(records).value),
        }
    return row


def _scored(subject: Model | Point, attack: str) -> pd.DataFrame:
    return subject.transferred(attack) if isinstance(subject, Model) else subject.attack(attack)


def every_attack(study: Study) -> pd.DataFrame:
    """Remnant accuracy of each model under each attack of all suites, and in the worst case."""
    names = attack_names(study)
    return pd.DataFrame(
        {"family": model.family, "base": model.base}
        | {f"{name} %": _under(study, model, name) for name in names}
        | {"worst case %": shown(remnant_accuracy(study.robust(model)))}
        for model in study.models
    )


def _under(study: Study, model: Model, attack: str) -> str:
    """A cell of that table; n is said where the attack was for fewer images."""
    records = model.attack(attack)
    if records.empty:
        return NOTHING
    few = len(records) < len(model.attack(study.main))
    return shown(remnant_accuracy(records)) + (f", n = {len(records)}" if few else "")


def settings_table(study: Study) -> pd.DataFrame:
    """A row an attack of a suite, with everything needed to run it again."""
    n, profile = len(study.models[0].attack(study.main)), study.params.active()
    extras = {extra.key: extra for extra in study.params.attack.extra}
    rows = [
        _extra_row(extras[name]) if name in extras else _attack_row(name, profile.attacks[name])
        for name in attack_names(study)
    ]
    both = {"n": str(n), "seed": str(study.params.seed)}
    table = pd.DataFrame([both | row for row in rows]).fillna(NOTHING)
    last = [column for column in ("n", "seed", "note") if column in table]
    return table[[*(column for column in table if column not in last), *last]]


def _attack_row(name: str, setting: Attack) -> dict[str, str]:
    row = {
        "attack": name,
        "method": setting.method,
        "norm": setting.norm,
        "eps": f"{setting.eps * 255:.4g}/255" if setting.norm == "Linf" else NOTHING,
        "eps (number)": f"{setting.eps:.4g}",
        "note": setting.note or NOTHING,
    }
    if isinstance(setting, AttackSettings):
        return row | _schedule(setting)
    if isinstance(setting, SquareSettings):
        return row | {"steps": f"{setting.queries} queries", "draws": str(setting.draws)}
    few = {} if setting.images is None else {"n": f"at most {setting.images}"}
    return row | {"loss": f"version {setting.version}"} | few


def _schedule(setting: AttackSettings) -> dict[str, str]:
    """The columns that only attacks of the PGD engine have."""
    return {
        "step": f"{setting.step * 255:.4g}/255" if setting.norm == "Linf" else NOTHING,
        "step (number)": f"{setting.step:.4g}",
        "steps": str(setting.steps),
        "restarts": str(setting.restarts),
        "start": "random" if setting.random_start else "clean image",
        "loss": setting.loss,
        "keep": setting.keep,
        "momentum": f"{setting.momentum:g}",
        "draws": str(setting.draws),
        "backward": setting.backward or "the model's own",
    }


def _extra_row(extra: ExtraAttack) -> dict[str, str]:
    arguments = extra.arguments()
    row = {
        "attack": extra.key,
        "method": "torchattacks",
        "note": f"torchattacks {extra.name}: {setting_text(arguments) or 'defaults'}",
    }
    if isinstance(arguments.get("eps"), int | float):
        row |= {
            "eps": f"{arguments['eps'] * 255:.4g}/255",
            "eps (number)": f"{arguments['eps']:.4g}",
        }
    return row


def versions_table() -> pd.DataFrame:
    """What the report was made with; nothing is imported to find out."""
    rows = [("advprune", advprune.__version__), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in (*PACKAGES, "dvc")]
    return pd.DataFrame(rows, columns=["package", "version"])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def curve_table(study: Study, name: str, column: str) -> pd.DataFrame:
    """A curve of all models in numbers: model, eps or steps, remnant_accuracy, low, high."""
    rows = [
        [model.name, value, *remnant_accuracy(records).columns("remnant").values()]
        for model in study.models
        for value, records in curve(model, name, column)
    ]
    return pd.DataFrame(rows, columns=["model", column, "remnant_accuracy", "low", "high"])


def sweep_table(study: Study) -> pd.DataFrame:
    """Every setting of every sweep under every attack, in numbers; `model` names the line."""
    rows = [
        {
            "model": f"{family}-{base} {attack}",
            "family": family,
            "base": base,
            "order": order,
            "value": point.setting if isinstance(point.setting, int | float) else order,
            "setting": setting_text(point.setting),
            "attack": attack,
            "clean_accuracy": _rounded(clean_accuracy(point.attack(attack))),
            "remnant_accuracy": _rounded(remnant_accuracy(point.attack(attack))),
            "prune_ratio": round(point.prune_ratio, 4),
        }
        for family, base in study.sweeps
        for order, point in enumerate(study.points(family, base))
        for attack in study.attacks
    ]
    columns = (
        "model family base order value setting attack clean_accuracy remnant_accuracy prune_ratio"
    )
    return pd.DataFrame(rows, columns=columns.split())


def _rounded(rate: Rate) -> float | None:
    return rate.columns("rate")["rate"]
