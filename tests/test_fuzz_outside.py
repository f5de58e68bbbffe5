"""Hostile and damaged input to the command on networks and pictures of one's own.

The whole command is run up to the attacks, which begin where everything was taken.
"""

import argparse
import io
import json
import os
import shutil
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import LEAVES, TEXTS, VALUES, changed, fuzz, fuzz_bytes
from hypothesis import strategies as st
from PIL import Image
from typer.exceptions import TyperException

from advprune.cli.app import app
from advprune.core import memory
from advprune.core.errors import UserError
from advprune.data.split import Split, save_split
from advprune.models.benchmarks import MAKERS
from advprune.models.checkpoint import save_model
from conftest import make_network


class Begun(Exception):
    """The attacks have begun, on these networks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network for grey images of 8x8 in two classes, and such pictures in every form."""
    place = tmp_path_factory.mktemp("outside")
    save_model(make_network(torch.rand(8, 1, 8, 8), "resnet20", 2, 2), place / "net.safetensors")
    colour = make_network(torch.rand(8, 3, 8, 8), "resnet20", 2, 2)
    torch.save(colour.state_dict(), place / "net.pt")
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    labels = np.arange(6) % 2
    split = Split(torch.from_numpy(images), torch.from_numpy(labels), ("a", "b"), "test")
    save_split(split, place / "split.safetensors")
    for image, label in zip(images, labels, strict=True):
        (place / "pictures" / "ab"[label]).mkdir(parents=True, exist_ok=True)
        name = f"{len(list((place / 'pictures').rglob('*.png')))}.png"
        Image.fromarray(image[0]).save(place / "pictures" / "ab"[label] / name)
    return place


@pytest.fixture
def command(folder, monkeypatch):
    """`advprune`, in that folder, up to the networks that would be attacked; what it prints cannot
    steer a terminal."""

    def begun(subjects, *_):
        raise Begun(subjects)

    monkeypatch.setattr("advprune.benchmarking.measured", begun)
    monkeypatch.chdir(folder)

    def run(*arguments):
        printed, subjects = io.StringIO(), None
        try:
            with redirect_stdout(printed):
                app(list(arguments), prog_name="advprune", standalone_mode=False)
        except Begun as begun:
            (subjects,) = begun.args
        except TyperException as error:  # of wrong options
            raise UserError(error.format_message()) from error
        except OSError as error:  # which `core.ending` shows as one line where it names a file
            assert error.filename is not None
            raise UserError(error) from error
        assert "\x1b" not in printed.getvalue()
        return subjects

    return run


# --- options -------------------------------------------------------------------------------------
NUMERIC = st.one_of(
    LEAVES.map(str),
    st.sampled_from(["1", "2", "3", "8", "0.5", "0.5,0.5,0.5", "8/255"]),
    st.sampled_from(["nan", "1e999,1", "1,", ",", "8/0", "1" + "0" * 30, "4097", "-1", "0"]),
)
GIVEN = {
    **{f"--{name}": NUMERIC for name in ("mean", "std", "resize", "crop", "eps", "images")},
    **{f"--{name}": NUMERIC for name in ("queries", "width", "classes", "channels", "keep")},
    "--norm": st.sampled_from(["Linf", "L2", "L1", ""]),
    "--options": VALUES.map(lambda value: json.dumps(value, default=str)) | TEXTS,
    "--architecture": st.sampled_from(["resnet20", "torchvision/x", "cifar/vgg16", "timm/test_vit"])
    | TEXTS,
    "--factory": st.sampled_from(["os:_exit", "sys:exit", "builtins:dict", "x"]) | TEXTS,
    "--names": TEXTS,
    "--data": TEXTS | st.just("x" * 300),
}


def test_options(command):
    def taken(options):
        options = {"--data": "pictures"} | options
        if {"--mean", "--std"} & set(options):
            options = {"--mean": "0.5", "--std": "0.5"} | options
        given = [f"{option}={value}" for option, value in options.items() if "\0" not in value]
        command("evaluate", "net.pt", *given)

    taken({})  # grey pictures, and a network of colour images whose file says nothing of them
    few = st.lists(st.sampled_from(list(GIVEN)), min_size=1, max_size=3, unique=True)
    drawn = few.flatmap(lambda names: st.fixed_dictionaries({name: GIVEN[name] for name in names}))
    fuzz("options", drawn, taken, 60)


def written(command, path, *arguments):
    """Runs a command after its input was written to a path."""

    def taken(contents):
        Path(path).write_bytes(contents)
        command(*arguments)

    return taken


def test_names_of_classes(command):
    data = "net.safetensors", "--data=split.safetensors"
    taken = written(command, "names.txt", "evaluate", *data, "--names=names.txt")
    fuzz("class names", st.lists(TEXTS, max_size=4).map(lambda n: "\n".join(n).encode()), taken, 30)
    fuzz_bytes("class names", [b"a\nb\n", b"\xef\xbb\xbfa\r\nb", b"a\n\nb\n"], taken, 2_000)


def test_pipes_are_no_input_nor_are_grey_pictures_and_one_in_colour(command, tmp_path):
    kinds = ("", ".npz", ".onnx", ".pt", ".safetensors")
    pipes = {kind: tmp_path / f"pipe{kind}" for kind in kinds}
    for place in pipes.values():
        os.mkfifo(place)
    for kind, place in pipes.items():
        for given in (f"--data={place}", f"--names={place}"):
            with pytest.raises(UserError, match=place.name):
                command("evaluate", "net.safetensors", "--data=split.safetensors", given)
        if kind:
            with pytest.raises(UserError, match=place.name):
                command("evaluate", str(place), "--data=pictures")
    place = shutil.copytree("pictures", tmp_path / "mixed")
    Image.new("RGB", (8, 8)).save(place / "b" / "last.png")
    with pytest.raises(UserError, match="some of the pictures are grey and some in colour"):
        command("evaluate", "net.safetensors", f"--data={place}")


def test_no_options_make_a_network_beyond_memory_and_time(command, monkeypatch):
    pytest.importorskip("timm")
    known = ("--architecture=timm/test_vit", "--classes=2")
    with pytest.raises(UserError, match="timm/test_vit: depth is 1000000000; numbers go up to"):
        command("audit", "net.pt", *known, "--options={depth: 1000000000}")
    monkeypatch.setattr(memory, "free", lambda: 1 << 26)
    with pytest.raises(UserError, match=r"allocate memory|more memory than the"):
        command("audit", "net.pt", *known, "--options={embed_dim: 8192}")


@pytest.mark.parametrize(
    "take", [partial(torch.ones, dtype=torch.uint8), partial(np.ones, dtype="u1"), bytes]
)
def test_memory_that_is_not_free_is_refused(take, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1 << 27)
    words = r"more memory than the 0\.1 GB that are free"
    with pytest.raises(UserError, match=words), memory.bounded_memory():
        _ = [take(1 << 24) for _ in range(100)]
    take(1 << 28)


# --- arrays --------------------------------------------------------------------------------------
SHAPES = st.sampled_from([(6, 1, 8, 8), (6, 8, 8, 3), (6, 8, 8), (6,), (), (0, 1, 8, 8), (6, 2)])
KINDS = st.sampled_from(["u1", "<i8", ">i8", "<u8", "<f4", "?", "<c8", "S3", "M8[s]", "i1"])
NUMBER = st.sampled_from([0, 1, 2, -1, 255, 100_001, 10**9, 2**62, 2**63])
HEADERS = st.sampled_from(
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (6, 1, 8, 8), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 1, 8, 8), }",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (6, 1, 8, 8), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-6, 1, 8, 8), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "__import__('os').system('touch PWNED')",
        "{" * 2000,
    ]
)


@st.composite
def archives(draw):
    """A .npz file of two arrays, either of which may be another, gone or with another header."""
    buffer, made = io.BytesIO(), {}
    for name, usual in (("images", np.zeros((6, 1, 8, 8), np.uint8)), ("labels", np.arange(6) % 2)):
        kind = draw(st.sampled_from(["usual", "usual", "other", "value", "header", "gone"]))
        array = usual.astype(draw(KINDS)).reshape(-1) if kind == "other" else usual
        if kind == "other":
            array = np.resize(array, draw(SHAPES))
        elif kind == "value" and name == "labels":
            array = np.array([draw(NUMBER) for _ in range(6)])
        contents = io.BytesIO()
        np.save(contents, array, allow_pickle=True)
        made[name] = contents.getvalue()
        if kind == "header":
            header = draw(HEADERS).encode()
            made[name] = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(384)
        if kind == "gone":
            del made[name]
    how = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, contents in made.items():
            archive.writestr(draw(st.sampled_from([f"{name}.npy"] * 4 + [name])), contents)
    return buffer.getvalue()


def test_arrays(command):
    taken = written(command, "arrays.npz", "evaluate", "net.safetensors", "--data=arrays.npz")
    files = [io.BytesIO(), io.BytesIO()]
    for file, save in zip(files, (np.savez, np.savez_compressed), strict=True):
        save(file, images=np.zeros((6, 8, 8), np.uint8)[:, None], labels=np.arange(6) % 2)
    fuzz("npz", archives(), taken, 40)
    fuzz_bytes("npz bytes", [file.getvalue() for file in files], taken, 2_500)
    assert not Path("PWNED").exists()


# --- names and configurations of the Hub ---------------------------------------------------------
def test_names_of_the_hub(command, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    parts = TEXTS | st.sampled_from(["a", "..", "a/b", "/etc", "a" * 200, "@", "main", "https:"])
    names = st.lists(parts, max_size=4).map("/".join)

    def taken(name):
        if "\0" not in name:
            command("audit", f"hf:{name}")

    fuzz("hub", names | st.builds("{}@{}/{}".format, names, parts, parts), taken, 50)


CONFIG = {
    "architecture": "test_vit",
    "num_classes": 2,
    "model_args": {"img_size": 32, "depth": 1},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "num_classes": 2,
    },
}


def test_configurations(command, tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit", num_classes=2, img_size=32, depth=1)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    place, checkpoint = tmp_path / "config.json", str(tmp_path / "pytorch_model.bin")
    taken, known = written(command, place, "evaluate", checkpoint, "--data=pictures"), []
    for mean in ([0.5] * 3, [0.4] * 3):
        images = CONFIG["pretrained_cfg"] | {"mean": mean}
        place.write_text(json.dumps(CONFIG | {"pretrained_cfg": images}))
        known.append(command("evaluate", checkpoint, "--data=pictures")[0].known)
    assert known[0] != known[1]  # what one left unfinished is not resumed as the other's
    for change, words in (
        ({"architecture": "../../evil"}, "no such architecture"),
        ({"model_args": {"checkpoint_path": "/etc/x"}}, "cannot be given as an option"),
        ({"pretrained_cfg": {"mean": "x", "input_size": [3, 8, 8]}}, "config.json: could not"),
        ({"pretrained_cfg": {"crop_pct": -0.0, "std": 3}}, "config.json: "),
    ):
        with pytest.raises(UserError, match=words):
            taken(json.dumps(CONFIG | change).encode())
    sizes = st.sampled_from([0, 1, -1, 10**6, 10**9, 0.0, 1e-9, [10**6] * 3, "3", ["3"], [], {}])
    drawn = changed(CONFIG, VALUES | sizes).map(lambda value: json.dumps(value, default=str))
    fuzz("config.json", drawn.map(str.encode), taken, 20)
    fuzz_bytes("config.json", [json.dumps(CONFIG).encode()], taken, 2_000)


# --- state dicts of benchmarks -------------------------------------------------------------------
def test_state_dicts_of_benchmarks(command, tmp_path):
    made = [
        MAKERS["wide_resnet"](2, 1, depth=10, widen=1),
        MAKERS["preact_resnet18"](2, 1, width=2),
        MAKERS["vgg16"](2, 1, width=2, hidden=4),
    ]
    tensors = st.sampled_from(
        [
            *(torch.zeros(()), torch.zeros(0), torch.zeros(3), torch.zeros(2048, 1, 1, 1)),
            *(torch.full((16, 16, 3, 3), float("nan")), torch.zeros(2, 2, dtype=torch.int64)),
            *(torch.zeros(1, 1, 0, 1), torch.zeros(4, 4, dtype=torch.complex64), torch.zeros(2, 1)),
        ]
    )
    names = st.sampled_from(
        [
            *("block1.layer.99.conv1.weight", "block1.layer.x.conv1.weight", "layer²..0.weight"),
            *("mu", "sigma", "module.mu", "layer1.0.0.weight", "bn.weight", "classifier.0.weight"),
            *("features.0.bias", "layer1.0.bn1.weight", "conv1.weight", "fc.bias", "fc.mask"),
        ]
    )

    states = [net.state_dict() for net in made]
    dicts = st.builds(
        lambda state, more, prefix: {prefix + name: t for name, t in (state | more).items()},
        st.sampled_from(states).flatmap(
            lambda state: st.just(state) | changed(dict(state), tensors)
        ),
        st.dictionaries(names | TEXTS, tensors, max_size=2),
        st.sampled_from(["", "", "module.", "model.module.", "1.", "net."]),
    )

    def taken(state):
        torch.save(state, tmp_path / "theirs.pt")
        for what in (["audit"], ["audit", "--json"], ["evaluate", "--data=pictures"]):
            command(what[0], str(tmp_path / "theirs.pt"), *what[1:])

    fuzz("state dicts", dicts, taken, 10)


# --- deployed files ------------------------------------------------------------------------------
KNOWN = {"takes": 1, "shape": ["n", 1, 8, 8], "inputs": 1, "op": "Gemm", "shapes": [64, 2]}
KNOWN |= {"weights": "f4", "gives": 1, "answers": ["n", 2], "outputs": 1, "opset": 17}
KNOWN |= {"location": None, "facts": {}, "dims": None}


def graph(**changes):
    """An ONNX file of one linear layer on images of 1x8x8, but for what is changed."""
    onnx, known = pytest.importorskip("onnx"), argparse.Namespace(**KNOWN | changes)
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    array = np.resize(np.linspace(-1, 1, 128), known.shapes).astype(known.weights)
    weight = onnx.numpy_helper.from_array(array, "w")
    if known.dims is not None:
        weight.dims[:] = known.dims
    if known.location is not None:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", known.location), ("length", "512")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    of_two = ["flat", "w"] if known.op in ("Gemm", "Add") else ["flat"]
    names = [f"y{i}" for i in range(known.outputs)]
    nodes = [h.make_node("Flatten", ["x"], ["flat"])]
    nodes += [h.make_node(known.op, of_two, [name]) for name in names]
    info = h.make_tensor_value_info
    given = [info("x" * (i + 1), known.takes, known.shape) for i in range(known.inputs)]
    made = [info(name, known.gives, known.answers) for name in names]
    opsets = [h.make_opsetid("", known.opset)]
    whole = h.make_graph(nodes, "g", given, made, [weight])
    model = h.make_model(whole, opset_imports=opsets, ir_version=8)
    h.set_model_props(model, known.facts)
    return model.SerializeToString()


def test_deployed_files(command):
    taken = written(command, "net.onnx", "evaluate", "net.onnx", "--data=split.safetensors")
    taken(graph())
    dims = st.sampled_from(["n", 1, 8, 0, -1, 10**9, 2**40, None])
    changes = {
        "takes": st.integers(0, 20),
        "shape": st.none() | st.lists(dims, max_size=5),
        "inputs": st.integers(0, 2),
        "op": st.sampled_from(["Gemm", "Add", "Softmax", "ArgMax", "Identity", "Sigmoid", "x", ""]),
        "shapes": st.sampled_from([[64, 2], [2, 64], [128], [], [0, 2], [64, 1, 2], [64, 10**5]]),
        "weights": st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]),
        "gives": st.integers(0, 20),
        "answers": st.none() | st.lists(dims, max_size=3),
        "outputs": st.integers(0, 2),
        "opset": st.sampled_from([-1, 0, 1, 17, 99, 2**40]),
        "location": st.sampled_from(["../../../../etc/passwd", "/dev/zero", "absent", "", "x\0"]),
        "facts": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "dims": st.lists(st.sampled_from([64, 2, 0, -1, 2**40, 2**62]), max_size=3),
    }
    few = st.lists(st.sampled_from(list(changes)), min_size=1, max_size=2, unique=True)

    @st.composite
    def files(draw):
        chosen = {name: draw(changes[name]) for name in draw(few)}
        try:
            return graph(**chosen)
        except (TypeError, ValueError, OverflowError, KeyError):  # onnx will not write it
            return graph(facts={"x": "y"})

    fuzz("onnx", files(), taken, 40)
    fuzz_bytes("onnx bytes", [graph(), graph(op="Softmax"), graph(weights="f2")], taken, 2_500)
