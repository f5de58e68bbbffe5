"""The page: one list of sections, rendered as markdown and as one HTML file that needs no other."""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advprune.report import bits, growth, masks, plots, randomized, sparse, tables, transfers
from advprune.report.board import board
from advprune.report.calibration import calibration_table
from advprune.report.costs import breakdown_table, cost_table
from advprune.report.families import ROW, Claim, parts
from advprune.report.findings import findings
from advprune.report.study import Study
from advprune.report.summary import QUESTION, summary
from advprune.report.text import budget, markdown, percent, unbroken
from advprune.report.verdicts import check_table, verdict_table


@dataclass(frozen=True)
class Picture:
    """A figure by file name without ending, and what it shows.

    photo: whether it is made of images, whose grey must stay as it is on a dark page. live: what
    stands under its interactive form, where that is not the caption.
    """

    name: str
    alt: str
    caption: str
    photo: bool = False
    live: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in this order."""

    title: str
    text: str = ""
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    after: str = ""


def html(study: Study, pngs: dict[str, bytes], claims: Mapping[str, Claim] | None = None) -> str:
    """The report as HTML: figures, plots, style and scripts inside it; all text is escaped.

    Figures that have an interactive form are not put in as pictures. claims: by family.
    """
    found = plots.plots(study, pngs)
    data = {name: b64encode(d).decode() for name, d in pngs.items() if name not in found}
    more = {
        "data": data,
        "plots": {name: asdict(plot) for name, plot in found.items()},
        "dark": plots.DARK,
        "bokeh": Markup(plots.library() if found else ""),
        "board": board(study),
    }
    return _render("page.html.j2", study, pngs, claims, True, **more)


def report_markdown(
    study: Study, pngs: dict[str, bytes], claims: Mapping[str, Claim] | None = None
) -> str:
    """The report as GitHub markdown, figures by relative path; all text is escaped.

    Of a family it has what the leaderboard does not: what was found, and its rows elsewhere.
    """
    return _render("report.md.j2", study, pngs, claims, False, row=ROW)


def _render(
    template: str,
    study: Study,
    pngs: dict[str, bytes],
    claims: Mapping[str, Claim] | None,
    is_html: bool,
    **more: Any,
) -> str:
    environment = Environment(
        loader=PackageLoader("advprune.report", "."),
        autoescape=is_html,
        finalize=None if is_html else _escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Bokeh names an object where it first comes: in the order of writing, not of the alphabet.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters |= {"table": _markdown_table, "looks": _looks, "anchor": anchor}
    content = _content(study, frozenset(pngs)) | {"parts": parts(study, claims or {})}
    return environment.get_template(template).render(content | more)


@cache
def _content(study: Study, drawn: frozenset[str]) -> dict[str, Any]:
    """What both forms of the report show."""
    return {
        "profile": study.params.profile,
        "origin": _origin(study),
        "question": QUESTION,
        "summary": [unbroken(sentence) for sentence in summary(study)],
        "findings": [
            (unbroken(finding.title), unbroken(finding.text).split("\n\n"), finding.folded)
            for finding in findings(study)
        ],
        "sections": sections(study, drawn),
    }


def _origin(study: Study) -> str:
    """Which images, how many, and what whoever ran it says of the run."""
    n, note = len(study.models[0].attack(study.main)), study.params.active().note
    computed = "Every number on this page is computed from the records of the run."
    return f"Data: {study.source}, n = {n} test images. {computed} {note}".strip()


def anchor(text: str) -> str:
    """A name that a link can lead to: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _escaped(value: Any) -> Any:
    return value if isinstance(value, Markup) else markdown(value)


def _looks(table: pd.DataFrame) -> list[Markup]:
    """The class of each column's cells: sentences are notes, longer figures may wrap."""
    longest = [table.iloc[:, i].astype(str).str.len().max() for i in range(table.shape[1])]
    names = ["note" if size > 44 else "wrap" if size > 24 else "" for size in longest]
    return [Markup(f' class="{name}"') if name else Markup() for name in names]


def _markdown_table(table: pd.DataFrame) -> Markup:
    escaped = table.map(markdown).rename(columns=markdown)
    return Markup(escaped.to_markdown(index=False, disable_numparse=True))


def sections(study: Study, drawn: frozenset[str]) -> list[Section]:
    """All sections in order; pictures that were not drawn are left out, and what is empty."""
    makers = (
        _leaderboard,
        _verdict,
        _calibration,
        _randomized,
        _published,
        _curves,
        _masks,
        _sparse,
        _quantized,
        _grown,
        _transfer,
        _bits,
        _layers,
        _images,
        _weights,
        _costs,
        _settings,
    )
    kept = [_filled(make(study), study, drawn) for make in makers]
    return [section for section in kept if section.tables or section.pictures]


def _filled(section: Section, study: Study, drawn: frozenset[str]) -> Section:
    """Without pictures that were not drawn, empty tables, and the base where there is one."""
    return replace(
        section,
        text=unbroken(section.text),
        after=unbroken(section.after),
        tables=[(words, _plain(study, table)) for words, table in section.tables if len(table)],
        pictures=[picture for picture in section.pictures if picture.name in drawn],
    )


def conditions(study: Study) -> str:
    """n, budget, steps, restarts and seed of the main attack, in one line."""
    setting = study.main_attack
    return (
        f"Attack {study.main}: {setting.norm}, eps {budget(setting.eps)}, step "
        f"{budget(setting.step)}, {setting.steps} steps, restarts {setting.restarts}, "
        f"seed {study.params.seed}; n = {len(study.models[0].attack(study.main))} test images."
    )


def _each_group(study: Study, kind: str, alt: str, caption: str, live: str = "") -> list[Picture]:
    """A figure that is drawn for each group of models, or for each base."""
    named = study.each_base(kind) if kind == "sweep" else study.each_group(kind)
    return [
        Picture(name, f"{alt} ({group})", f"{group}: {caption}", live=f"{group}: {live or caption}")
        if len(named) > 1
        else Picture(name, alt, caption, live=live)
        for group, name in named
    ]


def _leaderboard(study: Study) -> Section:
    setting = study.main_attack
    return Section(
        "Leaderboard",
        f"Robust: what is left per image in the worst case over the suite of the model's kind "
        f"({setting.norm}, eps {budget(setting.eps)}). {conditions(study)} Brackets hold 95 % "
        "Wilson intervals. “Against dense” is McNemar's exact test of the robust accuracy on the "
        "same images, each alone: “=” means that no difference is shown (p ≥ 0.05), and a model "
        "at chance when clean is not compared. The findings correct for there being several "
        "tests. Transfer: images that the main attack crafted on the dense network.",
        [
            ("", tables.leaderboard(study)),
            ("Sizes, calibration and cost", tables.sizes_table(study)),
            ("Randomized models: three ways of scoring the worst case", tables.draws_table(study)),
            ("Remnant accuracy under every attack", tables.every_attack(study)),
        ],
        [
            Picture(
                "tradeoff",
                "Robust accuracy of each model over its clean accuracy",
                "Robust over clean accuracy. Colour: group of models. Size: sparsity. Circle: "
                "reliable, triangle: suspect, cross: broken.",
            )
        ],
        after="Sparsity is counted in the saved file; the prune ratio counts changed or zeroed "
        "parameters. MACs: multiply-accumulates an image; a zero costs as much as any number, a "
        f"smaller layer less. Change: predictions that {study.main} changes. Strict ASR: attacked "
        "images that fool, among those classified correctly when clean. ECE: 15 equal-width bins. "
        "Gradients and forwards: passes per image of the whole suite. Randomized models are scored "
        f"by their mean logits over {study.params.attack.score_draws} draws; beside it stand a "
        "single draw, and what is left where an image counts as broken only if at least 9 of 10 "
        "draws are wrong.",
    )


def _verdict(study: Study) -> Section:
    return Section(
        "Verdict",
        "Checks on the records of each row, without anyone's judgement: ✓ passed, ? in doubt, ✗ "
        "contradicted. One that is contradicted makes the robust accuracy broken, one in doubt "
        "makes it suspect. White-box: per image the worst of the attacks by gradient.",
        [
            ("", verdict_table(study)),
            ("All checks", check_table(study)),
        ],
    )


def _calibration(study: Study) -> Section:
    caption = (
        f"clean and under {study.main}; the confidence in 15 equal-width bins. Black: a bin's "
        "accuracy. Bar: from there to its mean confidence. The fainter, the fewer images."
    )
    return Section(
        "Calibration",
        "ECE, negative log likelihood and Brier score, clean and on the images of "
        f"{study.main}. {conditions(study)}",
        [("", calibration_table(study))],
        _each_group(study, "reliability", "Reliability diagrams", caption),
    )


def _randomized(study: Study) -> Section:
    if not randomized.members(study):
        return Section("SAP's published protocol")
    settings, n = study.params.active().protocol, study.protocol["index"].nunique()
    budgets = "Accuracy over the budget, above by one step of FGSM, below by the iterative attack."
    return Section(
        "SAP's published protocol",
        f"FGSM whose gradient is averaged over {settings.draws} draws, predictions by the mean "
        f"softmax over {settings.draws} draws, on the first n = {n} test images; the iterative "
        "and adaptive attacks are scored by mean logits over "
        f"{study.params.attack.score_draws} draws. Brackets hold 95 % intervals.",
        [
            ("Members", randomized.member_table(study)),
            ("FGSM", randomized.budget_table(study, randomized.FGSM)),
            ("Iterative", randomized.budget_table(study, randomized.ITERATIVE)),
            ("Adaptive attacks", randomized.adaptive_table(study)),
            ("Settings of these attacks", randomized.schedule_table(study)),
        ],
        [
            Picture("protocol", "Accuracy of SAP and its neighbours over eps", budgets),
            Picture(
                "controls",
                "Accuracy of stochastic controls over eps",
                f"Stochastic controls and variants. {budgets}",
            ),
        ],
    )


def _costs(study: Study) -> Section:
    return Section(
        "Costs",
        "Passes through the network per image, from the records; a pass of every draw counts. "
        "Where the models of a kind differ, from the least to the most.",
        [
            ("", cost_table(study)),
            ("Images still right after each part of AutoAttack", breakdown_table(study)),
        ],
    )


def _plain(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Without the column that says the same in every row: the base, where there is one."""
    single = len(study.params.bases) == 1
    return table.drop(columns="base", errors="ignore") if single else table


def _published(study: Study) -> Section:
    captions = [(f"Base {base}", table) for base, table in tables.published_table(study).items()]
    eps = ", ".join(f"{n}: eps {budget(a.eps)}, {a.steps} steps" for n, a in _attacks(study))
    return Section(
        "The published table",
        "Every setting of every sweep under every attack, in the columns of the nn-prune table. "
        f"The int8 row is scored on images crafted on the dense network. {eps}. "
        f"n = {_images_of_sweeps(study)}, seed {study.params.seed}; brackets hold "
        "95 % intervals, “=” means that no difference from dense is shown on the same images.",
        captions,
    )


def _images_of_sweeps(study: Study) -> int:
    return len(study.swept.models[0].attack(study.main))


def _attacks(study: Study) -> list[tuple[str, Any]]:
    return list(study.attacks.items())


def _curves(study: Study) -> Section:
    made = (
        (
            "sweep",
            "Accuracy over each family's setting",
            "Remnant accuracy over the setting, a line an attack, with 95 % intervals. Thin "
            "black lines: the dense network under the same attack. Grey: clean accuracy. "
            f"n = {_images_of_sweeps(study)}.",
        ),
        (
            "security",
            "Remnant accuracy over eps, and the difference from the dense network",
            f"Security curve, schedule of {study.main} with the step in proportion to eps. "
            "Below: the difference from dense; the grey band is dense's 95 % interval.",
            f"Security curve, schedule of {study.main} with the step in proportion to eps. Grey: "
            "dense's 95 % interval.",
        ),
        (
            "steps",
            "Remnant accuracy over the number of steps",
            f"Step curve at the budget of {study.main}. A curve that still falls at its end "
            "says that the attack has not converged.",
        ),
    )
    return Section(
        "Curves",
        pictures=[picture for one in made for picture in _each_group(study, *one)],
        after="The numbers are in curves/security.csv, curves/steps.csv and curves/sweep.csv.",
    )


def _masks(study: Study) -> Section:
    caption = (
        "each scheme as it is fine-tuned for the leaderboard, with 95 % intervals. Above: without "
        "an attack. Middle: attacked itself. Below: on images crafted on the uncompressed network."
    )
    return Section(
        "Compression by masks",
        "Compression: all parameters over those that are not zero. White-box: the model attacked "
        f"itself. Dense → model: images crafted on the uncompressed network. "
        f"{conditions(study.swept)}",
        [
            ("Schemes and settings", masks.mask_table(study)),
            ("Variants of GAP", masks.variant_table(study)),
        ],
        [Picture("compression", "Accuracy of each scheme over compression", f"Curves: {caption}")],
    )


def _sparse(study: Study) -> Section:
    if not sparse.entries(study):
        return Section("Sparse and robust")
    return Section(
        "Sparse and robust",
        f"Networks that are made sparse and trained to be robust. {sparse.conditions(study)}",
        [
            ("", sparse.point_table(study)),
            ("Learned masks against their controls, paired", sparse.pair_table(study)),
            ("Beside published results, clean / robust %", sparse.published_table(study)),
        ],
        [
            Picture(
                "sparsity",
                "Clean and robust accuracy of sparse networks over sparsity",
                "Accuracy over sparsity with 95 % intervals. Black: the dense networks.",
            ),
            Picture(
                "sparsity-training",
                "Loss, clean and robust accuracy over epochs of training",
                "Means over seeds, phases of training one after another. Loss: of the images that "
                "are trained on. Accuracy: of validation images (of dense networks all of them).",
            ),
            Picture(
                "tickets",
                "Distance of sparse networks from the dense one over the search",
                "Outputs and tangent kernel of tickets against the dense network's at "
                "initialization, on one batch: squared distance over squared norm, mean and range "
                "over seeds. A point is a ticket that is not searched for.",
            ),
        ],
        after="Sparsity: share of the weights that go; zeros: of all weights and biases, as found. "
        "Of each training of a family the last epoch is taken; no test image chooses. p: corrected "
        f"for a family's pairs (Holm). {sparse.protocol_words(study)} The numbers are in "
        "curves/sparsity.csv.",
    )


def _quantized(study: Study) -> Section:
    return Section(
        "Quantized models",
        "Three ways to attack integers: through the differentiable twin, by images crafted on the "
        "float copy (as published with GAP), both scored on the integers; and the float copy's own "
        f"white-box accuracy beside them. {conditions(study)}",
        [("", masks.quantized_table(study))],
    )


def _grown(study: Study) -> Section:
    settings = study.params.growth
    return Section(
        "Early-Growth",
        f"How wide binary networks have to be: a network {settings.factor} times as wide as the "
        "base network is trained with a gate on every channel, and what is on in the end says how "
        "many channels each layer of the grown networks gets. Those are trained from scratch.",
        [("", growth.channel_table(study))],
        [
            Picture(
                "growth",
                "Share of channels that are on over the epochs of growth, and accuracy",
                "Share of the wide network's channels that are on; dotted: as many as the base "
                "network has; grey: of the channels that are the base network's own. Inside "
                "blocks: the stage's colour, the second block dashed. Below: validation images, "
                "dashed those that are trained on.",
            )
        ],
        after="No attack takes part, and nothing asks for few channels. The numbers are in "
        "curves/growth.csv.",
    )


def _transfer(study: Study) -> Section:
    captions = [(f"Base {b}", transfers.scenario_table(study, b)) for b in study.params.bases]
    attacks = " and ".join(transfers.exchanged(study))
    picture = Picture(
        "transfer",
        "Accuracy of each model on the images of each source",
        f"Rows: what the images were crafted on, under {study.main}. Columns: what they were tried "
        "on. The diagonal is white-box.",
    )
    return Section(
        "Transfer",
        f"Every model on the images of every other, under {study.main}; dense networks and an "
        f"attacker's own send out those of {attacks}. Success counts only images that source and "
        "target both classify correctly when clean. An attacker's own network stands with the "
        "attack that does most harm; all sources: per image the worst of all of them but the model "
        f"itself. {conditions(study)}",
        captions,
        [picture],
        after=f"Scoring the models took {transfers.passes(study):,} forward passes; images are "
        "crafted once a source. The whole matrix with success rates and intervals is in "
        "curves/transfer.csv.",
    )


def _bits(study: Study) -> Section:
    """The bit-flip attack; the levels are told because they are settings."""
    settings = study.params.active().bitflip
    return Section(
        "Bits under attack",
        "Progressive bit search on the stored weights: how many bits have to be turned over until "
        f"accuracy on the test images (n = {len(study.clean_images)}) is at most "
        f"{percent(study.chance)} %, which is {settings.stop:g} times chance. A seed is a batch of "
        f"{settings.images} training images, labelled by the stored network itself; "
        f"{settings.seeds} seeds, at most {settings.budget} flips each where the entry does not "
        "say otherwise. Flips to chance: bits that differ then, mean and 95 % t interval over "
        "seeds; seeds that did not come down are never averaged, and “more than” tells what was "
        "tried instead.",
        [
            ("", bits.flip_table(study)),
            ("Other searches", bits.variant_table(study)),
            ("Where the flips land", bits.place_table(study)),
        ],
        [
            Picture(
                "bitflip",
                "Accuracy over flips of stored bits, chosen and random",
                "Mean over seeds, and their range; a seed that has come down stays where it is. "
                "Dotted: the level that counts as guessing.",
            ),
            Picture(
                "bitflip-places",
                "Layers and bits in which the flips fell",
                "Share of an entry's untargeted flips, all seeds together. Layers are those that "
                "are stored; the highest bit is the sign.",
            ),
        ],
        after="Margin: a loss that leaves alone what is wrong already. Targeted: all images into "
        f"class {settings.target}. Random: uniform over all stored bits. The numbers are in "
        "curves/bitflip.csv and curves/flips.csv.",
    )


def _layers(study: Study) -> Section:
    caption = (
        "Relative difference: L2 norm of the change over that of the clean maps. Distance: "
        "1-Wasserstein between the distributions of values, in units of the clean sigma. Last: "
        "sigma of the maps under attack over sigma on clean images."
    )
    marked = " Models take turns in marking a layer, since many coincide."
    alt = "Difference between clean and attacked feature maps over depth"
    return Section(
        "Where the attack acts",
        conditions(study),
        pictures=_each_group(study, "layers", alt, caption + marked, caption),
    )


def _images(study: Study) -> Section:
    eps = budget(study.main_attack.eps)
    picture = Picture(
        "images",
        "Clean and attacked images and the change, with the predicted class under each",
        f"Under each image is what the model (base {study.models[0].base}) predicts. Change: "
        f"grey is none, white is +{eps}, black is -{eps}.",
        photo=True,
    )
    return Section("Images", "", [], [picture])


def _weights(study: Study) -> Section:
    caption = (
        "All weights and biases before (grey) and after (line), logarithmic; the outer bins take "
        "in everything beyond mean ± 4 sigma of the dense network. Families that change no weight "
        "are left out."
    )
    alt = "Histograms of the weights before and after"
    return Section("Weights", pictures=_each_group(study, "weights", alt, caption))


def _settings(study: Study) -> Section:
    return Section(
        "Settings and versions",
        "",
        [("Attacks", tables.settings_table(study)), ("Versions", tables.versions_table())],
    )
