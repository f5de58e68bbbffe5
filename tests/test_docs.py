"""What the documents say is so: links lead somewhere, results are the committed metrics'."""

import json
import pkgutil
import re
import subprocess

import pandas as pd
import pytest
import typer
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from workspace import ROOT

from advprune.cli.app import app
from advprune.core.claims import read_claims
from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.evaluate.flips import smallest_flip_p
from advprune.pruning import families
from advprune.report import docs
from advprune.report.docs import README as README_FILE
from advprune.report.results import read_results
from advprune.report.run import NOT_RUN
from advprune.report.sections.strength import beside_autoattack
from advprune.rl.settings import load as rl_load

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
RESULTS = re.findall(r"<!-- results: (\S+) -->", README)


def headings(page):
    """What a link may lead to inside a page, named as GitHub names it."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    missing = []
    for target in targets:
        name, _, part = target.partition("#")
        place = page.parent / name if name else page
        if not place.exists() or (part and part not in headings(place)):
            missing.append(target)
    assert not missing


def test_every_committed_report_is_shown_or_linked():
    committed = {p.name for p in (ROOT / "metrics").iterdir() if p.is_dir()}
    assert "digits" in committed and committed >= set(RESULTS)
    assert all(f"reports/{name}/report.md" in README for name in committed)


def rerun_here(folder="metrics"):
    """Whether metrics/ is not as committed: another machine may round otherwise."""
    if not (ROOT / ".git").exists():
        return True
    command = ["git", "status", "--porcelain", folder]
    return bool(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(rerun_here("reports"), reason="reports/ was made anew on this machine")
@pytest.mark.parametrize("page", [README_FILE, docs.PUBLISHED, docs.MEASUREMENT], ids=str)
def test_figures_of_ours_are_those_of_the_committed_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert docs.filled(text, docs.blocks_of(ROOT)[page]) == text


def test_the_sentences_on_width_16_are_what_its_results_say():
    """Width, images, number of models; what protects, what GAP resists, what costs robustness."""
    place = ROOT / "reports" / "cifar10-small"
    table = read_results((place / "results.csv").read_text(encoding="utf-8"), "it")
    run = table[table.verdict != NOT_RUN].set_index("model")
    text = " ".join(README.split())
    assert load(place / "params.yaml").active().model.width == 16
    assert set(run.n) == {1000} and len(run) == 16
    assert "ResNet18 of width 16, 1,000 test images, sixteen models of" in text
    made = run[run.parent != run.index].set_index("family", append=True).reset_index("model")
    standard, robust = (made[made.recipe == recipe] for recipe in ("standard", "robust"))
    assert "Trained without attacks, no model withstands 8/255" in text
    assert not standard.against_dense.str.startswith("higher").any()
    assert standard.robust_accuracy_high.max() < 0.01
    words = "GAP has 81 % clean accuracy, 38 % on images that PGD crafts on the dense network"
    assert f"{words}, and 31 % with momentum." in text
    assert standard.transfer_accuracy["GAP_layer"] == pytest.approx(0.378)
    assert standard.clean_accuracy["GAP_layer"] == pytest.approx(0.813)
    scenarios = shown("reports/cifar10-small/report.md", "Transfer scenarios").set_index("model")
    assert scenarios["from dense, momentum %"]["GAP_layer-standard"].startswith("31.1 ")
    others = standard[~standard.model.str.startswith("GAP")].transfer_accuracy_high
    assert standard.transfer_accuracy_low["GAP_layer"] > others.max()
    assert "points of robust accuracy; 8 bits, under more attacks, cost one, S and clam" in text
    assert robust.against_dense[["E", "R"]].str.startswith("equivalent").all()
    assert robust.robust_difference["int8"] == pytest.approx(-0.01, abs=0.005)
    assert robust.robust_difference[["S", "clamp"]].between(-0.115, -0.065).all()


def test_the_sentence_on_sap_is_what_the_report_of_width_16_says():
    """Over all budgets of FGSM and of PGD, and the adaptive attacks at the full one."""
    title = "Does SAP's published gain survive adaptive attacks?"
    found = shown("reports/cifar10-small/report.md", title).set_index(["attack", "eps"])
    left = found[["SAP %", "dense %"]].apply(lambda column: column.str.split().str[0])
    gains = found["difference points"].str.split().str[0].astype(float).groupby("attack")
    text = " ".join(README.split())
    assert "- SAP (100 images, 82 % clean against 91 %) differs from its dense network" in text
    assert "by −13 to +14 points under FGSM and +9 to +30 under PGD." in text
    assert set(found.model) == {"SAP_100"}
    assert left.loc["none", "0"].tolist() == ["82.0", "91.0"]
    ends = gains.agg(["min", "max"])
    assert ends.loc["fgsm"].tolist() == [-13, 14] and ends.loc["iterative"].tolist() == [9, 30]
    assert (
        "Attacks that know SAP leave 1 % of these images at 8/255, as on the dense network." in text
    )
    assert left.loc["adaptive, worst case", "8/255"].tolist() == ["1.0", "1.0"]


def test_the_sentence_on_width_32_is_what_its_results_say():
    place = ROOT / "reports" / "cifar10-w32" / "results.csv"
    run = read_results(place.read_text(encoding="utf-8"), "it").set_index("model")
    text = " ".join(README.split())
    assert ": S costs 12 points, LWM one; E and HYDRA: equivalent (±2 points)." in text
    assert set(run.n.dropna()) == {10000}
    assert run[run.parent != run.index].transfer_accuracy.isna().all()
    assert run.against_dense["S-robust"] == run.distance_against_dense["S-robust"] == "lower"
    assert run.against_dense["LWM_95-robust"] == "lower"
    lost = run.robust_difference[["S-robust", "LWM_95-robust"]]
    assert (100 * lost).round().tolist() == [-12, -1]
    for name in ("E-robust", "HYDRA_95-robust"):
        assert run.against_dense[name] == "equivalent within ±2 points", name


def shown(report, title):
    """The table below a heading of a committed report, as text."""
    part = (ROOT / report).read_text(encoding="utf-8").split(f"### {title}\n")[1]
    _, lines, _ = re.split(r"((?:^\|.*\n)+)", part, maxsplit=1, flags=re.MULTILINE)
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()
    )
    return pd.DataFrame(rows, columns=head)


def bpda_breaks_far_more():
    """Than the published gradient breaks of SAP-100: the intervals are apart."""
    table = shown("reports/digits/report.md", "Adaptive attacks")
    sap = table[table.model == "SAP_100"].set_index("attack")["mean logits %"]
    ends = sap.str.extract(r"\((.+)–(.+)\)").astype(float)
    return bool((ends[0][["constant_1", "constant_10"]] > ends[1]["identity_10"]).all())


def hydra_gains_less():
    """Than the smaller one of the published gains, over three seeds."""
    found = pd.read_csv(ROOT / "weights/cifar10-w32/claims.csv").set_index("id")
    rows = found.loc[["hydra-95", "hydra-99"]]
    smaller = bool((rows.difference < [0.035, 0.074]).all())
    return smaller and set(rows.outcome) == {"reproduced"} and set(rows.seeds) == {3}


def of_agents(name):
    """A constant of the package on agents, which is an extra."""
    pytest.importorskip("stable_baselines3")
    return pkgutil.resolve_name(f"advprune.rl.{name}")


AGENTS, CLAIMS = rl_load(ROOT / "rl" / "params.yaml"), read_claims(ROOT / "claims.yaml")
PUBLISHED_FIGURES = {one.id: one.published for one in CLAIMS}
KERNEL = next(one.needs.kernel_distance for one in CLAIMS if one.paper == "AWT")
STOP, SMALLEST = load(ROOT / "params.yaml").flips["stop"], smallest_flip_p(6, 6)


@pytest.mark.skipif(rerun_here("reports"), reason="reports/ was made anew on this machine")
@pytest.mark.parametrize(
    ("page", "sentence", "holds"),
    [
        ("families/sap", "at half the budget BPDA breaks far more", bpda_breaks_far_more),
        ("families/sap", "12 points more", lambda: "+12.2" in PUBLISHED_FIGURES["sap-fgsm-1"]),
        ("families/hydra", "more robust, by less than published", hydra_gains_less),
        ("families/tickets", "a kernel distance of 0.3", lambda: KERNEL == 0.3),
        (
            "families/threshold",
            "32.6 % remnant accuracy at S = 5",
            lambda: "32.6 % at S = 5" in PUBLISHED_FIGURES["nn-prune-S-remnant"],
        ),
        (
            "families/threshold",
            "34.2 % at R = 1e-3, where the dense network has 0.2 %",
            lambda: "0.2 % dense, 34.2 % at R = 1e-3" in PUBLISHED_FIGURES["nn-prune-R-remnant"],
        ),
        ("bit-flips", "at most `stop / classes`, 11 % for ten classes", lambda: STOP == 1.1),
        (
            "bit-flips",
            "With 6 seeds the smallest p of a single test is 0.002, so at most 23 comparisons",
            lambda: round(SMALLEST, 3) == 0.002 and 0.05 // SMALLEST == 23,
        ),
        ("reinforcement-learning", "`draws` is 20", lambda: AGENTS.draws == 20),
        (
            "reinforcement-learning",
            "ten steps of lambda / 4",
            lambda: of_agents("attack.STEPS") == 10,
        ),
        (
            "reinforcement-learning",
            "a convolution of 16 channels and one layer of 128",
            lambda: (of_agents("agent.CHANNELS"), AGENTS.games["breakout"].hidden) == (16, [128]),
        ),
        (
            "reinforcement-learning",
            "Two control tasks and one small arcade game",
            lambda: [*AGENTS.games] == ["cartpole", "acrobot", "breakout"],
        ),
    ],
)
def test_figures_in_sentences_are_those_of_records_and_settings(page, sentence, holds):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert sentence in " ".join(text.split())
    assert holds()


def test_every_family_has_the_page_of_its_docstring():
    made = docs.family_pages()
    assert {path.stem for path in (ROOT / docs.FOLDER).glob("*.md")} == set(made)
    assert {key for keys in docs.modules().values() for key in keys} == set(families())
    for name, text in made.items():
        assert (ROOT / docs.FOLDER / f"{name}.md").read_text(encoding="utf-8") == text
        for heading in ("**Claim (", "**Formula.**", "**Source.**", "## Settings"):
            assert heading in text, (name, heading)


def test_a_page_without_its_block_is_refused():
    with pytest.raises(UserError, match="needs exactly one"):
        docs.filled("<!-- a -->", {"a": "text"})


@pytest.mark.skipif(rerun_here("rl/report"), reason="rl/report was made anew on this machine")
def test_the_page_on_agents_quotes_their_report():
    page = (ROOT / "docs" / "reinforcement-learning.md").read_text(encoding="utf-8")
    report = (ROOT / "rl" / "report" / "report.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> \*\*(\w+)\.\*\* (.+)$", page, re.MULTILINE)
    assert len(quoted) == report.count("\n## ")
    assert all(f"## {game} (" in report and sentence in report for game, sentence in quoted)


def test_commands_in_the_readme_exist():
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= {"repro", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    known = typer.main.get_command(app).commands
    commands = set(re.findall(r"^advprune (\w+)", README, re.MULTILINE))
    assert commands and commands <= set(known)


def settings_shown():
    """What lines of the pages give to `dvc exp run -S`."""
    lines = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).splitlines()
    found = [re.findall(r"-S ('[^']+'|[^\s`;]+)", line) for line in lines]
    return [[one.strip("'") for one in group] for group in found if group and "…" not in group[0]]


@pytest.mark.parametrize("group", settings_shown(), ids=" ".join)
def test_settings_that_are_shown_can_be_set(group, tmp_path):
    copy = tmp_path / "params.yaml"
    for sweep in get_hydra_sweeps({"params.yaml": group}):
        copy.write_bytes((ROOT / "params.yaml").read_bytes())
        before = load(copy)
        apply_overrides(copy, sweep["params.yaml"])
        assert load(copy) != before


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_of_code_that_are_named_are_there(page):
    named = re.findall(
        r"\b(?:bench|src|stages|tests)/[\w/]+\.\w+", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_stage_is_described():
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8").split("\nartifacts:")[0]
    assert text.count("    desc: ") == text.count("    cmd: ")


def test_reference_networks_speak_before_a_report_on_the_same_networks(tmp_path):
    """Both are one column; what the reference networks do not answer comes from the report."""
    for name in ("README.md", "claims.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    first, second = (one.id for one in read_claims(ROOT / "claims.yaml")[:2])
    both = {"reports": f"{first},refuted\n{second},kept\n", "weights": f"{first},won\n"}
    for place, rows in both.items():
        folder = tmp_path / place / "same"
        folder.mkdir(parents=True)
        (folder / "claims.csv").write_text(f"id,outcome\n{rows}")
    page = docs.blocks_of(tmp_path)[docs.PUBLISHED]["claims"]
    assert "| won ‡" in page and "| kept  " in page and "| refuted" not in page


def test_images_that_the_suite_leaves_are_added_up_beside_those_of_autoattack(tmp_path):
    """Of 1,000 images 0.3 points are 3; a network without a row of the suite is not counted."""
    left = {"a": (600, 597), "b": (500, 504), "c": (404, 400)}
    rows = [
        {"model": model, "attacks": attacks, "n": 1000, "robust_accuracy": count / 1000}
        | {"passes_share": 1.0}
        for model, counts in left.items()
        for attacks, count in zip(("suite", "AutoAttack"), counts, strict=True)
    ]
    rows.append(rows[1] | {"model": "d"})
    (tmp_path / "bench").mkdir()
    for profile, own in {"one": rows[:2], "two": rows[2:]}.items():
        text = json.dumps({"profile": profile, "rows": own})
        (tmp_path / "bench" / f"strength-{profile}.json").write_text(text)
    text = beside_autoattack(tmp_path)
    assert "Over 3 networks the suite leaves 1,504 and AutoAttack 1,501 of 3,000 images." in text
    assert "difference is −4 to +4 images; the goal of 0.3 points is missed on 1 of them." in text
