"""Every model with its robust accuracy, its cost, and whether the number can be believed."""

import pandas as pd

from advprune.report.chart import Chart
from advprune.report.formats import bounds, budget
from advprune.report.results import results, without_own
from advprune.report.run import Run
from advprune.report.section import Part, section

BOARD = (
    *("model", "clean_accuracy", "robust_accuracy", "against_dense", "p_against_dense"),
    *("median_distance", "distance_against_dense", "p_distance", "verdict"),
    *("transfer_accuracy", "sparsity", "bits", "flips_to_chance", "recipe"),
)
SIZES = (
    *("model", "parameters", "nonzero", "prune_ratio", "sparsity", "file_bytes", "macs"),
    *("prediction_change_rate", "attack_success_rate", "transfer_success_rate"),
    *("ece", "ece_attacked", "nll", "brier", "twin_agreement", "forwards", "gradients", "passes"),
)


@section("Leaderboard", order=10)
def leaderboard(run: Run) -> list[Part]:
    """The table of all models, robust over clean accuracy, and further measures of each."""
    main, table = run.main_attack, without_own(results(run))
    table = table.assign(passes=table.forwards + table.gradients)
    text = (
        f"Robust accuracy: images that nothing within the budget breaks ({main.norm}, eps "
        f"{budget(main.eps)}, n = {run.n}), with 95 % Wilson intervals. Distance: the "
        "median of the smallest changes found that fool the model. Against dense: McNemar's and "
        "Wilcoxon's tests on the same images, Holm's correction over the models of a dense network."
    )
    axes, hover = ("clean_accuracy", "median_distance", "group"), ("model", "robust_accuracy")
    chart = Chart(
        "tradeoff", "points", table, *axes, size="sparsity", marker="verdict", hover=hover
    )
    every = [name for name in map(str, table.columns) if name.startswith("accuracy:")]
    parts = [
        Part("Leaderboard", text, with_bounds(table, BOARD)),
        Part(
            "Distance over clean accuracy", "One marker per model, larger is sparser.", chart=chart
        ),
        Part("Size, cost and calibration", table=table[list(SIZES)], folded=True),
        Part(
            "Accuracy under each attack",
            "Attacks differ by kind of model; the robust accuracy is the worst case per image.",
            with_bounds(table, ("model", *every, "robust_accuracy")),
            folded=True,
        ),
    ]
    return parts + _draws(run, table)


def _draws(run: Run, table: pd.DataFrame) -> list[Part]:
    """Randomized models, scored in three ways."""
    ways = ("robust_accuracy_single_draw", "robust_accuracy_9_of_10")
    chosen = table[table.kind == "randomized"]
    text = (
        f"Scored by the mean logits over {run.params.attack.score_draws} draws, by one draw, and "
        "with an image counted as broken only where at least 9 of 10 draws are wrong."
    )
    title = "Randomized models, scored in three ways"
    shown = with_bounds(chosen, ("model", "robust_accuracy", *ways))
    return [Part(title, text, shown, folded=True)] if len(chosen) else []


def with_bounds(table: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Columns of the results, each with its interval where it has one."""
    ends = {column: [end for end in bounds(column) if end in table] for column in columns}
    return table[[name for column in columns for name in (column, *ends[column])]]
