"""Networks whose code does with its layers what few do: made right, or refused in one line."""

import pytest
import torch
from test_borders import Around, flat
from torch import nn

from advprune.attacks import pgd
from advprune.core.errors import UserError
from advprune.models.audit import audit
from advprune.models.card import inert_of, macs_of
from advprune.models.checkpoint import build
from advprune.models.spec import ModelSpec, spec_of
from advprune.models.target import target_of
from advprune.pruning import prune
from advprune.pruning.filters import groups
from advprune.quantization.post_training import quantize
from advprune.quantization.training import integer_form, training_form
from conftest import same_when_stored

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
LEFT = {  # read by more than its own pass
    "bias": lambda fc, h: fc(h) + fc.bias,
    "norm": lambda fc, h: fc(h) / fc.weight.norm(dim=1),
    "power": lambda fc, h: fc(h) - fc.weight.pow(2).mean(),
    "listed": lambda fc, h: fc(h) + torch.stack([fc.bias, fc.bias]).sum(0),
    "type": lambda fc, h: fc(h.to(fc.weight.dtype)),
    "function": lambda fc, h: fc(h) + nn.functional.linear(h, fc.weight),
}
INTEGERS = {
    "sizes": lambda fc, h: fc(h.view(-1, fc.in_features))[:, : fc.out_features],
    "shape": lambda fc, h: fc(h.view(-1, fc.weight.shape[1]).to(fc.weight.device)),
    "keyword": lambda fc, h: fc(input=h),
    "size of a bias": lambda fc, h: fc(h)[:, : fc.bias.numel()],
}


class Classified(nn.Module):
    def __init__(self, classes, channels, how):
        super().__init__()
        self.conv, self.act = nn.Conv2d(channels, 2, 3, padding=1), nn.ReLU()
        self.fc, self.how = nn.Linear(32, classes), how

    def forward(self, x):
        h = self.act(self.conv(x)).flatten(1)
        if self.how == "kind":
            return self.fc(h) if isinstance(self.fc, nn.Linear) else h.nothing
        return (LEFT | INTEGERS)[self.how](self.fc, h)


class Mixed(nn.Module):
    """Attention, and a norm over maps: weights of several dimensions that are no layer's."""

    def __init__(self, classes, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 1), nn.LayerNorm([4, 4, 4])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(64, classes)

    def forward(self, x):
        h = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.last(self.attention(key=h, value=h, query=h)[0].flatten(1))


def made(name, **options):
    sizes = {"channels": 1, "classes": 3, "mean": (0.0,), "std": (1.0,)}
    spec = ModelSpec(architecture=f"test_unusual:{name}", options=options, **sizes)
    torch.manual_seed(0)
    return build(spec, spec.factory)


@pytest.mark.parametrize("how", [*LEFT, *INTEGERS])
def test_a_layer_becomes_integers_where_nothing_else_reads_its_weights(how, tmp_path):
    model = made("Classified", how=how)
    expected = model(IMAGES).detach()
    bound = 0.05 * float(expected.abs().max())
    found = quantize(model, IMAGES)
    assert spec_of(found).quantization.left == (("network.fc",) if how in LEFT else ())
    assert torch.allclose(found(IMAGES), expected, atol=bound)
    same_when_stored(found, IMAGES, tmp_path, "test_unusual:Classified")
    trained = training_form(model, IMAGES, 8)
    assert torch.allclose(trained(IMAGES), found(IMAGES), atol=bound / 10)
    assert torch.allclose(integer_form(trained)(IMAGES), found(IMAGES), atol=bound / 10)


def test_code_that_does_not_run_on_integers_is_refused_in_one_line():
    model = made("Classified", how="kind")
    for of in (quantize, lambda *given: training_form(*given, 8)):
        with pytest.raises(UserError, match=r"^quantize: in its quantized form.*'nothing'"):
            of(model, IMAGES)


def buffered():
    """A blur that is no parameter."""
    blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    del blur.weight
    blur.register_buffer("weight", torch.full((1, 1, 3, 3), 1 / 9))
    return nn.Sequential(blur, nn.Flatten(), nn.Linear(16, 3)).eval()


def upwards():
    return nn.Sequential(nn.ConvTranspose2d(1, 2, 3, stride=3), nn.Flatten(), nn.Linear(288, 3))


@pytest.mark.parametrize(
    ("make", "macs"),
    [
        (lambda: made("Classified", how="keyword"), 16 * 2 * 9 + 32 * 3),
        (lambda: made("Mixed"), 16 * 4 + 4 * 16 * 4 * 4 + 64 * 3),  # 16 tokens by four 4x4 matrices
        (buffered, 16 * 9 + 16 * 3),
        (upwards, 16 * 2 * 9 + 288 * 3),  # each pixel meets all weights once
    ],
)
def test_multiplications_by_hand(make, macs):
    model = make().eval()
    assert macs_of(model, (1, 4, 4)) == macs
    assert inert_of(model, (1, 4, 4)) == 0


def test_weights_that_meet_only_padding_by_hand():
    """At dilation 2, a filter on a map of 2x2 reaches two rows on: the middle alone counts."""
    wide = nn.Conv2d(1, 4, 3, padding="same", dilation=2)
    model = nn.Sequential(wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    assert inert_of(model, (1, 2, 2)) == 8 * 4 / (36 + 4 + 12 + 3)
    assert inert_of(model, (1, 4, 4)) == 0


def test_an_audit_counts_all_parameters_and_takes_layers_for_what_they_are():
    model = made("Mixed")
    with torch.no_grad():
        model.network.norm.weight.zero_()
        model.network.attention.in_proj_weight.zero_()
    found = audit(dict(model.state_dict()), spec_of(model), factory="test_unusual:Mixed")
    names = ["conv", "attention.out_proj", "last"]
    assert [one.name for one in found.layers] == [f"network.{name}.weight" for name in names]
    assert found.prunable == (0, 4 + 16 + 192)
    zeros = 64 + 48 + 64 + 12 + 4  # and the biases that torch starts at zero
    assert (found.zeros, found.count) == (zeros, sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize(
    "reader",
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=2),),
        (nn.Conv2d(4, 2, 3, padding=1, groups=2),),
        (nn.ConvTranspose2d(4, 4, 1),),
        (nn.Flatten(2), nn.Conv1d(4, 4, 1)),
    ],
    ids=["grouped", "fewer", "transposed", "1D"],
)
def test_filters_go_where_what_reads_them_can_be_cut(reader):
    head = nn.Flatten(), nn.Linear(16 * reader[-1].out_channels, 4), nn.ReLU(), nn.Linear(4, 3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *reader, *head).eval()
    total, inner = sum(p.numel() for p in model.parameters()), str(len(reader) + 2)
    whole = "0.weight"  # what a plain convolution reads, too, is found
    found = prune("filters", model, 0.5, (IMAGES, LABELS))
    small = prune("filters", model, {"fraction": 0.5, "small": True}, (IMAGES, LABELS))
    assert inner in groups(model, IMAGES[:1]) and not found.changed[whole].any()
    missing = total - sum(p.numel() for p in small.model.parameters())
    assert found.ratio == small.ratio == missing / total > 0
    assert torch.allclose(small.model(IMAGES), found.model(IMAGES), atol=1e-6)


class Spare(nn.Module):
    """One of two activations is called, or none."""

    def __init__(self, called=True):
        super().__init__()
        self.spare, self.act, self.called = nn.ReLU(), nn.ReLU(), called
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last((self.act(x) if self.called else x).flatten(1))


def test_an_activation_that_is_never_called_is_not_clamped():
    clamped = prune("clamp", Spare(), 1, (IMAGES, LABELS)).model
    mean, std = float(IMAGES.mean()), float(IMAGES.double().std(correction=0))
    assert float(clamped.act[-1].high) == pytest.approx(mean + std, rel=1e-5)
    assert float(clamped.spare[-1].high) == torch.finfo(torch.float32).max
    with pytest.raises(UserError, match=r"^clamp: the network calls none of its activation"):
        prune("clamp", Spare(called=False), 1, (IMAGES, LABELS))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_inside_are_attacked_and_not_compressed(kind):
    inside = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    wrapped = Around(inside.to(kind), images=lambda x: x.to(kind), logits=lambda z: z.float())
    labels = wrapped(IMAGES).argmax(1)
    adv = pgd(wrapped, IMAGES, labels, 0.5, 0.1, 10)
    assert (wrapped(adv).argmax(1) != labels).any()
    words = rf"computes in {kind}, and images are torch.float32: give model.to\(torch.float32\)"
    with pytest.raises(UserError, match=f"{words}$"):
        prune("E", wrapped, 0.1, (IMAGES, LABELS))
    with pytest.raises(UserError, match=f"{words}, or convert both ways in forward$"):
        pgd(inside, IMAGES, labels, 0.5, 0.1, 1)


def test_gradients_need_another_mode_than_inference():
    answer = torch.inference_mode()(flat())
    asked = target_of(answer, torch.zeros(1, 1, 8, 8))  # only asked, it needs none
    assert not asked(torch.zeros(2, 1, 8, 8)).is_inference()
    with torch.inference_mode(), pytest.raises(UserError, match=r"leave torch\.inference_mode"):
        pgd(flat(), torch.rand(2, 1, 8, 8), torch.zeros(2).long(), 0.1, 0.1, 1)
