"""Every model with its robust accuracy, what it costs, and whether the number can be believed."""

from advprune.report.chart import Chart
from advprune.report.formats import budget
from advprune.report.run import Run
from advprune.report.section import Part, section

COLUMNS = """family root sparsity bits clean_accuracy robust_accuracy robust_low robust_high""".split()


@section("Leaderboard", order=10)
def leaderboard(run: Run) -> list[Part]:
    """The table of all models, and robust over clean accuracy."""
    main = run.main_attack
    text = (
        f"Accuracy in percent on n = {run.n} test images, robust: worst case over the attacks of "
        f"the suite ({main.norm}, eps {budget(main.eps)})."
    )
    table = run.results[["model", "sparsity", "bits", "clean_accuracy", "robust_accuracy"]]
    chart = Chart(
        "tradeoff", "points", run.results, x="clean_accuracy", y="robust_accuracy",
        series="group", size="sparsity", marker="verdict", hover=("model", "bits"),
    )
    return [Part("Leaderboard", text, table), Part("Clean and robust accuracy", chart=chart)]
