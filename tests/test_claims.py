"""The register of claims: each outcome and its reason on runs made by hand; refused entries."""

from dataclasses import replace

import pandas as pd
import pytest
from handmade import MODELS, N, layer_table, model, settings
from planted import whole as run_of
from scipy.stats import binomtest
from scipy.stats import norm as normal
from scipy.stats import t as student
from test_sections import flips, hits, networks, seeded, versus
from workspace import ROOT

from advprune.core.claims import READS, Claim, read_claims
from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.evaluate.means import compare_means
from advprune.report.claim_command import command, stages_of
from advprune.report.claim_metrics import METRICS
from advprune.report.docs import claims_of
from advprune.report.run import Absent
from advprune.report.sections import seeds
from advprune.report.sections.claims import NOT_HERE, NOT_RUN, REFUTED, REPRODUCED, judged
from advprune.report.sections.claims import claims as section
from advprune.report.sections.claims import outcomes as outcome_table

HERE = {"published": "digits", "data": ["digits"]}
ELSEWHERE = HERE | {"data": ["cifar10"]}
ENTRY = {"paper": "P", "source": "S", "where": "W", "claim": "C", "run": "dvc repro"}
E = {"metric": "attacked", "model": "E-standard", "control": "dense-standard"}


def claim(name="c", regime=HERE, **own):
    """A claim, by default that E is better under the main attack, made in this run's regime."""
    return Claim.model_validate({"id": name, "regime": regime} | ENTRY | E | own)


def outcomes(run, *claims):
    return judged(replace(run, claims=claims))


def against(own, dense, clean=N, **card):
    """A dense network and E made of it, which keep so many of N images under the main attack."""
    params = settings()
    base = model("dense-standard", params, {"field": dense}, parameters=1000)
    return run_of([base, model("E-standard", params, {"field": own}, None, clean, **card)], params)


@pytest.mark.parametrize(
    ("own", "dense", "words", "outcome", "reason"),
    [
        (30, 2, {"effect": 0.1}, REPRODUCED, ""),
        (2, 30, {"effect": 0.1, "expect": "lower"}, REPRODUCED, ""),
        (2, 2, {"effect": 0.5}, REFUTED, "the interval excludes it"),
        (30, 2, {"effect": 0.1, "expect": "lower"}, REFUTED, "the interval excludes it"),
        (3, 2, {"effect": 0.01}, NOT_HERE, "underpowered: detects 19."),
        (20, 8, {"effect": 0.4}, NOT_HERE, "the difference is below the threshold"),
        (12, 8, {"effect": 0.4}, REFUTED, "the interval excludes it"),
        (2, 2, {"expect": "equal", "margin": 0.2}, REPRODUCED, ""),
        (2, 2, {"expect": "equal", "margin": 0.01}, NOT_HERE, "underpowered"),
        (2, 30, {"expect": "equal", "margin": 0.2}, REFUTED, "the interval excludes it"),
        (2, 30, {"expect": "no higher", "margin": 0.2}, REPRODUCED, ""),
        (30, 2, {"expect": "no higher", "margin": 0.2}, REFUTED, "the interval excludes it"),
    ],
)
def test_outcomes(own, dense, words, outcome, reason):
    (found,) = outcomes(against(own, dense), claim(**words))
    assert found.outcome == outcome and found.reason.startswith(reason), found.reason
    assert bool(found.reason) == bool(reason)
    assert found.n == N and found.seeds == 1 and found.test is not None
    assert found.test.difference == pytest.approx((own - dense) / N)


@pytest.mark.parametrize(
    ("regime", "away"),
    [
        (ELSEWHERE, "cifar10; here digits"),
        (HERE | {"networks": ["resnet20"]}, "digits, resnet20; here resnet18"),
        (HERE | {"width": 64, "n": 1000}, "digits, width 64, n 1,000; here width 8, n 40"),
        (HERE | {"epochs": 99, "seeds": 3}, "digits, epochs 99, seeds 3; here epochs 25, seeds 1"),
    ],
)
def test_nothing_is_refuted_outside_its_regime(regime, away):
    no, yes, unmet, here = outcomes(
        against(30, 2, prune_ratio=0.1),
        claim("no", regime, effect=0.1, expect="lower"),
        claim("yes", regime, effect=0.1),
        claim("unmet", regime, effect=0.1, needs={"changed": 0.5}),
        claim("here", effect=0.1),
    )
    assert no.outcome == NOT_HERE
    assert no.reason == "the interval excludes it, but in another regime"
    assert yes.outcome == REPRODUCED and not yes.reason
    assert {no.regime, yes.regime, unmet.regime} == {away}
    assert (unmet.n, unmet.seeds, unmet.test) == (N, 1, None)
    assert here.regime == "digits; reached"


def test_epochs_are_those_of_the_last_training_on_the_way_to_a_model():
    """A quantized model is trained as the model it was made of, not as the dense network."""
    entry = {"do": "quantize", "of": "GAP_layer-standard", "by": "quantize.int8"}
    params = settings(models=MODELS | {"GAP_int8-standard": entry})
    made = [model(name, params, {"field": 2}) for name in ("dense-standard", "GAP_int8-standard")]
    regime, own = HERE | {"epochs": 10}, {"model": "GAP_int8-standard", "effect": 0.1}
    (found,) = outcomes(run_of(made, params), claim(regime=regime, **own))
    assert found.regime == "digits, epochs 10; here epochs 6"


def test_p_is_corrected_for_all_claims_of_the_run_that_were_tested():
    run = against(9, 2)
    alone = binomtest(7, 7, 0.5).pvalue
    missing = claim("missing", model="clamp-standard", effect=0.1)
    (single,) = outcomes(run, claim(effect=0.1))
    pair = outcomes(run, claim("a", effect=0.1), missing, claim("b", effect=0.1))
    assert single.p == alone and single.outcome == REPRODUCED
    assert [one.p for one in pair] == [2 * alone, None, 2 * alone]
    # Of equivalence it is the claim's own p that is corrected.
    many = [claim(str(k), effect=0.1) for k in range(5)]
    same = outcomes(against(2, 2), *many, claim("same", expect="equal", margin=0.2))[-1]
    assert same.test is not None and same.p is not None and same.p < 0.05
    assert same.outcome == REPRODUCED and same.test.tests == 6


def test_what_is_missing_is_named_with_its_command():
    lacking = claim("model", model="clamp-standard", run="make it", effect=0.1)
    control = claim("control", control="clamp-standard", effect=0.1)
    attack = claim("attack", attack="nes", effect=0.1)
    found = outcomes(against(3, 2), lacking, control, attack)
    assert [one.outcome for one in found] == [NOT_RUN] * 3
    assert [one.reason for one in found] == [
        "clamp-standard is not part of this run",
        "clamp-standard, its control, is not part of this run",
        "nes was not run on E-standard",
    ]
    assert [one.command for one in found] == ["make it", "dvc repro", "dvc repro"]
    assert {one.regime for one in found} == {"digits"}


SMALL, LAST = "params/cifar10-small.yaml", "dvc repro -s transfer summarize"
POINTS = {"study": "seeds", "model": "HYDRA_95", "control": "LWM_95"}


def test_the_command_names_the_stages_of_a_claim():
    """Of the run's settings where it was tested or they declare what the run lacks, else of the
    register's."""
    known = {"run": "", "params": SMALL, "metric": "robust", "effect": 0.1}
    clamp, masks = claim(control="clamp-standard", **known), claim(**known | POINTS)
    pair = {"model": "BNN_wide-standard", "control": "RA_BNN-standard"}
    flips = claim(**known | {"metric": "flips"} | pair)
    run, copied = replace(against(3, 2), folder=ROOT), f"cp {SMALL} params.yaml && "
    own = "cp reports/digits/params.yaml params.yaml && "
    models = f"dvc repro attack_dense@standard attack@E-standard attack@clamp-standard && {LAST}"
    assert command(run, clamp, False) == copied + models
    assert command(run, masks, False) == f"{copied}dvc repro study@masks && {LAST}"
    (tested,) = outcomes(run, claim(**known))
    assert tested.command == f"{own}dvc repro attack_dense@standard attack@E-standard && {LAST}"
    points = {name: {"family": "LWM"} for name in ("HYDRA_95", "LWM_95")}
    studies = {
        "seeds": {"study": "seeds", "of": "dense-robust", "points": points},
        "bits": {"study": "bitflip", "of": "RA_BNN-standard", "bits": 1},
        "more": {"study": "compression", "of": "dense-standard"},
    }
    absent = [Absent("model", "clamp-standard", ""), Absent("study", "seeds", "")]
    run = replace(run, params=settings(studies), absent=tuple(absent))
    assert command(run, clamp, False) == own + models
    assert command(run, masks, False) == f"{own}dvc repro study@seeds && {LAST}"
    both = "attack_dense@standard study@flips-BNN_wide study@flips-RA_BNN"  # one is declared here
    assert command(run, flips, False) == f"{copied}dvc repro {both} && {LAST}"
    transfer = replace(run, absent=(Absent("transfer", "E-standard", "transfer"),))
    matched = claim(**known | {"metric": "transfer"}, matched=True)
    stages = "attack_dense@standard attack@E-standard"
    assert command(transfer, claim(**known), False) == f"{own}dvc repro {stages} && {LAST}"
    assert command(transfer, matched, True) == f"{own}dvc repro {stages} study@more && {LAST}"


def test_agents_are_compared_in_the_game_where_the_least_is_gained(tmp_path):
    (tmp_path / "rl").mkdir()
    rows = ["game,attack,gain,error,episodes", "a,worst,0.5,0.1,50", "b,worst,0.2,0.01,40"]
    (tmp_path / "rl" / "gains.csv").write_text("\n".join([*rows, "c,FGSM,-0.3,0.01,40"]))
    run = replace(against(3, 2), folder=tmp_path)
    own = {"metric": "agents", "model": "SAP", "control": "dense", "effect": 0.1}
    worst, single, other = outcomes(
        run, *(claim(a, regime=ELSEWHERE, **own, attack=a) for a in ("worst", "FGSM", "PGD"))
    )
    assert worst.test is not None and worst.test.difference == 0.2 and worst.n == 40
    low, high = student.interval(1 - 0.05 / 2, 39, 0.2, 0.01)  # of two tests
    assert worst.test.interval == pytest.approx((low, high))
    assert worst.test.detectable < 0.04
    assert worst.regime == "cifar10; here small games"
    assert (worst.outcome, single.outcome) == (REPRODUCED, NOT_HERE)
    assert other.reason == "rl/gains.csv holds no game under PGD"


def test_a_model_of_lower_clean_accuracy_is_not_called_better():
    guarded = claim(effect=0.1)
    said = claim(effect=0.1, needs={"clean_loss": 0.5})
    assert outcomes(against(20, 2, 30), guarded)[0].reason == "lower clean accuracy, no control"
    assert outcomes(against(20, 2, 30), said)[0].outcome == REPRODUCED
    equal = said.model_copy(update={"matched": True})  # there is no control of equal accuracy
    assert outcomes(against(20, 2, 30), equal)[0].reason == "lower clean accuracy, no control"
    (far,) = outcomes(against(2, 2, 10), said)
    assert (far.outcome, far.reason) == (NOT_HERE, "clean accuracy 25.0 %, of its parent 100.0 %")


@pytest.mark.parametrize(
    ("needs", "card", "reason"),
    [
        ({"kernel_distance": 0.3}, {"ticket": {"kernel_distance": 0.96}}, "kernel distance 0.96"),
        ({"kernel_distance": 0.3}, {}, "kernel distance is not recorded"),
        ({"larger_than": "dense-standard"}, {"parameters": 900}, "900 parameters of 1,000"),
        ({"changed": 0.5}, {"prune_ratio": 0.001}, "it changes 0.1 % of the weights"),
    ],
)
def test_a_method_whose_own_criterion_is_not_met_is_not_refuted(needs, card, reason):
    (found,) = outcomes(against(2, 30, **card), claim(effect=0.1, needs=needs))
    assert found.outcome == NOT_HERE and reason in found.reason
    met = {"ticket": {"kernel_distance": 0.2}, "parameters": 1001, "prune_ratio": 0.5}
    assert outcomes(against(2, 30, **met), claim(effect=0.1, needs=needs))[0].outcome == REFUTED


def test_a_criterion_that_nothing_recorded_shows_is_not_met():
    (found,) = outcomes(against(30, 2), claim(effect=0.1, needs={"larger_than": "nonsense"}))
    assert found.outcome == NOT_HERE
    assert found.reason == "whether it is larger than nonsense is not recorded"


def test_a_budget_of_a_claim_on_the_leaderboard_is_looked_up():
    params = settings()
    both = model("dense-standard", params, {}), model("E-standard", params, {})
    at = {"attack": "curve_eps", "effect": 0.1}
    run = run_of([*both], params)
    assert outcomes(run, claim(eps="eps/7", **at))[0].reason == (
        "curve_eps at eps/7 was not run on E-standard"
    )
    (found,) = outcomes(run, claim(**at))
    assert found.reason == "curve_eps has several budgets or numbers of steps"
    (found,) = outcomes(run, claim(eps="eps", **at))
    assert found.n == N and found.test is not None
    (found,) = outcomes(run, claim(attack="field", eps="eps/4", effect=0.1))
    assert found.reason == "field at eps/4 was not run on E-standard"


def test_epochs_are_those_that_the_cards_say():
    """Of the settings that made a model, whatever is said now; of a network by its history."""
    regime = HERE | {"epochs": 99}
    params = settings()
    base = model("dense-standard", params, {"field": 2}, history=[{"epoch": 7}])
    run = run_of([base, model("E-standard", params, {"field": 2})], params)
    assert outcomes(run, claim(regime=regime, effect=0.1))[0].regime.endswith("; here epochs 7")
    tuned = against(2, 2, setting={"finetune": {"epochs": 3}})
    assert outcomes(tuned, claim(regime=regime, effect=0.1))[0].regime.endswith("; here epochs 3")


def test_a_robust_accuracy_in_doubt_reproduces_nothing():
    # Images of the dense network break what no attack on the model itself does.
    params = settings()
    sent = {("dense-standard", attack): 25 for attack in ("field", "momentum")}
    dense = model("dense-standard", params, {"field": 2})
    hidden = model("E-standard", params, {"field": N}, sent)
    (found,) = outcomes(run_of([dense, hidden], params), claim(metric="robust", effect=0.1))
    assert found.outcome == NOT_HERE and found.reason.startswith("its robust accuracy is")
    other = model("S-standard", params, {"field": 2})
    behind = claim(metric="robust", model="S-standard", control="E-standard", effect=0.1)
    (found,) = outcomes(run_of([dense, hidden, other], params), behind)
    assert found.outcome == NOT_HERE
    assert found.reason.startswith("its control's robust accuracy is")


@pytest.mark.parametrize(
    ("lower", "expect"),
    [("its control's", "no higher"), ("its control's", "equal"), ("its", "equal")],
)
def test_within_a_margin_the_lower_one_may_be_lower_still(lower, expect):
    """A significant difference inside the margin settles nothing if the lower number is a bound."""
    params = settings()
    sent = {("dense-standard", attack): 18 for attack in ("field", "momentum")}
    models = [model("dense-standard", params, {"field": 2})]
    for name, whose in (("E-standard", "its"), ("S-standard", "its control's")):
        models.append(model(name, params, {"field": 30}, sent if whose == lower else {}))
    how = claim(metric="robust", control="S-standard", expect=expect, margin=0.6)
    (found,) = outcomes(run_of(models, params), how)
    assert found.test is not None and found.test.p < 0.05
    assert found.outcome == NOT_HERE and found.reason.startswith(f"{lower} robust accuracy is")


def test_points_over_seeds():
    run = versus((30, 31, 32), (10, 11, 12))
    own = {"metric": "robust", "study": "seeds", "model": "H", "control": "L", "effect": 0.1}
    found, search = outcomes(run, claim(**own), claim("s", **own, needs={"kernel_distance": 0.3}))
    assert found.test is not None
    difference = compare_means(hits(30, 31, 32), hits(10, 11, 12)).difference
    assert found.test.difference == difference == 0.5
    assert (found.outcome, found.seeds, found.n) == (REPRODUCED, 3, N)
    assert search.reason == "search did not converge: kernel distance is not recorded"
    (epochs,) = outcomes(run, claim(regime=HERE | {"epochs": 2}, **own))
    assert epochs.regime == "digits, epochs 2; here epochs 1"


@pytest.mark.parametrize("arm", ["model", "control"])
def test_a_family_in_doubt_on_the_leaderboard_is_so_over_seeds(arm):
    """There fewer attacks are run, and no verdict is drawn: E, on the leaderboard, is broken."""
    setting = {"sparsity": 0.9, "finetune": {"epochs": 1}}
    kept = {"model": (30, 31, 32), "control": (10, 11, 12)}
    families = {"model": "HYDRA", "control": "LWM"} | {arm: "E"}
    tables = [networks(key, families[key], kept[key]) for key in kept]
    points = {key: {"family": families[key], "setting": setting} for key in kept}
    run = seeded(*tables, **points)
    own = {"metric": "robust", "study": "seeds", "model": "model", "control": "control"}
    asked = [claim("a", **own, effect=0.1), claim("b", **own, margin=0.1, expect="no higher")]
    assert [one.outcome for one in outcomes(run, *asked)] == [REPRODUCED, REFUTED]
    sent = {("dense-standard", attack): 25 for attack in ("field", "momentum")}
    hidden = model("E-standard", run.params, {"field": N}, sent)
    doubted = replace(run, models=[*run.models, hidden])
    reason = f"{'its' if arm == 'model' else 'its control' + chr(39) + 's'} robust accuracy is an"
    for found in outcomes(doubted, *asked):
        assert found.outcome == NOT_HERE
        assert found.reason.startswith(reason)
        assert "upper bound: E-standard, of the same family, is" in found.reason
    table = seeds.table_of(doubted, seeds.points_of(doubted, "seeds")).set_index("point")
    assert table.loc[arm].outcome == ("upper bound" if arm == "model" else "lower")


def test_transfer_over_seeds_and_what_was_lost_of_clean_accuracy():
    run = versus((0, 0, 0), (10, 11, 12), clean=(30, N))
    own = {"metric": "transfer", "study": "seeds", "model": "H", "control": "dense", "effect": 0.1}
    (untried,) = outcomes(run, claim(**own))
    assert untried.outcome == NOT_RUN
    table = run.studies["seeds"]
    sent = table[table.point == "H"].assign(attack="from_dense_field", adv_pred=table.label)
    run = replace(run, studies={"seeds": pd.concat([table, sent])})
    found, lost = outcomes(run, claim(**own), claim("l", **own, needs={"clean_loss": 0.1}))
    assert found.test is not None and found.seeds == 3
    assert found.test.difference == pytest.approx(1 - (20 + 22 + 24) / 3 / N)
    assert lost.reason == "clean accuracy 75.0 %, of its parent 100.0 %"


def test_images_that_only_the_points_were_tried_on_are_in_no_comparison_of_robustness():
    """H is compared with the dense networks, which nobody's images were tried on."""
    run = versus((30, 31, 32), (10, 11, 12))
    table = run.studies["seeds"]
    wrong = (table.label + 1) % 10
    broken = table[table.point == "H"].assign(
        attack="from_dense_field", adv_pred=wrong, adv_margin=-9.0, chosen_margin=-9.0
    )
    sent = replace(run, studies={"seeds": pd.concat([table, broken])})
    before, after = (
        next(point for point in seeds.points_of(one, "seeds") if point.name == "H")
        for one in (run, sent)
    )
    assert after.robust.tolist() == before.robust.tolist() and after.robust.any()
    assert after.area.tolist() == before.area.tolist()
    assert after.transfer.size and not after.transfer.any()


def test_bits_to_chance_against_a_multiple_and_against_random_flips():
    study = {"study": "bitflip", "bits": 8}
    studies = {name: study | {"of": f"{name}-standard"} for name in ("dense", "E")}
    tables = {"dense": flips((8, 10, 12, 10, 10)), "E": flips((40, 41, 42, 43, 44))}
    run = replace(against(2, 2), params=settings(studies), studies=tables)
    own = {"metric": "flips", "effect": 1}
    more, less = (outcomes(run, claim(**own, factor=factor))[0] for factor in (1, 10))
    assert more.outcome == REPRODUCED and more.p == pytest.approx(2 / 252)
    assert less.outcome == REFUTED and less.test is not None
    assert less.test.difference == 42 - 100  # medians of all pairs
    assert more.seeds == 1
    short = replace(run, studies=tables | {"E": flips((40, 41, 42, 43, 44), at_chance=False)})
    withstood, ended = outcomes(short, *(claim(f"{x}", **own, factor=x) for x in (1, 10)))
    assert (withstood.outcome, ended.outcome) == (REPRODUCED, NOT_RUN)
    assert ended.reason == (
        "the search on E-standard ended at 44 flips; 10 times its control's are at least 80"
    )
    neither = {name: flips((30, 40, 20, 30, 30), at_chance=False) for name in tables}
    assert outcomes(replace(run, studies=neither), claim(**own))[0].outcome == NOT_RUN
    several = [table.assign(training=table.seed % 3) for table in tables.values()]
    thrice = replace(run, studies=dict(zip(tables, several, strict=True)))
    assert outcomes(thrice, claim(**own))[0].seeds == 3
    chosen = {"model": "dense-standard", "variant": "random", "expect": "lower"}
    assert outcomes(run, claim(**own, **chosen))[0].outcome == REPRODUCED


def test_images_sent_both_ways_and_calibration():
    run = against(2, 2)
    dense, pruned = run.models
    sure, own = pruned.records.assign(adv_confidence=0.9), pruned.attack("field")
    there = {("dense-standard", "field"): own.assign(adv_pred=own.label)}
    run = replace(run, models=[dense, replace(pruned, records=sure, transfers=there)])
    ece = claim("ece", metric="calibration", expect="no higher", margin=0.05)
    moved, same = outcomes(run, claim("moved", metric="transfer", effect=0.1), ece)
    assert moved.test is not None and moved.test.difference == 38 / N
    # 2 of 40 images are right: the error is the confidence minus that, 0.9 against 0.75.
    assert same.outcome == REFUTED and same.test is not None
    assert same.test.difference == pytest.approx(0.15)
    run = against(2, 2)
    dense, own = run.models[0], run.models[0].attack("field")
    back = {("E-standard", "field"): own.assign(adv_pred=own.label)}
    run = replace(run, models=[replace(dense, transfers=back), run.models[1]])
    (found,) = outcomes(run, claim(metric="transfer_back", expect="no higher", margin=0.05))
    assert found.test is not None and found.test.difference == 38 / N
    assert found.outcome == REFUTED


def test_layers_under_attack_image_by_image():
    """Against noise, and where a model has another control against what that one gains."""
    run, figures = against(2, 2), ("changed", "top", "sigma")
    tables = [
        layer_table().assign(**{f"{f}_gain": gain for f in figures}, changed_gain_error=0.1)
        for gain in (0.1, 0.4)
    ]
    tables = [table.assign(top_gain_error=0.3, sigma_gain_error=0.03) for table in tables]
    pairs = zip(run.models, tables, strict=True)
    run = replace(run, models=[replace(one, layers=table) for one, table in pairs])
    inside = claim("input", metric="input_changes", control="E-standard", effect=0.1)
    last = claim("last", metric="last_grows", control="E-standard", effect=0.1)
    found = outcomes(run, inside, last, claim("sigma", metric="stage_spreads", effect=0.1))
    tests = [one.test for one in found if one.test is not None]
    assert [one.difference for one in tests] == pytest.approx([0.4, 0.4, 0.3])
    assert [one.outcome for one in found] == [REPRODUCED, NOT_HERE, REPRODUCED]
    assert found[0].p == pytest.approx(2 * 2 * normal.sf(0.4 / 0.1))
    bare = [replace(one, layers=layer_table()) for one in run.models]
    (unknown,) = outcomes(replace(run, models=bare), inside)
    assert unknown.outcome == NOT_HERE and unknown.reason.startswith("control missing")


def test_the_section_shows_every_claim():
    run = against(30, 2)
    chosen = claim("a", effect=0.1), claim("b", model="clamp-standard", effect=0.1)
    (whole,) = section(replace(run, claims=chosen))
    assert not list(section(run))
    assert whole.text.startswith("2 claims: 1 reproduced, 0 refuted, 0 not reproduced here, 1 not")
    assert whole.table is not None
    assert whole.table.outcome.tolist() == [REPRODUCED, NOT_RUN]
    assert whole.table.difference[0] == 0.7 and whole.table.counts_detectable[0] == 0.1
    assert whole.table.columns[-2:].tolist() == ["regime", "command"]
    assert whole.table.command.tolist() == ["dvc repro"] * 2
    table = outcome_table(replace(run, claims=chosen))
    page = claims_of(chosen, {"digits": table.set_index("id").outcome})
    assert page.startswith("### Claims: P\n\nSource: S. Theirs: digits.\n\n| claim")
    assert "| reproduced" in page and "| not run" in page


# --- the file ------------------------------------------------------------------------------------
ONE = """
- {paper: P, source: S, run: dvc repro, regime: {published: theirs, data: [cifar10], n: 10},
   claims: {a: {where: W, claim: C, metric: attacked, model: E-standard, control: dense-standard,
                effect: 4/255, regime: {n: 20}}}}
"""


def written(folder, text):
    path = folder / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    return read_claims(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("effect: 4/255", "effects: 1", "a: effects: Extra inputs"),
        ("effect: 4/255", "margin: 0.1", "a: expect: higher takes effect, not margin"),
        ("effect: 4/255", "effect: 0.1, expect: equal", "expect: equal takes margin, not effect"),
        ("control: dense-standard,", "", "a: control: Field required"),
        ("data: [cifar10], ", "", "a: regime.data: Field required"),
        ("run: dvc repro, ", "", "a claim names params or run"),
        ("claims: {a:", "claim: {a:", "every paper is a mapping that holds `claims`"),
        ("- {", "- {{", "is not valid YAML"),
        ("paper: P", "paper: P, paper: Q", "is not valid YAML"),
        ("attacked", "luck", "a: no metric 'luck'; known: clean, robust"),
        ("attacked", "distance, study: seeds", "metric distance is of the leaderboard alone"),
        ("attacked", "robust, study: protocol", "robust takes study: seeds, or none"),
        ("attacked", "transfer, study: protocol", "transfer takes study: seeds, or none"),
        ("attacked", "attacked, study: seeds", "attacked takes study: protocol, or none"),
        ("attacked", "last_grows, study: seeds", "last_grows is of the leaderboard alone"),
        ("attacked", "robust, attack: square", "a: attack: metric robust does not read it; leave"),
        ("attacked", "transfer, study: seeds, attack: x", "attack: .* does not read it over seeds"),
        ("attacked", "attacked, eps: abc", "a: .*write a number or a fraction such as 8/255"),
        ("attacked", "attacked, eps: 0/255", "a: eps: write a budget such as eps/8"),
        ("dense-standard", "E-standard", "a: model and control are the same"),
    ],
)
def test_wrong_entries_are_refused(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        written(tmp_path, ONE.replace(old, new, 1))


def test_an_entry_adds_to_its_paper_and_other_wrong_files_are_refused(tmp_path):
    (one,) = written(tmp_path, ONE)
    assert (one.id, one.effect, one.regime.n, one.regime.data) == ("a", 4 / 255, 20, ("cifar10",))
    with pytest.raises(UserError, match="cannot read"):
        read_claims(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="two claims are called 'a'"):
        written(tmp_path, ONE + ONE)
    with pytest.raises(UserError, match="model and control are the same"):
        written(tmp_path, ONE.replace("dense-", "E-").replace("attacked", "flips"))
    same = ONE.replace("dense-", "E-").replace("attacked", "flips, variant: random")
    assert written(tmp_path, same)[0].control == "E-standard"


def test_the_settings_that_a_claim_names_declare_what_it_needs():
    found = read_claims(ROOT / "claims.yaml")
    papers = ("nn-prune", "GAP", "SAP", "SAP on agents", "BFA", "RA-BNN", "AWT", "HYDRA")
    assert {one.paper for one in found} == {*papers}
    assert {one.metric for one in found} <= {*METRICS} == {*READS}
    files = {name: load(ROOT / name) for name in {one.params for one in found if not one.run}}
    for one in found:
        assert one.run or all(stages_of(files[one.params], one).values()), one.id
        assert one.run or one.needs.larger_than in {None, *files[one.params].models}
