"""Networks of another's making: built, stored and compressed like the library's own, or refused."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import DRAWN, MASKS, PLAIN, RANDOM, TRAINED

from advprune.attacks.engine import attack_copy
from advprune.core.errors import UserError
from advprune.core.settings import parse
from advprune.core.train_settings import ModelSettings, SurrogateSettings, TrainSettings
from advprune.data import Split
from advprune.evaluate.layers import where
from advprune.models.audit import audit
from advprune.models.card import stored_bits_of
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.foreign import check_answers
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec, sites, spec_of
from advprune.pruning import Data, prune
from advprune.quantization.post_training import quantize, twin_agreement
from advprune.training.networks import begin
from conftest import same_when_stored

CODE = '''
import torch
import torch.nn.functional as F
from torch import nn

calls = []


class Functional(nn.Module):
    """ReLUs that cannot be seen, a view that bears one layout alone, a padding in words."""

    def __init__(self, classes, channels, width=4):
        super().__init__()
        calls.append(width)
        self.conv = nn.Conv2d(channels, width, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width * 16, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.last(F.adaptive_avg_pool2d(x, 4).view(len(x), -1))


class Attention(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.patches = nn.Conv2d(channels, 4, 4, stride=4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.act = nn.GELU()
        self.last = nn.Linear(4, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.act(x + self.attention(x, x, x)[0]).mean(1))


def modules(classes, channels):
    act, last = nn.PReLU(), nn.Linear(36, classes)
    conv = nn.Conv2d(channels, 4, 3, stride=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), act, nn.Flatten(), last)


def broken(classes, channels, how):
    body = modules(classes, channels)

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body
            if how == "shared":
                self.again = body[0]
            if how == "double":
                self.more = nn.Linear(2, 2).double()

        def forward(self, x):
            if how == "raise":
                raise IndexError("not such a picture")
            out = self.body(x)
            answers = {"aux": (out, out), "classes": out[:, 1:], "cut": out.detach()}
            return answers.get(how, out)

    return Broken()


def nothing(classes, channels):
    return None
'''


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """A folder, the current one, in which theirs.py lies; unloaded afterwards."""
    (tmp_path / "theirs.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("theirs", None)
    yield tmp_path
    sys.modules.pop("theirs", None)


def spec(name, channels=1, **more):
    sizes = {"mean": (0.3,) * channels, "std": (0.4,) * channels, "classes": 3}
    return ModelSpec(architecture=name, channels=channels, **sizes | more)


def network(name, channels=1, **more):
    found = spec(name, channels, **more)
    model = build(found, found.factory)
    initialize(model, torch.Generator().manual_seed(0))
    return model


def pictures(channels=1, side=8):
    return torch.rand(6, channels, side, side, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(6) % 3
OWN = ["theirs:Functional", "theirs:Attention", "theirs:modules"]


# --- whose code is called ------------------------------------------------------------------------
def test_a_header_calls_no_function_that_was_not_named(code):
    save_model(network("theirs:Functional"), code / "a.safetensors")
    (code / "evil.py").write_text("raise SystemExit('imported')")
    tensors = load_file(code / "a.safetensors")
    text = spec("theirs:Functional").model_dump_json().replace("theirs:Functional", "evil:make")
    save_file(tensors, code / "evil.safetensors", {"spec": text})
    for allowed in (None, "theirs:Functional", "evil:other"):
        words = r"evil:make, which is not called .*--factory evil:make"
        with pytest.raises(UserError, match=words):
            load_model(code / "evil.safetensors", allowed)
    with pytest.raises(UserError, match="which is not called"):
        audit(tensors, ModelSpec.model_validate_json(text))
    assert "evil" not in sys.modules
    with pytest.raises(UserError, match="theirs:Functional, which is not called"):
        load_model(code / "a.safetensors")


def test_the_command_line_names_it(code, run):
    save_model(network("theirs:modules"), code / "a.safetensors")

    status, said, err = run("audit", "a.safetensors")
    assert status == 2 and "--factory theirs:modules" in err
    status, said, err = run("audit", "a.safetensors", "--factory", "theirs:modules")
    assert status == 0 and "theirs:modules, 1 channel, 3 classes (header)" in said
    words = ("--out", "half.safetensors", "--factory", "theirs:modules")
    assert run("export", "a.safetensors", *words[:2])[0] == 2
    assert run("export", "a.safetensors", *words)[0] == 0 and Path("half.safetensors").exists()
    status, said, err = run("audit", "a.safetensors", "--factory", "theirs:Functional")
    assert status == 2 and "which is not called" in err
    torch.save(network("theirs:modules").get_submodule("network").state_dict(), code / "a.pt")
    assert "give --classes" in "".join(run("audit", "a.pt", "--factory", "theirs:modules")[1:])
    sizes = ("--classes", "3", "--channels", "1")
    status, said, err = run("audit", "a.pt", "--factory", "theirs:modules", *sizes)
    assert status == 0 and said.endswith("sound\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "os:system;x"}, "package.module:function"),
        ({"architecture": "torchvision/../x"}, "no such architecture"),
        ({"architecture": "timm/hf-hub:x"}, "package.module:function"),
        ({"architecture": "resnet50"}, "no such architecture"),
        ({"architecture": "torchvision/alexnet", "options": {"weights": "DEFAULT"}}, "weights"),
        ({"architecture": "timm/x", "options": {"checkpoint_path": "/etc/x"}}, "checkpoint_path"),
        ({"architecture": "timm/x", "options": {"pretrained_cfg": "x"}}, "pretrained_cfg"),
        ({"architecture": "theirs:modules", "options": {"a": {"b": 1}}}, "options"),
        ({"architecture": "theirs:modules", "width": 4}, "has no width"),
        ({"architecture": "theirs:modules", "binary": True}, "has no binary"),
        ({"architecture": "resnet18", "width": 2, "options": {"a": 1}}, "has no options"),
        ({"architecture": "resnet18"}, r"width: resnet18 takes one of at least 1 \(got 0\)"),
    ],
)
def test_names_and_options_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelSpec(**{"channels": 1, "classes": 3, "mean": (0.0,), "std": (1.0,)} | changes)


def test_only_classifiers_of_other_collections_are_made_without_weights():
    with pytest.raises(UserError, match="no classifier 'fcn_resnet50'"):
        build(spec("torchvision/fcn_resnet50", 3))
    with pytest.raises(UserError, match="grey or colour images, not 2"):
        build(spec("torchvision/alexnet", 2))
    with pytest.raises(UserError, match=r"torchvision/alexnet, called .*unexpected .*'nonsense'"):
        build(spec("torchvision/alexnet", 3, options={"nonsense": 1}))
    with pytest.raises(UserError, match=r"multiple values for argument 'name'"):
        build(spec("torchvision/alexnet", 3, options={"name": "vgg11", "function": 1}))
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm has no model"):
        build(spec("timm/nonsense"))


def test_a_network_of_very_many_layers_is_not_made(monkeypatch):
    monkeypatch.setattr("advprune.models.foreign.MOST_LAYERS", 20)
    with pytest.raises(UserError, match="its options make a network of over 20 layers"):
        build(spec("torchvision/alexnet", 3))


# --- the contract --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("aux", r"images \[1, 8, 8\], in training: the model returns tuple for 4 images"),
        ("classes", "returns 2 classes, not 3"),
        ("cut", "no gradient by the image"),
        ("raise", r"IndexError: not such a picture \(theirs.py, line \d+\)"),
        ("shared", "network.body.0.weight and network.again.weight are one tensor"),
        ("double", "more.weight is float64"),
    ],
)
def test_what_breaks_the_contract_is_refused(how, words):
    with pytest.raises(UserError, match=words):
        check_answers(network("theirs:broken", options={"how": how}), (1, 8, 8))


def test_what_keeps_the_contract_is_taken():
    fine = network("theirs:broken", options={"how": "not at all"})
    check_answers(fine, (1, 8, 8))
    check_answers(prune("SAP", fine, 1.0).model, (1, 8, 8))  # random, and meant to be


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("theirs:nothing", "returned NoneType, not an nn.Module"),
        ("theirs:absent", "theirs has no function 'absent'"),
        ("theirs:calls", "theirs has no function 'calls'"),
        ("absent.module:make", "absent.module cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_is_none(name, words):
    with pytest.raises(UserError, match=words):
        network(name)


def test_settings_reach_the_function(code):
    split = Split((pictures() * 255).byte(), LABELS, ("a", "b", "c"), "test")
    settings = parse(
        ModelSettings, {"factory": "theirs:Functional", "options": {"width": 6}}, where="model"
    )
    one, other, third = (begin(settings, split, seed) for seed in (0, 0, 1))
    assert spec_of(one).options == {"width": 6} and "theirs" in sys.modules
    assert set(sys.modules["theirs"].calls) == {6}
    assert torch.equal(one(pictures()), other(pictures()))
    assert not torch.equal(one(pictures()), third(pictures()))
    attacker = SurrogateSettings(architecture="resnet20", width=2).network(settings)
    assert (attacker.network, attacker.width, attacker.options) == ("resnet20", 2, {})
    assert SurrogateSettings(seed=3).network(settings) == settings
    for wrong in ({"architecture": "resnet18", "factory": "a:b"}, {"options": {"a": 1}}):
        with pytest.raises(UserError, match="model: "):
            parse(ModelSettings, wrong, where="model")


def test_initialization_is_the_makers_own_and_follows_the_seed():
    model = network("theirs:modules")
    with torch.random.fork_rng():
        seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)))
        torch.manual_seed(seed)
        expected = sys.modules["theirs"].modules(classes=3, channels=1)
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_images_arrive_normalized_and_grey_ones_in_colour():
    x, model = pictures(), network("theirs:modules")
    inner = model.get_submodule("network").eval()
    assert torch.allclose(model.eval()(x), inner((x - 0.3) / 0.4), atol=1e-6)
    grey = network("torchvision/squeezenet1_1").eval()
    inner, x = grey.get_submodule("network"), pictures(side=32)
    assert torch.allclose(grey(x), inner(((x - 0.3) / 0.4).repeat(1, 3, 1, 1)), atol=1e-6)


# --- compressed ----------------------------------------------------------------------------------
# Of masks a sparsity: a compression counts the classifier, in which most of these weights are.
SETTINGS = PLAIN | RANDOM | DRAWN | TRAINED
SETTINGS |= {name: {"sparsity": 0.5} for name in MASKS}
SETTINGS["GAP_layer"] = {"sparsity": 0.5, "steps": 1, "published": True}
BEHIND = {"clamp", "round", "SAP", "dropout", "RNA"}
REFUSED = dict(zip(OWN, (BEHIND, {"filters"}, set()), strict=True))


@pytest.mark.parametrize("name", OWN)
def test_every_family_works_or_says_in_one_line_what_it_needs(code, name):
    model, refused = network(name), set()
    data = Data(pictures(), LABELS, TrainSettings(batch=3, epochs=1))
    for family, setting in SETTINGS.items():
        try:
            pruned = prune(family, model, setting, data).model
        except UserError as error:
            assert str(error).startswith(f"{family}: ") and "\n" not in str(error)
            refused.add(family)
            continue
        same_when_stored(pruned, pictures(), code, name)
        assert not torch.equal(pruned(pictures()), model(pictures())), family
    assert refused == REFUSED[name]


def test_layers_stand_behind_activations_and_figures_show_what_begins_with_the_batch(code):
    model = network("theirs:modules")
    assert list(sites(model)) == ["network.2"]
    clamped = prune("clamp", model, 0.1, (pictures(), LABELS)).model
    assert list(sites(clamped)) == ["network.2"]
    seen = []
    clamped.get_submodule("network.2").register_forward_hook(lambda m, i, out: seen.append(out))
    clamped(pictures())
    limits = clamped.get_submodule("network.2.1")
    assert seen[0].min() == limits.low and seen[0].max() == limits.high
    x = pictures()
    found = where(network("theirs:Attention"), x, x.flip(3), x.flip(2))
    assert found.layer.tolist() == ["normalize", "network.patches", "network.act", "network.last"]
    assert (found.mean_difference > 0).all()


@pytest.mark.parametrize("name", OWN)
def test_integers(code, name):
    model, x = network(name), pictures()
    left = ("network.attention.out_proj",) if name == "theirs:Attention" else ()
    with torch.no_grad():  # settled batch-norm, logits of a usual size
        for _ in range(20):
            model.train()(x)
    model.eval()
    found = quantize(model, x)
    assert spec_of(found).quantization.left == left
    with torch.no_grad():
        gap = float((found(x) - model(x)).abs().max() / model(x).abs().max())
    assert 0 < gap < 0.1 and twin_agreement(found, x)[0] == 1
    same_when_stored(found, x, code, spec_of(model).factory)
    private = attack_copy(model, torch.device("cpu"))
    assert torch.allclose(private(x), model(x), rtol=1e-3, atol=1e-4)


def test_stored_bits_are_counted_by_hand():
    found = quantize(network("theirs:Attention"), pictures())
    integers = 4 * 16 + 3 * 4  # patches, last
    floats = 3 * 4 * 4 + 4 * 4  # what maps the input of attention, and its output
    assert stored_bits_of(found) == 8 * integers + 32 * floats
