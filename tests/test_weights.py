"""weights/: networks that are whole, sound and as accurate as stated."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_docs import rerun_here

from advprune.core.params import load
from advprune.data import prepare, to_float
from advprune.models.audit import audit
from advprune.models.checkpoint import header_spec, load_model, read_tensors

ROOT = Path(__file__).parent.parent
EXPORTED = sorted((ROOT / "weights").glob("*/*.safetensors"))
ATTACKED = sorted((ROOT / "weights").glob("*/*.records.parquet"))
# Rounded to 16 bits, logits move by some thousandths: an image whose two best classes are closer
# than that may fall on the other side. More than one of 300 would be another network.
TOLERANCE = 1


def metrics_of(path: Path) -> Path:
    """The committed metrics of the network that a file was exported from."""
    return ROOT / "metrics" / path.parent.name / f"{path.name.partition('.')[0]}.json"


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits profile's test images and labels, made from the embedded data set."""
    params = load(ROOT / "params.yaml", profile="digits")
    split = prepare(params.active().data, params.seed)["test"]
    return to_float(split.images), split.labels


def test_the_networks_that_results_rest_on_are_there() -> None:
    names = {path.name.partition(".")[0] for path in EXPORTED if path.parent.name == "digits"}
    assert names >= {"dense-standard", "dense-robust", "RA_BNN-standard", "HYDRA-robust"}


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_an_exported_network_is_small_and_sound(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    spec = header_spec(metadata, where=path.name)
    found = audit(tensors, spec)
    assert found.sound and found.source == "header", found.faults
    assert path.stat().st_size < 6_000_000
    floating = {t.dtype for t in tensors.values() if t.is_floating_point()}
    assert floating == {torch.float16 if ".fp16." in path.name else torch.float32}
    assert all(p.dtype == torch.float32 for p in load_model(path).parameters())


@pytest.mark.skipif(rerun_here(), reason="metrics/ was made anew on this machine")
@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_it_is_as_accurate_as_the_committed_metrics_say(
    path: Path, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    if path.parent.name != "digits" or not metrics_of(path).is_file():
        pytest.skip("its images or its metrics are not in the repository")
    recorded = json.loads(metrics_of(path).read_text(encoding="utf-8"))
    with torch.no_grad():
        right = int((load_model(path)(images[0]).argmax(1) == images[1]).sum())
    assert recorded["n"] == len(images[1])
    assert abs(right - round(recorded["n"] * recorded["clean_accuracy"])) <= TOLERANCE


def figures(records: pd.DataFrame) -> dict[str, str]:
    """What a README says of a network, from the records of `bench/reference.py`."""
    attacks = {name: rows.set_index("index") for name, rows in records.groupby("attack")}
    right = {name: rows["adv_pred"] == rows["label"] for name, rows in attacks.items()}
    left, plain = right["apgd_ce"].copy(), attacks["apgd_ce"]
    left[right["apgd_targeted"].index] &= right["apgd_targeted"]
    distances = {
        norm: attacks[f"minimum_norm_{norm}"][norm].mask(
            right[f"minimum_norm_{norm}"], float("inf")
        )
        for norm in ("linf", "l2")
    }
    return {
        "clean %": f"{100 * (plain['clean_pred'] == plain['label']).mean():.2f}",
        "PGD-50, margin %": f"{100 * right['pgd_50_margin'].mean():.2f}",
        "APGD-CE %": f"{100 * right['apgd_ce'].mean():.2f}",
        "APGD-CE and APGD-T %": f"{100 * left.mean():.2f}",
        "of the first 1,000": str(int(left[:1000].sum())),
        "median Linf distance /255": f"{255 * distances['linf'].median():.2f}",
        "median L2 distance": f"{distances['l2'].median():.3f}",
        "no distance found": str(int(right["minimum_norm_linf"].sum())),
    }


@pytest.mark.parametrize("path", ATTACKED, ids=lambda path: f"{path.parent.name} {path.name}")
def test_a_readme_says_what_the_records_of_ten_thousand_images_say(path: Path) -> None:
    name = path.name.partition(".")[0]
    records = pd.read_parquet(path)
    assert (records.groupby("attack").size()[["apgd_ce", "minimum_norm_linf"]] == 10_000).all()
    lines = (path.parent / "README.md").read_text(encoding="utf-8").splitlines()
    cells = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    found = figures(records)
    assert [cell.strip() for cell in cells["network"].split("|")[2:-1]] == list(found)
    assert [cell.strip() for cell in cells[name].split("|")[2:-1]] == list(found.values())
    change = records[records["attack"].isin(["pgd_50_margin", "apgd_ce", "apgd_targeted"])]["linf"]
    assert change.max() <= 8 / 255 + 1e-6
