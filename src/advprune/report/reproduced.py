"""What documents say of finished runs: docs/published.md and the README's results, from reports.

Nothing of ours is typed: a figure is a cell of a table of `reports/<profile>/report.md`, found by
its section, its row and its column, and a sentence is one of the report's summary. What no report
holds is “not run here”.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape

from advprune.core.params import Params
from advprune.report import published
from advprune.report.published import Figure
from advprune.report.summary import QUESTION
from advprune.report.text import budget, percent

NOT_RUN = "not run here"
UNREAD = "†"
COLUMNS = ("published setting", "published", "ours", "made by", "why they differ")
START, END = "<!-- published tables -->", "<!-- end of published tables -->"
FOLDED = 20  # lines of a table that a reader of the README can pass by


@dataclass(frozen=True)
class Result:
    """A finished run: its settings, and its report in Markdown."""

    params: Params
    report: str

    def tables(self, section: str, caption: str = "") -> list[dict[str, str]]:
        """The rows of the table under a heading and a caption, by column; none where it is not."""
        part = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", self.report, _LINES)
        if part is None:
            return []
        opening = rf"^\*\*{re.escape(caption)}\*\*\n" if caption else r"\A"
        table = re.search(rf"{opening}.*?((?:^\|[^\n]*\n)+)", part[1], _LINES)
        return _rows(table[1]) if table else []

    @property
    def about(self) -> str:
        """What the run was made on: the data, and how many images were attacked."""
        found = re.search(r"^Data: (.*?)\. Every", self.report, re.MULTILINE)
        return found[1] if found else self.params.active().data.source

    @property
    def summary(self) -> str:
        """The answer's sentences, a Markdown list; KeyError where the report has none."""
        found = re.search(rf"^## {re.escape(QUESTION)}\n\n((?:- [^\n]*\n)+)", self.report, _LINES)
        if found is None:
            raise KeyError(f"no answer under {QUESTION!r} in the report of {self.params.profile}")
        return found[1].strip()

    @property
    def answers(self) -> str:
        """Each question that the findings ask, and its answer in short: a Markdown list."""
        asked = re.findall(r"^### ([^\n]*?\?) ([^\n]*)$", self.report, re.MULTILINE)
        return "\n".join(f"- {question} **{answer}**" for question, answer in asked)


_LINES = re.MULTILINE | re.DOTALL


def _rows(table: str) -> list[dict[str, str]]:
    head, _, *body = (_cells(line) for line in table.splitlines())
    return [dict(zip(head, cells, strict=True)) for cells in body]


def _cells(line: str) -> list[str]:
    """The cells of a line of a table, as they were before they were escaped."""
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [unescape(re.sub(r"\\(.)", r"\1", cell.strip())) for cell in cells]


@dataclass(frozen=True)
class Cell:
    """Where a figure of ours stands: a section's table, the row that begins so, a column."""

    label: str
    section: str
    caption: str
    row: Mapping[str, str]
    column: str

    def read(self, result: Result) -> str | None:
        """The figure with its label; None where the report has no such row.

        Raises KeyError where the table has the row, but no such column.
        """
        for found in result.tables(self.section, self.caption):
            if all(_is(found[key], value) for key, value in self.row.items()):
                return f"{self.label} {found[self.column]}"
        return None


def _is(cell: str, wanted: str) -> bool:
    """Whether a cell is what is wanted, or a setting that begins with it."""
    return cell == wanted or cell.startswith(f"{wanted},")


@dataclass(frozen=True)
class Comparison:
    """A row of the page: what was published, where ours stands by profile, the stage that makes
    it, and why the two differ."""

    figure: Figure
    ours: Mapping[str, tuple[Cell, ...]]
    stage: str
    why: str


@dataclass(frozen=True)
class System:
    """A published system: its table, and what is true of all of its rows."""

    title: str
    source: str
    differs: str
    rows: tuple[Comparison, ...]


def tables(results: Mapping[str, Result]) -> str:
    """The tables of all systems as Markdown. results: the finished runs, by profile."""
    parts = [_runs(results)]
    for system in SYSTEMS:
        parts += [f"### {system.title}", f"Source: {system.source}.", _table(system, results)]
        parts.append(f"For all rows: {system.differs}")
    return "\n\n".join(parts)


def answered(result: Result, table: str) -> str:
    """A run's summary for the README, its table, and the findings in short.

    All of it is Markdown, as `table` is. The findings are folded, and a table of many lines.
    """
    name = result.params.profile
    parts = [f"**{name}**: {_run(result)}", result.summary]
    long = len(table.splitlines()) > FOLDED
    parts += _folded(f"The rows of {name}", table) if long else [table]
    parts += _folded(f"What else was asked of {name}, and the answers", result.answers)
    return "\n\n".join(parts)


def _folded(title: str, content: str) -> list[str]:
    return [f"<details><summary>{title}</summary>", content, "</details>"]


def filled(text: str, content: str, start: str = START, end: str = END) -> str:
    """A page with `content` between its two markers, in place of what was there.

    Raises ValueError where it does not have both, in this order.
    """
    before, opening, rest = text.partition(start)
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        raise ValueError(f"the page needs the lines {start} and {end}")
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


def _runs(results: Mapping[str, Result]) -> str:
    """What the runs were: a line a profile."""
    lines = [f"- **{name}**: {_run(result)}" for name, result in results.items()]
    return "\n".join(lines) or f"No results: {NOT_RUN}."


def _run(result: Result) -> str:
    profile = result.params.active()
    model, attack = profile.model, profile.table()[result.params.attack.main]
    given = "given weights" if model.weights else f"{profile.train.epochs} epochs"
    first = profile.sweep_images
    fewer = f", of sweeps and curves over compression the first {first}" if first else ""
    return (
        f"{result.about}{fewer}; {model.architecture} of width "
        f"{model.width}, {given}; {attack.norm} eps {budget(attack.eps)} if nothing else is said."
    )


def _table(system: System, results: Mapping[str, Result]) -> str:
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join(lines + [_line(_row(row, results)) for row in system.rows])


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(row: Comparison, results: Mapping[str, Result]) -> list[str]:
    found = {name: _found(cells, results.get(name)) for name, cells in row.ours.items()}
    ours = [f"{name}: {text}" for name, text in found.items() if text] or [NOT_RUN]
    figure = row.figure.figure + (f" {UNREAD}" if row.figure.unread else "")
    return [row.figure.setting, figure, "<br>".join(ours), f"`{_command(row.stage)}`", row.why]


def _found(cells: tuple[Cell, ...], result: Result | None) -> str:
    found = [cell.read(result) for cell in cells] if result else []
    return ", ".join(text for text in found if text)


def _command(stage: str) -> str:
    return f"dvc repro {stage}"


# --- where ours stand ----------------------------------------------------------------------------


def _swept(family: str, setting: str) -> tuple[Cell, ...]:
    """A row of the table of sweeps, on the standard base."""
    place = "The published table", "Base standard", {"family": family, "setting": setting}
    return (
        Cell("changed", *place, "prune ratio %"),
        Cell("clean", *place, "clean %"),
        Cell("10 steps", *place, "published_10: remnant %"),
        Cell("40 steps", *place, "published_40: remnant %"),
    )


def _masked(family: str, setting: str) -> tuple[Cell, ...]:
    place = "Compression by masks", "Schemes and settings", {"family": family, "setting": setting}
    return (
        Cell(f"{family} at {setting}: clean", *place, "clean %"),
        Cell("parent's images", *place, "dense → model, field %"),
        Cell("attacked itself", *place, "white-box %"),
    )


def _quantized(family: str) -> tuple[Cell, ...]:
    place = "Quantized models", "", {"family": family}
    return (
        Cell("by its float copy", *place, "by its float copy %"),
        Cell("attacked through its twin", *place, "attacked through its twin %"),
    )


def _budget(member: str, eps: str) -> Cell:
    return Cell(member, "SAP's published protocol", "FGSM", {"member": member}, f"eps {eps} %")


def _adaptive(member: str, attack: str) -> Cell:
    row = {"member": member, "attack": attack}
    section = "SAP's published protocol"
    return Cell(f"{member}, {attack}", section, "Adaptive attacks", row, "mean logits %")


def _flips(entry: str) -> tuple[Cell, ...]:
    place = "Bits under attack", "", {"entry": entry}
    return (
        Cell(f"{entry} flips", *place, "flips to chance"),
        Cell("clean", *place, "clean %"),
        Cell("after as many random flips", *place, "after as many random flips %"),
    )


def _clean(family: str) -> Cell:
    return Cell(f"{family} clean", "Leaderboard", "", {"family": family}, "clean %")


def _sparse(point: str) -> tuple[Cell, ...]:
    place = "Sparse and robust", "", {"point": point, "of": "robust"}
    return Cell(f"{point} clean", *place, "clean %"), Cell("robust", *place, "robust %")


# --- the systems ---------------------------------------------------------------------------------

DIGITS, CIFAR, SMALL = "digits", "cifar10", "cifar10-small"


def _everywhere(*cells: Cell) -> dict[str, tuple[Cell, ...]]:
    """The same figures of every profile that has them."""
    return dict.fromkeys((DIGITS, CIFAR, SMALL), cells)


def _studied(*points: str) -> dict[str, tuple[Cell, ...]]:
    """Points of the study of sparse networks."""
    return _everywhere(*(cell for point in points for cell in _sparse(point)))


def _nn_prune() -> Iterator[Comparison]:
    for (family, setting), row in published.NN_PRUNE.rows.items():
        shown = f"changed {row.changed:g}, clean {row.clean:.1f}, remnant {row.remnant:.1f}"
        name = family if setting == "–" else f"{family}, {setting}"
        stage = "sweep" if family in "ESR" else "attack-unpruned"
        yield Comparison(
            Figure(name, shown),
            _everywhere(*_swept(family, setting)),
            f"{stage}@{family}-standard",
            _threshold_reason(family, setting, row),
        )


def _threshold_reason(family: str, setting: str, row: published.Setting) -> str:
    if row.remnant > 5:
        return "perhaps their attack: the script runs 10 steps by default, the function in it 40"
    if row.clean <= 1:
        return "theirs guesses, one of 1,000 classes"
    if family == "int8":
        return "scored on images crafted on the dense network, there and here"
    if family == "E" and float(setting) >= 0.01:
        return "the threshold is absolute: what goes depends on width and training"
    return "data, network"


def _gap() -> Iterator[Comparison]:
    own = {DIGITS: "4", CIFAR: "2", SMALL: "4"}
    for family, controls in (("GAP_layer", "834"), ("GAP_global", "224")):
        yield Comparison(
            published.GAP["transfer"],
            {
                profile: (
                    *_masked(family, f"compression {amount}"),
                    *_masked("random", f"compression {control}"),
                )
                for (profile, amount), control in zip(own.items(), controls, strict=True)
            },
            f"compression@{family}-standard",
            "no control there; here random pruning stands beside it, and the network's own attack",
        )
    yield Comparison(
        published.GAP["int8"],
        _everywhere(*_quantized("GAP_int8")),
        "attack-quantized@GAP_int8-standard",
        "theirs is attacked by its float copy alone; a differentiable twin comes closer",
    )


def _sap() -> Iterator[Comparison]:
    yield Comparison(
        published.SAP["gain"],
        {
            profile: (_budget("dense", eps), _budget("SAP_100", eps))
            for profile, eps in ((DIGITS, "6/255"), (CIFAR, "1/255"), (SMALL, "1/255"))
        },
        "protocol@standard",
        "their attack: one step, by a gradient whose variance grows with every layer",
    )
    for key, one, other, why in (
        ("broken", ("SAP_conv", "published_500"), ("dense", "published_500"), "beside"),
        ("not broken", ("SAP_100", "constant_1"), ("SAP_100", "constant_10"), "half"),
        ("bpda", ("SAP_100", "identity_10"), ("dense", "identity_10"), "half"),
    ):
        yield Comparison(
            published.SAP[key],
            _everywhere(_adaptive(*one), _adaptive(*other)),
            "protocol@standard",
            _SAP_REASONS[why],
        )


_SAP_REASONS = {
    "beside": "their error: the variant is not SAP; the dense network stands beside it",
    "half": "data, network; on digits at 24/255, half of the budget",
}

_BITS = (
    ("imagenet", "dense_8", "1,000 classes are guessed at 0.1 %; data, depth"),
    ("8 bits", "dense_8", "data, width"),
    ("4 bits", "dense_4", "their option for 4 bits changes the bits searched, not the rounding"),
    ("clustered", "clustered_8", "data, width; the same penalty"),
    (
        "binary",
        "BNN_1",
        "their error: the place value of the one bit is negated, so that only flips that lower the "
        "loss to first order are allowed",
    ),
    ("random", "dense_8", "their error: a layer is drawn first, small ones as often as large ones"),
)
_BINARY = (
    (
        "grown",
        "RA_BNN_1",
        "their count is none of memory bits; 700 of the flips are a search that stalls at 33 %",
    ),
    ("base", "BNN_1", "their count is none of memory bits"),
    ("uniform", "BNN_wide_1", "their grown network is nearly three times as wide everywhere"),
)


def _flipped(
    figures: Mapping[str, Figure], rows: tuple[tuple[str, str, str], ...]
) -> Iterator[Comparison]:
    for key, entry, why in rows:
        yield Comparison(figures[key], _everywhere(*_flips(entry)), f"bitflip@{entry}", why)


def _binary() -> Iterator[Comparison]:
    yield from _flipped(published.RA_BNN, _BINARY)
    yield Comparison(
        published.RA_BNN["accuracy"],
        _everywhere(_clean("BNN"), _clean("RA_BNN"), _clean("BNN_wide")),
        "attack-binary@RA_BNN-standard",
        "width: their grown network has over eight times the parameters of its base",
    )
    yield Comparison(
        published.RA_BNN["bits"],
        _everywhere(_flips("dense_8")[0], _flips("RA_BNN_1")[0]),
        "bitflip@RA_BNN_1",
        "their count is none of memory bits",
    )


def _awt() -> Iterator[Comparison]:
    ours = _studied("AWT_90", "random_90", "inherited_90", "dense")
    why = "densities, networks and schedules of theirs are not known; controls stand beside it"
    yield Comparison(published.AWT["ticket"], ours, "sparsity", why)


def _hydra() -> Iterator[Comparison]:
    for key, figure in published.HYDRA.items():
        method, _, sparsity = key.partition(" ")
        if key == "attack":
            why = "their error: PGD alone leaves 5 points more than AutoAttack does"
            yield Comparison(figure, _studied("HYDRA_90"), "sparsity", why)
        else:
            point = f"{method}_{sparsity.removesuffix(' %')}" if sparsity else method
            named = Figure(f"{key}: {figure.setting}", figure.figure)
            yield Comparison(named, _studied(point), "sparsity", _ticket_reason(sparsity))


def _ticket_reason(sparsity: str) -> str:
    if sparsity == "99 %":
        return "width: 1 % of a narrow network is fewer than 2,000 weights"
    return "short trainings, no further images" if sparsity else "data, width, no further images"


def _benchmark() -> Iterator[Comparison]:
    board = published.ADVERSARIAL_PRUNING
    for sparsity, (clean, robust) in zip(board.sparsities, board.rows["HYDRA"], strict=True):
        share = percent(sparsity, 0)
        yield Comparison(
            Figure(f"HYDRA, {share} %", f"clean {clean:.2f}, AutoAttack {robust:.2f}"),
            _studied(f"HYDRA_{share}"),
            "sparsity",
            _ticket_reason(f"{share} %"),
        )


SYSTEMS: tuple[System, ...] = (
    System(
        "E, S and R (nn-prune)",
        f"{published.NN_PRUNE.source}; percent",
        f"theirs is {published.NN_PRUNE.data}, at eps 0.03 and steps of 0.001; ours on CIFAR-10 "
        "has that budget, on digits six times as much. Their script prints the share of changed "
        "predictions as the success rate and the other way round: with 91.8 % clean and 0.2 % "
        "remnant accuracy at least 99.8 % of what was right is lost, which stands in the other "
        "column. Neither column is repeated here. What their README says of S is not what the code "
        "does; ours does as the code.",
        tuple(_nn_prune()),
    ),
    System(
        "GAP",
        published.GAP_SOURCE,
        "the published code attacks normalized images, so that its budget of 8/255 is about 2/255 "
        "in pixels and pixels may leave their range; it scores on augmented training images, and "
        "applies its rate of fine-tuning twice, which makes it 1e-6. Ours has the budget in "
        "pixels, test images and a fine-tuning that trains.",
        tuple(_gap()),
    ),
    System(
        "SAP, and the attacks that broke it",
        published.SAP_SOURCE,
        "ours is a ResNet18, on digits at six times the budgets, and of few images.",
        tuple(_sap()),
    ),
    System(
        "BFA",
        published.BFA_SOURCE,
        "their networks are trained through the quantizer, ours are rounded and much narrower. "
        "Behind ours stands an interval over batches, behind theirs a deviation.",
        tuple(_flipped(published.BFA, _BITS)),
    ),
    System(
        "RA-BNN",
        published.RA_BNN_SOURCE,
        "their attack turns over the sign of the float weight behind a bit, which changes several "
        "stored bits, with true labels of test images; ours flips stored bits, with predicted "
        "labels of training images. Theirs train for 1,000 epochs.",
        tuple(_binary()),
    ),
    System(
        "AWT",
        published.AWT_SOURCE,
        "no code of theirs is public; ours are settings. Means over seeds.",
        tuple(_awt()),
    ),
    System(
        "HYDRA",
        published.HYDRA_SOURCE,
        "theirs train for 100, 20 and 100 epochs, on 500,000 further images, and take the epoch of "
        "the best accuracy under attack on the test images; ours take the last. Means over seeds.",
        tuple(_hydra()),
    ),
    System(
        "The Adversarial Pruning Benchmark",
        f"{published.ADVERSARIAL_PRUNING.source}. Protocol: "
        f"{published.ADVERSARIAL_PRUNING.protocol}",
        "of its ten methods HYDRA is in this repository. Its loader finds three of the ten by name "
        "and leaves a network as it was initialized where a checkpoint has neither of the keys "
        "that it knows; sparsity is not checked. `advprune audit` refuses such files. Ours is the "
        "worst of two attacks by gradient, not AutoAttack. Means over seeds.",
        tuple(_benchmark()),
    ),
)
