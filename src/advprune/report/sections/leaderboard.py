"""Every model with its robust accuracy, its cost, and whether the number can be believed."""

import pandas as pd

from advprune.report.formats import bounds, budget
from advprune.report.results import ATTACK, results, without_own_transfer
from advprune.report.section import Part, Parts, Run, section
from advprune.report.tables import ZERO

BOARD = (
    *("model", "clean_accuracy", "robust_accuracy", "against_dense", "median_distance"),
    *("distance_against_dense", "verdict", "transfer_accuracy", "sparsity", "bits"),
    *("flips_to_chance", "recipe"),
)
SIZES = (
    *("model", "parameters", "nonzero", "prune_ratio", "sparsity", "file_bytes", "macs"),
    *("ece", "ece_attacked", "nll", "brier", "twin_agreement", "forwards", "gradients", "passes"),
)
WAYS = {  # of scoring randomized models
    "robust_accuracy_single_draw": "robust_accuracy:single draw",
    "robust_accuracy_9_of_10": "robust_accuracy:9 of 10 draws",
}


@section("Leaderboard", order=10)
def leaderboard(run: Run) -> Parts:
    """The table of all models, then size, cost and accuracy under each attack."""
    main, table = run.main_attack, without_own_transfer(results(run))
    table = table.assign(passes=table.forwards + table.gradients)
    compared = (
        " Both are compared with the dense network image by image (McNemar's and Wilcoxon's test, "
        f"Holm's correction): differences and p-values are under “Distances”. {ZERO}"
    )
    yield Part(
        "Leaderboard",
        f"Robust: the share of images that nothing within the budget breaks ({main.norm}, eps "
        f"{budget(main.eps)}, n = {run.n}; 95 % Wilson interval). Distance: the median of the "
        "smallest changes found that fool the model; an image that only attacks at the budget fool "
        f"counts with the budget.{compared if run.compressed else ''}",
        with_bounds(table, BOARD),
    )
    yield Part("Size, cost and calibration", table=table[[*SIZES]], folded=True)
    attacks = [name for name in map(str, table.columns) if name.startswith(ATTACK)]
    randomized = (
        " On randomized models each attack works on all images. They are scored by mean logits; "
        "the last columns score a single draw, and count an image as broken only if at least 9 of "
        "10 draws are wrong."
    )
    columns = ("model", *attacks, "robust_accuracy", *WAYS.values())
    yield Part(
        "Accuracy under each attack",
        "Each kind of model has attacks of its own; robust accuracy is the worst case per image. "
        "Some attacks work only on images that those before them did not break (after in "
        "params.yaml): their columns say what is left after all of them."
        + randomized
        * bool((table.kind == "randomized").any()),
        with_bounds(table.rename(columns=WAYS), columns),
        folded=True,
    )


def with_bounds(table: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Columns of the results, each with its interval where it has one."""
    names = [name for column in columns for name in (column, *bounds(column))]
    return table[[name for name in names if name in table]]
