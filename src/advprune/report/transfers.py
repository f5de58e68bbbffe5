"""Transfer in the report: who fools whom, the published scenarios, an attacker's own networks."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advprune.evaluate.compare import right
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.statistics import Rate, rate
from advprune.evaluate.transfer import transfer_success
from advprune.report.drawing import DPI, SIZES
from advprune.report.study import Model, Study
from advprune.report.text import NOTHING, percent, with_interval


def sources(study: Study) -> list[str]:
    """Everything that images were crafted on: the models in order, then the attacker's own."""
    names = [model.name for model in study.models]
    return [*names, *dict.fromkeys(name for name, _ in study.surrogates if name not in names)]


def exchanged(study: Study) -> list[str]:
    """The attacks that dense networks and the attacker's own send out, the main one first.

    Compressed models send out the main one's images alone.
    """
    names = study.params.active().suite.transfer
    return sorted(names, key=lambda name: name != study.main)


def matrix(study: Study) -> pd.DataFrame:
    """Accuracy of each model (column) on the main attack's images of each source (row).

    Fractions; a model's own images are white-box.
    """
    return pd.DataFrame(
        {
            model.name: [
                remnant_accuracy(model.transferred(study.main, source)).value
                for source in sources(study)
            ]
            for model in study.models
        },
        index=sources(study),
    )


def transfer_table(study: Study) -> pd.DataFrame:
    """All of it in numbers: a row an attack, source and target.

    success counts only images that source and target both classify correctly when clean.
    """
    return pd.DataFrame(
        {"attack": attack, "source": source, "target": model.name, "n": len(records)}
        | remnant_accuracy(records).columns("accuracy")
        | transfer_success(records, study.own(source, attack)).columns("success")
        for model in study.models
        for (source, attack), records in carried(study, model).items()
    )


def carried(study: Study, model: Model) -> dict[tuple[str, str], pd.DataFrame]:
    """What a model says to the images of other sources under the exchanged attacks."""
    attacks = exchanged(study)
    return {key: records for key, records in model.received.items() if key[1] in attacks}


def scenario_table(study: Study, base: str) -> pd.DataFrame:
    """A row a compressed model: the published scenarios, and what an attacker's networks add.

    From dense to compressed under every attack, from compressed to dense, and from compressed to
    compressed (the mean over the base's other models). An attacker's own network stands with the
    attack that does most harm. All sources: per image the worst of all but the model itself.
    """
    dense = study.dense(base)
    others = [m for m in study.of(base) if m.family not in ("dense", "int8")]
    return pd.DataFrame(_scenarios(study, model, dense, others) for model in study.of(base)[1:])


def _scenarios(study: Study, model: Model, dense: Model, others: list[Model]) -> dict[str, str]:
    there, back = model.transferred(study.main), dense.transferred(study.main, model.name)
    between = [
        remnant_accuracy(model.transferred(study.main, other.name)).value or 0.0
        for other in others
        if other is not model
    ]
    row = {
        "family": model.family,
        "white-box %": _shown(remnant_accuracy(model.attack(study.main))),
        "dense → model %": _shown(remnant_accuracy(there)),
        "its success %": _shown(transfer_success(there, dense.attack(study.main))),
    }
    for attack in exchanged(study)[1:]:
        row[f"dense → model, {attack} %"] = _shown(remnant_accuracy(model.transferred(attack)))
    row["model → dense %"] = _shown(remnant_accuracy(back))
    row["compressed → model %"] = percent(float(np.mean(between))) if between else NOTHING
    for name in own_networks(study):
        row[f"{name} → model %"] = percent(least(study, model, name).value)
    return row | {"all sources %": _shown(everything(study, model))}


def own_networks(study: Study) -> list[str]:
    """The attacker's own networks."""
    return sources(study)[len(study.models) :]


def least(study: Study, model: Model, source: str) -> Rate:
    """A model's accuracy on a source's images under the attack that does most harm."""
    found = (remnant_accuracy(model.transferred(name, source)) for name in exchanged(study))
    return min(found, key=lambda one: one.value or 0.0)


def everything(study: Study, model: Model) -> Rate:
    """A model's accuracy on the images of all other sources together, per image the worst."""
    return rate(stands(study, model))


def stands(study: Study, model: Model) -> np.ndarray:
    """Which images a model has right whatever other source and attack they come from."""
    return np.logical_and.reduce([right(records) for records in carried(study, model).values()])


def passes(study: Study) -> int:
    """Forward passes through all targets that the exchange took, draws counted one by one."""
    return sum(_passes(study, model) for model in study.models)


def _passes(study: Study, model: Model) -> int:
    draws = study.params.attack.score_draws if model.kind == "randomized" else 1
    return draws * len(model.attack(study.main)) * (1 + len(model.received))


def _shown(found: Rate) -> str:
    return with_interval(found.value, *found.interval)


# --- the heat map --------------------------------------------------------------------------------

CELL = 0.29  # inches


def heat_map(study: Study) -> Figure | None:
    """Accuracy of each model on each source's images under the main attack, in percent."""
    if len(study.models) < 2:
        return None
    cells = 100 * matrix(study).astype(float)
    rows, columns = cells.shape
    size = (CELL * columns + 2.6, CELL * rows + 2.0)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(cells, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(cells.to_numpy()):
        ink = "white" if value < 55 else "black"
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
    _name(ax, cells)
    _part(ax, study, rows)
    bar = figure.colorbar(picture, ax=ax, shrink=0.5, pad=0.01)
    bar.set_label(f"accuracy % ({study.main})", fontsize=SIZES["label"])
    return figure


def _name(ax: Axes, cells: pd.DataFrame) -> None:
    ax.set_xticks(range(cells.shape[1]), cells.columns, rotation=90, fontsize=8)
    ax.set_yticks(range(cells.shape[0]), cells.index, fontsize=8)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("target", fontsize=SIZES["label"])
    ax.set_ylabel("source", fontsize=SIZES["label"])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _part(ax: Axes, study: Study, rows: int) -> None:
    """White lines between bases, kinds of families and the attacker's own networks."""
    for edge in _edges(study):
        ax.axhline(edge - 0.5, color="white", lw=2)
        if edge < len(study.models):
            ax.axvline(edge - 0.5, color="white", lw=2)
    ax.set_ylim(rows - 0.5, -0.5)


def _edges(study: Study) -> Iterator[int]:
    """Where in the order of models another kind begins."""
    params = study.params

    def kind(model: Model) -> tuple[str, str]:
        for name in ("masks", "tickets", "quantized", "binary"):
            if model.family in getattr(params, name):
                return model.base, name
        return model.base, ""

    kinds = [kind(model) for model in study.models]
    for index, one in enumerate(kinds):
        if index and one != kinds[index - 1]:
            yield index
    yield len(kinds)
