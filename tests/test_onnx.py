"""Deployed files: ONNX graphs made by hand and by `advprune export`, and functions that answer."""

import shlex

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from workspace import ROOT, blocks

from advprune import benchmark, load_model
from advprune.cli.app import app
from advprune.core.errors import UserError
from advprune.core.fit import Fit
from advprune.core.params import load
from advprune.data import load_split, prepare, save_split, to_float
from advprune.evaluate.deployed import target_agreement
from advprune.models.checkpoint import save_model
from advprune.models.onnx_file import OnnxFile, export_onnx, files_of, fit_of, weight_facts
from advprune.models.spec import ModelSpec, Normalize, attach, spec_of
from advprune.models.target import target_of
from advprune.quantization.post_training import quantize
from conftest import Linear

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("short_attacks")
SHAPE = (2, 4, 5)
EPS = 48 / 255
FLOATS = ("FLOAT", "DOUBLE", "FLOAT16")


def linear():
    """The network of `graph`."""
    return Linear(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).T)


def graph(path, *, kind="FLOAT", last=False, batch="n", end="", **more):
    """A linear network on images `SHAPE` as an ONNX file: of that type of input, with channels last
    or in batches of a fixed size, and another node at its end; `more` changes the file."""
    h, types = onnx.helper, onnx.TensorProto
    weight = more.get("scale", 1.0) * linear().weight.detach().T
    if last:
        weight = weight.view(*SHAPE, 3).permute(1, 2, 0, 3).reshape(40, 3)
    sizes = [batch, *(SHAPE[1:] + SHAPE[:1] if last else SHAPE)]
    nodes = [
        h.make_node("Cast", ["images"], ["float"], to=types.FLOAT),
        h.make_node("Flatten", ["float"], ["flat"]),
        h.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    held = [onnx.numpy_helper.from_array(weight.numpy(), "w")]
    if kind == "UINT8":
        held.append(onnx.numpy_helper.from_array(torch.tensor(255.0).numpy(), "grey"))
        nodes.insert(1, h.make_node("Div", ["float", "grey"], ["unit"]))
        nodes[2] = h.make_node("Flatten", ["unit"], ["flat"])
    result = h.make_tensor_value_info("scores", types.FLOAT, [batch, 3])
    if end == "Softmax":
        nodes.append(h.make_node("Softmax", ["scores"], ["out"]))
        result = h.make_tensor_value_info("out", types.FLOAT, [batch, 3])
    if end == "ArgMax":
        nodes.append(h.make_node("ArgMax", ["scores"], ["out"], axis=1, keepdims=0))
        result = h.make_tensor_value_info("out", types.INT64, [batch])
    inputs = [h.make_tensor_value_info("images", getattr(types, kind), more.get("shape", sizes))]
    inputs += [h.make_tensor_value_info("more", types.FLOAT, [1])] * more.get("extra", 0)
    made = h.make_model(
        h.make_graph(nodes, "g", inputs, [result], held), opset_imports=[h.make_opsetid("", 17)]
    )
    made.ir_version = 8
    if outside := more.get("outside"):
        for folder in (path.parent, path.parent.parent):
            folder.joinpath("w.bin").write_bytes(weight.numpy().tobytes())
        one = made.graph.initializer[0]
        one.ClearField("raw_data")
        one.data_location = types.EXTERNAL
        one.external_data.add(key="location", value=outside)
    path.write_bytes(made.SerializeToString()[: more.get("cut")])
    return path


def images(n=7):
    drawn = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))
    return (255 * drawn).round() / 255


@pytest.mark.parametrize(
    "how",
    [
        *({"kind": kind} for kind in (*FLOATS, "UINT8")),
        *({"batch": size} for size in (1, 4, 16)),
        {"last": True, "kind": "UINT8", "batch": 2},
        {"shape": ["n", None, None, None]},
        {"outside": "w.bin"},
    ],
    ids=str,
)
def test_images_are_given_as_the_file_takes_them(tmp_path, how):
    x, slack = images(), 0.05 if how.get("kind") == "FLOAT16" else 1e-4
    (tmp_path / "in").mkdir()
    path = graph(tmp_path / "in" / "net.onnx", **how)
    said = OnnxFile(path, SHAPE)(x)
    assert [one.name for one in files_of(path)] == ["net.onnx", "w.bin"][: 1 + ("outside" in how)]
    assert torch.allclose(said.float(), linear()(x), atol=slack)


def test_images_are_normalized_unless_the_file_does_it(tmp_path):
    x, normalize = images(), Normalize((0.5, 0.25), (0.1, 0.2))
    path, net = graph(tmp_path / "net.onnx"), linear()
    assert torch.allclose(OnnxFile(path, SHAPE, normalize)(x), net(normalize(x)), atol=1e-4)
    attach(net, ModelSpec(architecture="t:net", channels=2, classes=3, mean=(0, 0), std=(1, 1)))
    export_onnx(net, path, SHAPE[1:])
    assert torch.allclose(OnnxFile(path, SHAPE, normalize)(x), net(x), atol=1e-4)
    assert fit_of(path) is None
    attach(net, spec_of(net).model_copy(update={"fit": Fit(resize=9, crop=8)}))
    export_onnx(net, path, SHAPE[1:])
    assert fit_of(path) == Fit(resize=9, crop=8)


def test_probabilities_become_logits_and_stay_probabilities_labels_one_of_several(tmp_path):
    x, logits = images(), linear()(images()).detach()
    shares = target_of(OnnxFile(graph(tmp_path / "s.onnx", end="Softmax"), SHAPE), x)
    assert torch.allclose(shares(x), logits.log_softmax(1), atol=1e-4)
    labels = target_of(OnnxFile(graph(tmp_path / "l.onnx", end="ArgMax"), SHAPE), x, 3)
    assert torch.equal(labels(x).argmax(1), logits.argmax(1)) and labels(x).sum() == len(x)
    x = images()
    shares = target_of(lambda x: linear()(x).softmax(1).detach() + (len(x) < 3), x)
    with pytest.raises(UserError, match="and now other numbers"):
        shares(x[:2])
    with pytest.raises(UserError, match=r"have \[3, 4\] classes"):
        y = torch.zeros(7, dtype=torch.int64)
        benchmark(lambda x: torch.zeros(len(x), 4), x, y, dense=linear())


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize(
    "rounded",
    [lambda p: p, lambda p: p.half(), lambda p: p.numpy().round(4)],
    ids=["float32", "float16", "4 decimals"],
)
def test_rounded_or_saturated_probabilities_agree_with_their_own_network_alone(scale, rounded):
    """At margins of 8, and of 64, where most probabilities round to 0; half of the scale is seen
    where they do not."""
    x = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(3))
    best, second = linear()(x).detach().topk(2).values.mean(0)

    def scaled(size):
        return Linear((size / (best - second)).item() * linear().weight.detach())

    target = target_of(lambda x: rounded(scaled(8 * scale)(x).softmax(1).detach()), x)
    assert target.shares and target_agreement(target.with_twin(scaled(8 * scale)), x) == 1
    assert scale > 1 or target_agreement(target.with_twin(scaled(4)), x) < 0.5


def test_scores_that_lie_between_0_and_1_by_chance_are_no_probabilities():
    x = images()
    target = target_of(lambda x: 0.4 + 0.1 * linear()(x).detach().tanh(), x)
    assert not target.shares and torch.equal(target(x), 0.4 + 0.1 * linear()(x).detach().tanh())


def test_more_classes_than_labels_show_are_said_and_those_of_a_network_are_its_own():
    x, y = images(), torch.zeros(7, dtype=torch.int64)
    answer = lambda x: torch.where(x.mean((1, 2, 3)) > x.mean(), 5, 0)  # noqa: E731
    with pytest.raises(UserError, match=r"none of 1 classes; say how many there are"):
        benchmark(lambda x: answer(x) * (len(x) < 7), x, y, queries=20)
    assert target_of(answer, x, 9)(x).shape == (7, 9)
    for given in ({"twin": linear()}, {"classes": 3}):
        with pytest.raises(UserError, match="twin and classes are of a function"):
            benchmark(linear(), x, y, **given)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"cut": 300}, "Protobuf parsing failed"),
        ({"cut": 0}, "No graph"),
        ({"kind": "INT32"}, r"takes tensor\(int32\)"),
        ({"extra": 1}, "takes 2 inputs"),
        ({"batch": 10**9}, "takes 1000000000 images at once"),
        ({"shape": ["n", 2, 5, 4]}, r"takes \['n', 2, 5, 4\]; .* are \[2, 4, 5\]"),
        ({"shape": ["n", 40]}, r"takes \['n', 40\]"),
        ({"outside": "../w.bin"}, "escapes model directory"),
        ({"outside": "missing.bin"}, "does not exist"),
    ],
    ids=str,
)
def test_other_files_are_refused_by_name(tmp_path, how, said):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=said):
        OnnxFile(graph(tmp_path / "in" / "net.onnx", **how), SHAPE)


def answers_of(kind):
    calls = []

    def answer(x):
        calls.append(len(x))
        if kind == "fails":
            raise OSError("no device\nat all")
        return {
            "none": None,
            "one score": torch.zeros(len(x), 1),
            "text": ["a"] * len(x),
            "share": torch.full((len(x),), 0.5),
            "NaN": torch.full((len(x), 3), float("nan")),
            "moody": torch.full((len(x), 3), float(len(calls))),
        }[kind]

    return answer


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fails", r"OSError: no device \(test_onnx.py, line \d+\)$"),
        ("none", "it fails on images"),
        ("one score", r"it answers torch.float32 \[7, 1\] to 7 images; give finite scores"),
        ("text", "it fails on images"),
        ("share", r"\[7\] .* whole numbers \[N\], the labels"),
        ("NaN", r"\[7, 3\] .* finite"),
        ("moody", "differently from call to call"),
    ],
)
def test_other_answers_are_refused_in_one_line(kind, said):
    with pytest.raises(UserError, match=said):
        target_of(answers_of(kind), images())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network of digits, its int8 form, the same as a file, and some test images."""
    there = tmp_path_factory.mktemp("deployed")
    dense = load_model(ROOT / "weights" / "digits" / "dense-standard.fp16.safetensors")
    splits = prepare(load(ROOT / "params.yaml", profile="digits").active().data, 0)
    save_model(dense, there / "dense.safetensors")
    int8 = quantize(dense, to_float(splits["train"].images[:256]))
    save_model(int8, there / "int8.safetensors")
    export_onnx(int8, there / "int8.onnx")
    save_split(splits["test"].pick(torch.arange(12)), there / "test.safetensors")
    save_split(splits["test"], there / "all.safetensors")
    return there


@pytest.mark.parametrize("bits", [8, 5])
def test_an_exported_network_answers_as_its_integers_do(folder, bits):
    """Bits 5: inputs are cut before they are rounded."""
    x, _ = load_split(folder, "all")
    model = load_model(folder / "int8.safetensors")
    if bits != 8:
        model = quantize(load_model(folder / "dense.safetensors"), x[:64], bits)
    export_onnx(model, folder / f"int{bits}.onnx", (8, 8))
    said = OnnxFile(folder / f"int{bits}.onnx", (1, 8, 8))(x)
    with torch.no_grad():
        wanted = model(x)
    assert (said.argmax(1) == wanted.argmax(1)).float().mean() >= 0.99
    assert ((said - wanted).abs().amax(1) < 1e-4).float().mean() > 0.9  # but for ties
    integers = {one.op_type for one in onnx.load(folder / f"int{bits}.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= integers
    assert weight_facts(folder / f"int{bits}.onnx")["bits"] == 8


def evaluated(path, *, beside=True, **how):
    """The linear network's file, beside that network or alone, on images of all classes."""
    answer, x = OnnxFile(graph(path / "net.onnx", **how), SHAPE), images(400)
    x = torch.cat([x[linear()(x).argmax(1) == label][:6] for label in range(3)])
    y = linear()(x).argmax(1)
    return benchmark(answer, x, y, eps="24/255", queries=200, dense=linear() if beside else None)


def attacks_of(found):
    return set(found.records.attack)


def altered(folder, name, factor=2.0):
    """The file with one of its arrays of scales changed."""
    made = onnx.load(folder / "int8.onnx")
    (one,) = (one for one in made.graph.initializer if one.name == name)
    array = onnx.numpy_helper.to_array(one) * factor
    one.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), name))
    onnx.save(made, folder / "altered.onnx")
    return "altered.onnx"


SCALES = [f"layer{n}.0.conv{k}.layer.weight_scale" for n in (1, 4) for k in (1, 2)]


def test_one_altered_scale_makes_the_verdict_suspect(folder, tmp_path):
    x = load_split(folder, "all")[0][:100]
    for beside in ("int8", "dense"):
        source = load_model(folder / f"{beside}.safetensors")
        for name in SCALES:
            target = target_of(OnnxFile(folder / altered(folder, name), (1, 8, 8)), x)
            assert target_agreement(target.with_twin(source), x) < 0.99, name
    found = evaluated(tmp_path, scale=1.3)
    assert found.verdict.level == "suspect"
    assert [check.name for check in found.verdict.against] == ["twin"]


def test_queries_alone_are_never_reliable(tmp_path):
    found, beside = evaluated(tmp_path, beside=False), evaluated(tmp_path)
    assert found.verdict.level == "suspect" and beside.verdict.level == "reliable"
    assert [check.name for check in found.verdict.against] == ["white-box attacks"]
    assert attacks_of(found) >= {"square", "hopskipjump", "probe_nes", "probe_student"}
    assert not attacks_of(found) & {"apgd_ce", "curve_eps", "probe_stronger"}
    assert beside.robust.value <= found.robust.value < 1
    assert (beside.distances <= 1.01 * found.distances).all() and (found.distances < 1).all()


def test_hopskipjump_replaces_square_where_classes_alone_are_answered(tmp_path):
    found = evaluated(tmp_path, end="ArgMax")
    assert found.verdict.level == "reliable"
    assert "hopskipjump" in attacks_of(found) and "square" not in attacks_of(found)
    own = found.records[found.records.attack == "hopskipjump"]
    assert (own.distance >= found.distances - 1e-6).all()


def test_a_target_that_turns_gradients_round_is_found_out():
    """It answers as its network does on clean images, and to a change as if that were reversed."""
    x, dense = images(12), linear().requires_grad_(False)

    def reversed_change(images):
        clean = x[torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)]
        return dense(2 * clean - images)

    found = benchmark(reversed_change, x, dense(x).argmax(1), eps="24/255", dense=dense)
    against = {check.name for check in found.verdict.against}
    assert found.metrics["twin_agreement"] == 1.0 and found.verdict.level == "broken"
    assert {"wrong gradients, over a step", "gradient-free"} <= against


def test_compared_networks_are_tried_on_each_others_images():
    """Both are the same network, so that what fools one fools the other."""
    x = images(12)
    y = linear()(x).argmax(1)
    run = benchmark(linear(), x, y, eps="24/255", dense=linear()).run
    dense, model = run.models
    for one, other in ((dense, model), (model, dense)):
        ((key, table),) = one.transfers.items()
        assert key == (other.name, run.main)
        assert table.adv_pred.tolist() == other.attack(run.main).adv_pred.tolist()


def commands(folder, monkeypatch, *lines):
    """What lines of a shell give, run in the folder by the command's own code."""
    monkeypatch.chdir(folder)
    return [CliRunner().invoke(app, shlex.split(line.removeprefix("advprune "))) for line in lines]


def test_the_guide_to_the_letter(folder, monkeypatch, capsys):
    """A file beside its networks is attacked as a quantized network is."""
    shell = "".join(blocks("deployed.md", "sh"))
    found = commands(folder, monkeypatch, *shell.splitlines())
    assert [one.exit_code for one in found] == [0, 0], [one.output for one in found]
    assert "class on 64 of 64" in found[0].output and "verdict: reliable" in found[1].output
    (code,) = blocks("deployed.md", "python")
    space = {}
    exec(code, space)  # which prints what it found
    deployed = space["found"]
    assert repr(deployed) == capsys.readouterr().out.strip().splitlines()[-1]
    assert deployed.verdict.level == "reliable" and deployed.metrics["twin_agreement"] == 1.0
    assert {"apgd_parent", "square", "distance", "probe_honesty"} <= attacks_of(deployed)
    assert deployed.robust.value == 0.0 and (deployed.distances <= EPS + 1e-6).all()
    sent = deployed.run.models[-1].transfers["dense", "field"]
    assert (sent.adv_pred != sent.label).any()


def test_nonsense_is_refused_in_one_line(folder, monkeypatch):
    graph(folder / "three.onnx", shape=["n", 1, 8, 8])
    lines = {
        "evaluate int8.onnx --data test.safetensors --dense int8.onnx": "has no gradients",
        "evaluate dense.safetensors --data test.safetensors --twin int8.safetensors": "--twin goes",
        "evaluate three.onnx --data test.safetensors": "three.onnx",
        "export dense.safetensors": "give either",
        "export dense.safetensors --onnx net.safetensors": "ends in .onnx",
        "export dense.safetensors --onnx net.onnx --size 8y": "number of pixels",
        "export dense.safetensors --out net.safetensors --size 8": "--size goes with",
    }
    for one, said in zip(commands(folder, monkeypatch, *lines), lines.values(), strict=True):
        assert isinstance(one.exception, UserError) and said in str(one.exception)


def test_what_onnx_lacks_is_refused_in_one_line(tmp_path, capfd):
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).abs().flatten(1)[:, :2]

    network = Spectrum()
    known = ModelSpec(architecture="a:b", channels=1, classes=2, mean=(0.0,), std=(1.0,))
    vars(network)["spec"] = known
    with pytest.raises(UserError, match=r"cannot be written as ONNX: .*fft2"):
        export_onnx(network, tmp_path / "net.onnx", (8, 8))
    assert capfd.readouterr().out == "" and not (tmp_path / "net.onnx").exists()
