"""Sweeps and compression curves: rows for every setting, and what each of them rests on."""

import pytest
import torch
from test_seeds import CPU, RAW, split

from advprune.core.params import Params
from advprune.core.resume import Parts
from advprune.core.settings import parse
from advprune.pruning import prune
from advprune.studies import Given, run_study


@pytest.fixture
def carried(digits):
    """Images that were crafted on the dense network: noise here."""
    noise = 0.3 * torch.randn(digits[0].shape, generator=torch.Generator().manual_seed(0))
    moved = ((digits[0] + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return {"field": moved, "momentum": 255 - moved}


def ran(kind, points, network, digits, carried, folder):
    """A study of the network; training images are the test images."""
    profile = RAW["profiles"]["digits"] | {"sweep_images": None}
    profile |= {"attacks": {"field": {"eps": 0.1, "step": 0.15, "steps": 1}}}
    profile |= {"suite": {"table": ["field"], "transfer": ["field", "momentum"]}}
    study = {"study": kind, "of": "dense-standard", "points": points}
    raw = RAW | {"models": {}, "studies": {"it": study}, "profiles": {"digits": profile}}
    params, parts = parse(Params, raw, "test"), Parts(folder, files=[])
    splits = {"train": split(*digits), "test": split(*digits)}
    given = Given("it", "dense-standard", params, network, {}, carried, splits, parts, CPU)
    return run_study("it", given)["records"]


def test_a_sweep_has_a_block_of_rows_for_every_setting(network, digits, carried, tmp_path):
    points = {"E": [0.0, 1e6], "clamp": [{"sigmas": 3}]}
    table = ran("sweep", points, network, digits, carried, tmp_path)
    sizes = table.groupby(["family", "order", "value", "attack"]).size().to_dict()
    expected = [("E", 0, "0.0"), ("E", 1, "1000000.0"), ("clamp", 0, "{'sigmas': 3}")]
    assert sizes == {(*point, "field"): 64 for point in expected}
    nothing, everything = (table[(table.family == "E") & (table.order == n)] for n in (0, 1))
    assert (nothing.prune_ratio == 0).all() and (everything.sparsity > 0.99).all()
    assert nothing.clean_pred.tolist() == network(digits[0]).argmax(1).tolist()
    assert everything.clean_pred.nunique() == 1


def test_a_curve_tries_each_setting_on_images_of_its_parent(network, digits, carried, tmp_path):
    points = {"E": [0.0, 0.1]}
    table = ran("compression", points, network, digits, carried, tmp_path)
    kinds = ["field", "from_dense_field", "from_dense_momentum"]
    assert table.groupby(["order", "attack"]).size().to_dict() == {
        (order, kind): 64 for order in (0, 1) for kind in kinds
    }
    for order, value in enumerate((0.0, 0.1)):
        model = prune("E", network, value).model
        for name, pixels in carried.items():
            part = table[(table.order == order) & (table.attack == f"from_dense_{name}")]
            assert part.adv_pred.tolist() == model(pixels / 255).argmax(1).tolist()
            assert part.clean_pred.tolist() == model(digits[0]).argmax(1).tolist()
            assert (part.source == "dense").all() and (part.value == str(value)).all()
    again = ran("compression", points, network, digits, carried, tmp_path)
    assert again.equals(table)  # what was finished is read back
