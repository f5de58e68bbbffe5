"""Networks and checkpoints: sizes, exact round trips, and refusals that name the fault."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from advprune.core.errors import UserError
from advprune.models.checkpoint import build, load_foreign, load_model, save_model
from advprune.models.inert import inert_of
from advprune.models.spec import ModelSpec, sites, spec_of
from conftest import make_network

Pair = tuple[torch.Tensor, torch.Tensor]


def spec(**changes: object) -> ModelSpec:
    """A small ResNet20 for three channels."""
    base = {"architecture": "resnet20", "width": 4, "channels": 3, "classes": 5}
    return ModelSpec(**(base | {"mean": (0.5,) * 3, "std": (0.2,) * 3} | changes))


def count(model: nn.Module, without: str = "nothing") -> int:
    """Parameters, except those with `without` in their name."""
    return sum(p.numel() for name, p in model.named_parameters() if without not in name)


def test_sizes_are_the_published_ones() -> None:
    resnet18 = build(spec(architecture="resnet18", width=64, classes=10))
    assert count(resnet18) == 11_173_962
    resnet20 = build(spec(width=16, classes=10))
    assert count(resnet20, without="shortcut") == 269_722  # He et al. have no shortcut weights
    assert count(resnet20) - count(resnet20, without="shortcut") == 16 * 32 + 32 * 64 + 2 * 96


@pytest.mark.parametrize("side", [4, 8, 32, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size_and_channels(side: int, channels: int) -> None:
    model = build(spec(channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels))
    assert model(torch.rand(2, channels, side, side)).shape == (2, 5)


def test_strides_are_a_setting_that_older_files_do_not_hold(tmp_path: Path) -> None:
    """Without it a ResNet18 ends at 1x1 on images of 8x8, and 62 % of its weights meet padding."""
    grey = {"architecture": "resnet18", "channels": 1, "mean": (0.5,), "std": (0.2,)}
    usual, ours = spec(**grey), spec(**grey, strides=(2, 2, 1, 1))
    assert "strides" not in usual.model_dump_json()
    assert usual.steps == (1, 2, 2, 2) and spec().steps == (1, 2, 2)
    assert (round(inert_of(build(usual), (1, 8, 8)), 2), inert_of(build(ours), (1, 8, 8))) == (
        0.61,
        0,
    )
    sides: list[int] = []
    model = build(ours)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda *given: sides.append(given[2].shape[-1]))
    model(torch.rand(1, 1, 8, 8))
    model = build(ours)
    assert sides == [4, 2, 2, 2]
    save_model(model, tmp_path / "model")
    assert spec_of(load_model(tmp_path / "model")) == ours
    with pytest.raises(ValidationError, match="resnet18 has 4 stages, not 3"):
        spec(**grey, strides=(1, 2, 2))
    with pytest.raises(ValidationError, match="has no strides"):
        spec(architecture="torchvision/resnet18", width=0, strides=(1, 2, 2, 2))


def test_every_relu_is_an_activation_site(network: nn.Module) -> None:
    assert len(sites(network)) == 17  # the stem and two in each of eight blocks


def test_normalization_is_inside_the_model(digits: Pair) -> None:
    model = build(spec(channels=1, mean=(0.5,), std=(0.25,)))
    assert torch.equal(model.normalize(torch.full((1, 1, 2, 2), 0.75)), torch.ones(1, 1, 2, 2))
    assert not any("normalize" in name for name in model.state_dict())


def test_a_saved_model_comes_back_exactly(network: nn.Module, digits: Pair, tmp_path: Path) -> None:
    save_model(network, tmp_path / "a" / "model.safetensors")
    loaded = load_model(tmp_path / "a" / "model.safetensors")
    assert torch.equal(loaded(digits[0]), network(digits[0]))
    assert spec_of(loaded) == spec_of(network)
    assert not any(module.training for module in loaded.modules())


def test_equal_models_are_equal_files(network: nn.Module, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(network, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]  # nothing half-written


def stored(network: nn.Module, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], dict]:
    """A saved network: its path, its tensors, and its header."""
    path = tmp_path / "model.safetensors"
    save_model(network, path)
    return path, load_file(path), {"spec": spec_of(network).model_dump_json()}


def test_a_file_cut_in_half_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path, *_ = stored(network, tmp_path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model.safetensors is damaged"):
            load_model(path)


def test_missing_and_left_over_tensors_are_listed(network: nn.Module, tmp_path: Path) -> None:
    path, tensors, header = stored(network, tmp_path)
    tensors["extra"] = tensors.pop("bn1.weight")
    save_file(tensors, path, header)
    with pytest.raises(UserError, match=r"missing bn1.weight; left over extra"):
        load_model(path)


def test_another_width_is_refused(network: nn.Module, digits: Pair, tmp_path: Path) -> None:
    path, _, header = stored(network, tmp_path)
    wider = make_network(digits[0], width=8)
    save_file({n: t for n, t in wider.state_dict().items() if "num_batches" not in n}, path, header)
    with pytest.raises(UserError, match="another width"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    network: nn.Module, tmp_path: Path, value: float
) -> None:
    path, tensors, header = stored(network, tmp_path)
    tensors["linear.bias"][2] = value
    save_file(tensors, path, header)
    with pytest.raises(UserError, match=r"linear.bias holds NaN or infinite"):
        load_model(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({}, "no model spec"),
        ({"spec": "{"}, "model spec is wrong"),
        ({"spec": '{"architecture": "vgg"}'}, "architecture"),
    ],
)
def test_headers_are_checked(
    network: nn.Module, tmp_path: Path, header: dict[str, str], words: str
) -> None:
    path, tensors, _ = stored(network, tmp_path)
    save_file(tensors, path, header)
    with pytest.raises(UserError, match=words):
        load_model(path)


def test_an_unknown_inserted_layer_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path, tensors, header = stored(network, tmp_path)
    text = header["spec"].replace('"layers":[]', '"layers":[{"kind":"os.system"}]')
    save_file(tensors, path, {"spec": text})
    with pytest.raises(UserError, match=r"unknown kind 'os.system'"):
        load_model(path)


def test_there_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_model(tmp_path / "absent.safetensors")


def foreign(network: nn.Module, path: Path, wrap: bool = True) -> Path:
    """The network as somebody else would store it: other names, a prefix, a wrapping."""
    renamed = {
        "module." + n.replace("shortcut", "downsample").replace("linear", "fc"): t
        for n, t in network.state_dict().items()
    }
    torch.save({"state_dict": renamed, "epoch": 3} if wrap else renamed, path)
    return path


def test_foreign_weights_are_mapped_tensor_by_tensor(
    network: nn.Module, digits: Pair, tmp_path: Path
) -> None:
    path = foreign(network, tmp_path / "theirs.pt")
    loaded = load_foreign(spec_of(network), str(path), None)
    assert torch.equal(loaded(digits[0]), network(digits[0]))


def test_foreign_weights_that_do_not_fit_are_listed(network: nn.Module, tmp_path: Path) -> None:
    path = foreign(network, tmp_path / "theirs.pt", wrap=False)
    content = torch.load(path, weights_only=True)
    content["module.head"] = content.pop("module.fc.weight")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"missing linear.weight; left over head"):
        load_foreign(spec_of(network), str(path), None)


def test_foreign_weights_are_checked_by_hash_and_never_unpickled(
    network: nn.Module, tmp_path: Path
) -> None:
    path = foreign(network, tmp_path / "theirs.pt")
    with pytest.raises(UserError, match="sha256"):
        load_foreign(spec_of(network), str(path), "0" * 64)
    torch.save(network, path)  # a whole module: a pickle that would run code
    with pytest.raises(UserError, match="cannot be read as a plain state dict"):
        load_foreign(spec_of(network), str(path), None)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as a plain state dict"):
        load_foreign(spec_of(network), str(path), None)


def test_a_package_or_file_that_is_not_there_is_named(network: nn.Module) -> None:
    with pytest.raises(UserError, match="'no_such_package' is not installed"):
        load_foreign(spec_of(network), "package:no_such_package/model.pt", None)
    with pytest.raises(UserError, match=r"no file 'absent.pt'"):
        load_foreign(spec_of(network), "package:torch/absent.pt", None)
    with pytest.raises(UserError, match="there is no weights file"):
        load_foreign(spec_of(network), "/nowhere/model.pt", None)
