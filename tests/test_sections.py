"""Sections on models: transfer, curves, layers; and all alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from handmade import EPS, N, first, layer_table, model, records, run_of, settings
from scipy.stats import binomtest

from advprune.evaluate.acting import ends, last_stage, sigma_growth
from advprune.report.chart import panels
from advprune.report.formats import bounds
from advprune.report.results import results
from advprune.report.section import sections
from advprune.report.sections import distances, layers, transfer

EMPTY = {  # without records, they say nothing
    *("transfer", "distances", "curves", "masks", "protocol", "seeds", "bitflips", "layers"),
    "corruptions",
}


def mcnemar(one, other):
    """Exact p of so many images on which just one of two is right."""
    return float(binomtest(one, one + other, 0.5).pvalue)


@pytest.fixture(scope="module")
def exchange():
    """A dense network, E and int8 made of it, and an attacker's network, exchanging images."""
    params = settings()
    names = {("seed1", "field"): 30, ("seed1", "momentum"): 25}
    dense = model("dense-standard", params, {"field": 4}, names | {("E-standard", "field"): 8})
    odd = np.arange(N) % 2 == 1
    back = {("dense-standard", "field"): 20, ("dense-standard", "momentum"): odd}
    pruned = model("E-standard", params, {"field": 2}, back | {("int8-standard", "field"): 40}, 38)
    more = {("dense-standard", "field"): 6, ("E-standard", "field"): 10}
    small = model("int8-standard", params, {"field": first(12) & ~first(3)}, more)
    clamp = model("clamp-standard", params, {}, back | {("E-standard", "field"): 12})
    own = {("seed1", attack): records(attack, first(0)) for attack in ("field", "momentum")}
    return run_of([dense, pruned, small, clamp], params, attackers=own)


# --- transfer ------------------------------------------------------------------------------------
def test_the_matrix_holds_white_box_accuracy_on_its_diagonal(exchange):
    found = transfer.matrix(exchange).set_index(["source", "target"])
    assert found.accuracy["E-standard", "E-standard"] == 2 / N
    assert found.accuracy["dense-standard", "E-standard"] == 20 / N
    assert found.accuracy["E-standard", "dense-standard"] == 8 / N
    assert found.accuracy["seed1", "dense-standard"] == 30 / N
    # Of the 38 images that both have right when clean, 18 fool the target.
    assert found.success_rate["dense-standard", "E-standard"] == 18 / 38
    assert ("int8-standard", "clamp-standard") not in found.index  # nothing was sent there


def test_scenarios_by_hand(exchange):
    found = transfer.scenarios(exchange).set_index("model")
    row = found.loc["E-standard"]
    assert row["accuracy:white-box"] == 2 / N and row["accuracy:from dense"] == 20 / N
    assert row["accuracy:from dense, momentum"] == 20 / N
    assert row["accuracy:to dense"] == 8 / N
    # Right on all: the odd ones among the first 20.
    assert row["accuracy:all sources"] == 10 / N
    # int8 is nearly the dense network, so its images are no other compressed network's.
    assert pd.isna(row["accuracy:from compressed, mean"])
    assert found.loc["int8-standard", "accuracy:from compressed, mean"] == 10 / N


# --- distances -----------------------------------------------------------------------------------
def test_security_curves_and_tests_are_drawn_from_the_distances():
    """20 images are fooled at half the budget by one model and at a third by its dense network."""
    params = settings()
    given = {("dense-standard", "field"): N}
    models = []
    for name, sent, size in (("dense-standard", {}, EPS / 3), ("E-standard", given, EPS / 2)):
        one, found = model(name, params, {}, sent), records("distance", ~first(20))
        found = found.assign(distance=np.where(first(20), size, np.inf))
        models.append(replace(one, records=pd.concat([one.records, found], ignore_index=True)))
    run = run_of(models, params)
    curve = distances.curve(run, run.models[1]).set_index("eps_axis").accuracy
    assert curve[0.0] == 1.0 and curve[EPS / 2 - EPS / 16] == 1.0 and curve[EPS / 2] == 0.5
    assert curve[EPS] == 0.5 and curve[2 * EPS] == 0  # curve_eps, twice the budget
    row = distances.table_of(run).set_index("model").loc["E-standard"]
    assert row.p_distance < 0.001
    assert results(run).set_index("model").distance_against_dense["E-standard"] == "higher"


def test_what_lost_its_clean_accuracy_is_set_beside_a_control_on_the_leaderboard():
    params = settings()
    dense = model("dense-standard", params, {"field": 2})
    there = {("dense-standard", attack): N for attack in ("field", "momentum")}
    poor = model("E-standard", params, {"field": 14}, there, clean=20)
    small = model("int8-standard", params, {"field": 1}, there)
    alone = results(run_of([dense, poor, small], params)).set_index("model")
    assert alone.against_dense["E-standard"] == "lower clean accuracy, no control"
    assert alone.robust_difference["E-standard"] == 12 / N
    assert pd.isna(alone.p_against_dense.iloc[0])
    alike = model("clamp-standard", params, {"field": 3}, there, clean=20)
    found = results(run_of([dense, poor, small, alike], params)).set_index("model")
    assert found.against_dense["E-standard"] == "higher (control: clamp-standard)"
    assert found.robust_difference["E-standard"] == pytest.approx(11 / N)
    # Holm over three models: 11 images is the smallest p.
    assert found.p_against_dense["E-standard"] == pytest.approx(3 * mcnemar(11, 0), abs=1e-6)
    assert found.robust_difference_low["E-standard"] > 0


# --- layers --------------------------------------------------------------------------------------
def test_many_small_changes_behind_the_input_and_large_values_before_the_classifier():
    found = ends(layer_table())
    assert (found["input_layer"], found["last_layer"]) == ("conv1", "pool")
    assert (found["changed_share:attack"], found["changed_share:noise"]) == (0.85, 0.3)
    assert found["change_ratio:attack"] == 0.11
    assert found["percentile_growth:attack"] == 3.0 and found["maximum_growth:noise"] == 1.05


def test_the_last_stage_and_how_its_maps_spread():
    table = layer_table().assign(adv_sigma=np.linspace(1, 3, 12))
    ratios = sigma_growth(last_stage(table))
    assert ratios.tolist() == pytest.approx(np.linspace(0.5, 1.5, 12)[6:10])
    assert last_stage(table[~table.layer.str.contains(r"\.")]).empty


def test_layers_that_the_dense_network_lacks_are_left_out():
    other = layer_table().replace({"layer": {"conv1": "conv1.0", "pool": "new"}})
    models = [model(name, settings(), {}) for name in ("dense-standard", "int8-standard")]
    rows = layers.over_depth([models[0], replace(models[1], layers=other)])
    own = rows[(rows.family == "int8") & (rows.measure == "relative change")]
    assert "new" not in set(own.layer)
    assert own[own.layer == "conv1.0"].depth.tolist() == [1]
    rises = rows[rows.measure == layers.MEASURES["rise"]].number
    assert len(rises) and (rises == (1.5 - 1.0) / 2.0).all()


# --- all sections --------------------------------------------------------------------------------
def test_a_run_without_its_records_gives_no_parts():
    empty = run_of([], settings())
    assert not [one.id for one in sections() if one.id in EMPTY and one.parts(empty)]
    assert {one.id for one in sections()} > EMPTY


@pytest.mark.parametrize("name", ["transfer", "curves", "layers"])
def test_charts_refer_to_columns_that_are_there(name, exchange):
    check_charts(exchange, name)


def check_charts(run, name):
    """Charts of a section have names of their own and columns that exist, and can be drawn."""
    chosen = next(one for one in sections() if one.id == name)
    charts = [part.chart for part in chosen.parts(run) if part.chart is not None]
    names = [chart.name for chart in charts]
    assert len(set(names)) == len(names)
    for chart in charts:
        ends = bounds(chart.y) if chart.interval else ()
        used = (chart.x, chart.y, chart.series, chart.value, chart.panel, *ends)
        wanted = {name for name in (*used, chart.size, chart.marker, *chart.hover) if name}
        assert wanted <= set(chart.data), chart.name
        assert chart.data.index.is_unique
        if chart.kind != "heatmap":
            assert all(panel.series for panel in panels(chart, run.places))
