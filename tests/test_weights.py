"""weights/: networks that are whole, sound and as accurate as stated."""

import json
from pathlib import Path

import pytest
import torch
from test_docs import rerun_here

from advprune.core.params import load
from advprune.data import prepare, to_float
from advprune.models.audit import audit
from advprune.models.checkpoint import header_spec, load_model, read_tensors

ROOT = Path(__file__).parent.parent
EXPORTED = sorted((ROOT / "weights").glob("*/*.safetensors"))
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
