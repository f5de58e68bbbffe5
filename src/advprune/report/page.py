"""The page: one list of sections, rendered as markdown and as one HTML file that needs no other."""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advprune.report import tables
from advprune.report.findings import findings
from advprune.report.study import Study
from advprune.report.text import budget, markdown


@dataclass(frozen=True)
class Picture:
    """A figure by file name without ending, and what it shows."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order."""

    title: str
    text: str = ""
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    after: str = ""


def html(study: Study, pngs: dict[str, bytes]) -> str:
    """The report as HTML, figures and style inside it; all text is escaped."""
    data = {name: b64encode(data).decode() for name, data in pngs.items()}
    return _render("page.html.j2", study, pngs, True, data=data)


def report_markdown(study: Study, pngs: dict[str, bytes]) -> str:
    """The report as GitHub markdown, figures by relative path; all text is escaped."""
    return _render("report.md.j2", study, pngs, False)


def _render(template: str, study: Study, pngs: dict[str, bytes], is_html: bool, **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("advprune.report", "."),
        autoescape=is_html,
        finalize=None if is_html else _escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["table"] = _markdown_table
    content = {
        "profile": study.params.profile,
        "source": study.source,
        "n": len(study.models[0].attack(study.main)),
        "findings": [
            (unbroken(finding.title), unbroken(finding.text).split("\n\n"))
            for finding in findings(study)
        ],
        "sections": sections(study, set(pngs)),
    }
    return environment.get_template(template).render(content | more)


def unbroken(text: str) -> str:
    """Text in which no line ends between a number and its sign."""
    for sign in (" %", "n = ", "p = ", "p < ", "eps "):
        text = text.replace(sign, sign.replace(" ", "\u00a0"))
    return text


def _escaped(value: Any) -> Any:
    return value if isinstance(value, Markup) else markdown(value)


def _markdown_table(table: pd.DataFrame) -> Markup:
    escaped = table.map(markdown).rename(columns=markdown)
    return Markup(escaped.to_markdown(index=False, disable_numparse=True))


def sections(study: Study, drawn: set[str]) -> list[Section]:
    """All sections in order; pictures that were not drawn are left out, and empty sections."""
    made = [
        _leaderboard(study),
        _published(study),
        _curves(study),
        _transfer(study),
        _layers(study),
        _images(study),
        _weights(),
        _settings(study),
    ]
    kept = [
        Section(s.title, s.text, s.tables, [p for p in s.pictures if p.name in drawn], s.after)
        for s in made
    ]
    return [section for section in kept if section.tables or section.pictures]


def conditions(study: Study) -> str:
    """n, budget, steps, restarts and seed of the main attack, in one line."""
    setting = study.main_attack
    return (
        f"Attack {study.main}: {setting.norm}, eps {budget(setting.eps)}, step "
        f"{budget(setting.step)}, {setting.steps} steps, restarts {setting.restarts}, "
        f"seed {study.params.seed}; n = {len(study.models[0].attack(study.main))} test images."
    )


def _leaderboard(study: Study) -> Section:
    return Section(
        "Leaderboard",
        f"{conditions(study)} Brackets hold 95 % Wilson intervals. “Against dense” is McNemar's "
        "exact test of the remnant accuracy on the same images, each alone: “=” means that no "
        "difference is shown (p ≥ 0.05), and a model at chance when clean is not compared. The "
        "findings correct for there being several tests. "
        "Transfer: images crafted on the dense network.",
        [
            ("", _plain(study, tables.leaderboard(study))),
            ("Remnant accuracy under every attack", _plain(study, tables.every_attack(study))),
        ],
        after="Sparsity is counted in the saved file; the prune ratio counts changed or zeroed "
        "parameters. Change: predictions that the attack changes. Strict ASR: attacked images that "
        "fool, among those classified correctly when clean. ECE: 15 equal-width bins.",
    )


def _plain(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Without the column that says the same in every row: the base, where there is one."""
    return table.drop(columns="base") if len(study.params.bases) == 1 else table


def _published(study: Study) -> Section:
    captions = [(f"Base {base}", table) for base, table in tables.published_table(study).items()]
    eps = ", ".join(f"{n}: eps {budget(a.eps)}, {a.steps} steps" for n, a in _attacks(study))
    return Section(
        "The published table",
        "Every setting of every sweep under every attack, in the columns of the nn-prune table. "
        f"The int8 row is scored on images crafted on the dense network. {eps}. "
        f"n = {len(study.models[0].attack(study.main))}, seed {study.params.seed}; brackets hold "
        "95 % intervals, “=” means that no difference from dense is shown on the same images.",
        captions,
    )


def _attacks(study: Study) -> list[tuple[str, Any]]:
    return list(study.attacks.items())


def _curves(study: Study) -> Section:
    return Section(
        "Curves",
        "",
        [],
        [
            Picture(
                "sweep",
                "Accuracy over each family's setting",
                "Remnant accuracy over the setting, a line an attack, with 95 % intervals. Thin "
                "black lines: the dense network under the same attack. Grey: clean accuracy.",
            ),
            Picture(
                "security",
                "Remnant accuracy over eps, and the difference from the dense network",
                f"Security curve, schedule of {study.main} with the step in proportion to eps. "
                "Below: the difference from dense; the grey band is dense's 95 % interval.",
            ),
            Picture(
                "steps",
                "Remnant accuracy over the number of steps",
                f"Step curve at the budget of {study.main}. A curve that still falls at its end "
                "says that the attack has not converged.",
            ),
        ],
        after="The numbers are in curves/security.csv, curves/steps.csv and curves/sweep.csv.",
    )


def _transfer(study: Study) -> Section:
    captions = [(f"Base {b}", tables.transfer_matrix(study, b)) for b in study.params.bases]
    picture = Picture(
        "transfer",
        "Accuracy on transferred images for each model",
        "Accuracy on a fixed scale of 0 to 100 %, under each attack: the model attacked itself "
        "(white-box), on the dense network's images, and the dense network on the model's.",
    )
    return Section(
        "Transfer",
        f"{conditions(study)} Success counts only images that source and target both classify "
        "correctly when clean.",
        captions,
        [picture],
    )


def _layers(study: Study) -> Section:
    picture = Picture(
        "layers",
        "Difference between clean and attacked feature maps over depth",
        "Relative difference: L2 norm of the change over that of the clean maps. Distance: "
        "1-Wasserstein between the distributions of values, in units of the clean sigma. Last: "
        "sigma of the maps under attack over sigma on clean images. Models take turns in marking a "
        "layer, since many coincide.",
    )
    return Section("Where the attack acts", conditions(study), [], [picture])


def _images(study: Study) -> Section:
    eps = budget(study.main_attack.eps)
    picture = Picture(
        "images",
        "Clean and attacked images and the change, with the predicted class under each",
        "Under each image is what the model predicts. Change: grey is none, white is "
        f"+{eps}, black is -{eps}.",
    )
    return Section("Images", "", [], [picture])


def _weights() -> Section:
    picture = Picture(
        "weights",
        "Histograms of the weights before and after",
        "All weights and biases before (grey) and after (line), logarithmic; the outer bins take "
        "in everything beyond mean ± 4 sigma of the dense network.",
    )
    return Section("Weights", "", [], [picture])


def _settings(study: Study) -> Section:
    return Section(
        "Settings and versions",
        "",
        [("Attacks", tables.settings_table(study)), ("Versions", tables.versions_table())],
    )
