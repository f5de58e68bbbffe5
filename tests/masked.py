"""Planted models whose gradients mislead attacks: the verdict must not call them reliable.

Shared by the tests and by bench/verdict.py, which plants every kind on both dense networks. An
attacker who knows the trick differentiates `model`, the network inside; that tells how robust the
planted model is in truth.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from advprune.models.stochastic import Stochastic

Change = Callable[[Tensor], Tensor]
Planted = Callable[[nn.Module], "Around"]
Kind = TypeVar("Kind", bound=Planted)
KINDS: dict[str, Planted] = {}


class Around(nn.Module):
    """A network with something done to its images, its logits or its gradients."""

    def __init__(
        self, model: nn.Module, images: Change | None = None, logits: Change | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.images, self.logits = images or nn.Identity(), logits or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.model(self.images(x)))


def kind(name: str) -> Callable[[Kind], Kind]:
    """Register a kind of planted model under a name."""

    def register(make: Kind) -> Kind:
        KINDS[name] = make
        return make

    return register


def on_images(name: str) -> Callable[[Change], Planted]:
    """A kind that does this to its images."""
    return lambda change: kind(name)(partial(Around, images=change))


def on_logits(name: str) -> Callable[[Change], Planted]:
    """A kind that does this to its logits."""
    return lambda change: kind(name)(partial(Around, logits=change))


# --- Written before the checks of this version of the verdict -----------------------------------
@on_logits("saturated logits")
def saturated(logits: Tensor) -> Tensor:
    """Logits so large that the cross-entropy has no gradient in float32."""
    return 1e4 * logits


@on_images("rounded input")
def rounded(x: Tensor) -> Tensor:
    """Pixels rounded to 16 levels, and no gradient through that."""
    return (x * 15).round() / 15


@on_images("wrong sign")
def backwards(x: Tensor) -> Tensor:
    """Right values, and a gradient of the wrong sign."""
    return 2 * x.detach() - x


@on_images("noise of the image")
def noisy(x: Tensor) -> Tensor:
    """Noise that is a function of the image, so rough that its gradient drowns the network's."""
    return x + 0.15 * torch.sin(1e5 * x)


@on_logits("low temperature")
def tempered(logits: Tensor) -> Tensor:
    """Probabilities at a low temperature, their logarithms cut off, in the place of logits."""
    return ((30 * logits).softmax(1) + 1e-3).log()


class _Coarse(nn.Module):
    """ReLU, rounded to fifteenths of a sample's largest value, and no gradient through that."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.detach().amax(tuple(range(1, x.ndim)), keepdim=True).clamp_min(1e-6) / 15
        return (x.relu() / scale).round() * scale


class Replaced(Around):
    """Another `activation` in the place of each ReLU."""

    activation: Callable[[], nn.Module]

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.changed = copy.deepcopy(model)
        for name in [name for name, m in model.named_modules() if isinstance(m, nn.ReLU)]:
            self.changed.set_submodule(name, type(self).activation())

    def forward(self, x: Tensor) -> Tensor:
        return self.changed(x)


@kind("quantized without a twin")
class Quantized(Replaced):
    """Rounded activations without a differentiable twin."""

    activation = _Coarse


@on_images("detached half")
def detached(x: Tensor) -> Tensor:
    """The gradient passes through the upper half of the image alone."""
    upper, lower = x.chunk(2, dim=2)
    return torch.cat([upper, lower.detach()], dim=2)


@kind("gradient a third wrong")
class PartlyWrong(Around):
    """The true gradient plus a wrong one of a `share` of its length, in a fixed direction."""

    def __init__(self, model: nn.Module, share: float = 1 / 3) -> None:
        super().__init__(model)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        def astray(g: Tensor) -> Tensor:
            fixed = torch.randn(g.shape[1:], generator=torch.Generator().manual_seed(0)).to(g)
            length = g.flatten(1).norm(dim=1) / fixed.norm()
            return g + self.share * length.view(-1, 1, 1, 1) * fixed

        x = x.clone()
        if x.requires_grad:
            x.register_hook(astray)
        return self.model(x)


@kind("gradient half wrong")
def half_wrong(model: nn.Module) -> PartlyWrong:
    """The true gradient plus a wrong one as long."""
    return PartlyWrong(model, 1.0)


# --- Written after the checks, by lists of defences that were published as broken, not by trial:
# those of Athalye et al. (2018), of Tramer et al. (On Adaptive Attacks to Adversarial Example
# Defenses, 2020) and of Croce et al. (Evaluating the Adversarial Robustness of Adaptive Test-time
# Defenses, 2022), as far as they are classifiers whose trick is in the forward or backward pass --
@on_images("thermometer coding")
def thermometer(x: Tensor) -> Tensor:
    """Pixels as 15 thresholds crossed or not (Buckman et al. 2018), read back as their share."""
    levels = (torch.arange(15, device=x.device) + 0.5) / 15
    return (x[..., None] > levels).to(x).mean(-1)


def _cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform, `[size, size]`."""
    k, n = torch.arange(size, device=like.device)[:, None], torch.arange(size, device=like.device)
    basis = torch.cos(torch.pi * (n + 0.5) * k / size) * (2 / size) ** 0.5
    basis[0] /= 2**0.5
    return basis.to(like)


def _in_cosines(x: Tensor, change: Change) -> Tensor:
    """The image after a change of its cosine coefficients."""
    c, r = _cosines(x.shape[2], x), _cosines(x.shape[3], x)
    return c.T @ change(c @ x @ r.T) @ r


def _order(x: Tensor) -> Tensor:
    """How high each cosine coefficient is, `[H, W]`: 0 for the mean."""
    return torch.arange(x.shape[2], device=x.device)[:, None] + torch.arange(x.shape[3]).to(x)


@on_images("JPEG")
def jpeg(x: Tensor) -> Tensor:
    """Cosine coefficients of the image rounded, the more coarsely the higher (Guo et al. 2018)."""
    grid = 0.15 * (1 + _order(x) / 2)
    return _in_cosines(x, lambda found: (found / grid).round() * grid)


@on_images("sparse Fourier")
def sparse_fourier(x: Tensor) -> Tensor:
    """The 16 largest cosine coefficients of the image (Bafna et al. 2018)."""

    def largest(found: Tensor) -> Tensor:
        least = found.abs().flatten(1).topk(16, dim=1).values[:, -1].view(-1, 1, 1, 1)
        return found * (found.abs() >= least)

    return _in_cosines(x, largest)


@on_images("Defense-GAN")
@torch.no_grad()
def projected(x: Tensor) -> Tensor:
    """The nearest image that a generator makes, here of 20 smooth patterns, found without gradient
    (Defense-GAN, Samangouei et al. 2018)."""
    order = _order(x)
    low = (order.flatten().argsort(stable=True).argsort() < 20).view(order.shape)
    return _in_cosines(x, lambda found: found * low.to(x)).clamp(0, 1)


class _Shift(Stochastic):
    """Each image moved by up to a pixel in both directions, the gap filled with zeros (Xie et al.
    2018)."""

    def noisy(self, h: Tensor) -> Tensor:
        drawn = self.uniform(h)[..., 0, 0, :2].expand(len(h), 2)
        moved = torch.zeros_like(h)
        padded = nn.functional.pad(h, (1, 1, 1, 1))
        down, across = (drawn * 3).long().clamp_max(2).unbind(-1)
        height, width = h.shape[2:]
        for i, j in product(range(3), range(3)):
            here = ((down == i) & (across == j)).view(-1, 1, 1, 1)
            moved = torch.where(here, padded[:, :, i : i + height, j : j + width], moved)
        return moved


class _LowRank(Stochastic):
    """Half of the pixels dropped, and completed by a matrix of rank 4 without gradient (ME-Net,
    Yang et al. 2019)."""

    @torch.no_grad()
    def noisy(self, h: Tensor) -> Tensor:
        kept = h * 2 * (self.uniform(h) < 0.5).to(h)
        u, s, v = torch.linalg.svd((kept + h) / 2, full_matrices=False)
        return (u[..., :4] * s[..., None, :4]) @ v[..., :4, :]


class _Mixup(Stochastic):
    """The image mixed with noise in the place of another image (Pang et al. 2020)."""

    def noisy(self, h: Tensor) -> Tensor:
        return 0.8 * h + 0.2 * self.uniform(h)


KINDS["random shifts"] = lambda model: Around(model, _Shift())
KINDS["ME-Net"] = lambda model: Around(model, _LowRank())
KINDS["mixup inference"] = lambda model: Around(model, _Mixup())


class _Winners(nn.Module):
    """The larger half of a layer's values by sample; the others are zero."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(flat.shape[1] // 2, 1), dim=1).values[:, -1:]
        return (flat * (flat >= least).to(x)).view_as(x)


@kind("k winners")
class Winners(Replaced):
    """k-winners-take-all in the place of ReLU (Xiao et al. 2020)."""

    activation = _Winners


@kind("ensemble of low precision")
class Ensemble(Around):
    """EMPIR (Sen et al. 2020): the network and two of low precision, by their soft votes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.coarse, self.rounded = Quantized(model), rounded(model)

    def forward(self, x: Tensor) -> Tensor:
        members = (self.coarse(x), self.rounded(x), self.model(x.detach()))
        return sum(((5 * logits).softmax(1) for logits in members), torch.zeros(()))


@on_logits("output codes")
def codes(logits: Tensor) -> Tensor:
    """Error-correcting output codes (Verma and Swami 2019): steep sigmoids of sums of classes."""
    shares = logits.softmax(1)
    random = torch.randn(32, shares.shape[1], generator=torch.Generator().manual_seed(0))
    code = random.sign().to(shares)
    return torch.tanh(20 * shares @ code.T) @ code


@on_logits("fixed centres")
def centres(logits: Tensor) -> Tensor:
    """Distances to fixed centres of the classes (Pang et al. 2020), steeply scaled."""
    shares = (3 * logits).softmax(1)
    fixed = torch.eye(shares.shape[1]).to(shares)
    return -1e3 * (shares[:, None] - fixed).square().sum(2)


def _blurred(x: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@on_images("purified")
def purified(x: Tensor) -> Tensor:
    """The image moved towards its own blur until it is smooth (PixelDefend, Song et al. 2018); the
    gradient is that of the blur once, not of the search."""
    found, blur = x.detach(), _blurred(x)
    for _ in range(3):
        near = _blurred(found)
        found = torch.where((found - near).abs() > 0.3, found, 0.7 * found + 0.3 * near)
    return (8 * found).round() / 8 + blur - blur.detach()


@on_images("total variance")
@torch.no_grad()
def smoothest(x: Tensor) -> Tensor:
    """Half of the pixels dropped at random, and filled in as smoothly as can be (total variance
    minimization, Guo et al. 2018); plain torch randomness, no gradient."""
    kept = torch.rand_like(x) < 0.5
    filled = torch.where(kept, x, _blurred(x * kept) / _blurred(kept.to(x)).clamp_min(0.1))
    for _ in range(10):
        filled = torch.where(kept, x, _blurred(filled))
    return filled


@on_images("image quilting")
def quilted(x: Tensor) -> Tensor:
    """Each patch replaced by the nearest one of a fixed set (image quilting, Guo et al. 2018)."""
    random = torch.rand(256, 4, generator=torch.Generator().manual_seed(0))
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    known = torch.cat([corners, random]).to(x)  # [P, 4]
    patches = nn.functional.unfold(x.reshape(-1, 1, *x.shape[2:]), 2, stride=2)  # [N C, 4, L]
    nearest = torch.cdist(patches.transpose(1, 2), known[None]).argmin(2)
    found = known[nearest].transpose(1, 2)
    return nn.functional.fold(found, x.shape[2:], 2, stride=2).view_as(x)


def _resized(x: Tensor, size: int) -> Tensor:
    return nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


@on_images("crop and rescale")
def cropped(x: Tensor) -> Tensor:
    """A random part of the image, enlarged (crop and rescale, Guo et al. 2018), the same for the
    whole batch; plain torch randomness."""
    size = x.shape[3]
    down, across = torch.randint(2, (2,)).tolist()
    return _resized(x[:, :, down : down + size - 1, across : across + size - 1], size)


@on_images("random resize")
def resized(x: Tensor) -> Tensor:
    """The image at a random size, at a random place among zeros (Xie et al. 2018), likewise."""
    size = x.shape[3]
    small = size - int(torch.randint(3, ()))
    down, across = torch.randint(size - small + 1, (2,)).tolist()
    margins = across, size - small - across, down, size - small - down
    return nn.functional.pad(_resized(x, small), margins)


@on_images("unrolled denoiser")
def unrolled(x: Tensor) -> Tensor:
    """Pixels drawn step by step to the nearest of four levels: differentiable, but so deep that the
    gradient vanishes or explodes (the third kind of Athalye et al.)."""
    for _ in range(20):
        x = x - torch.sin(6 * torch.pi * x) / (6 * torch.pi)
    return x


@kind("anti-adversary")
class Countered(Around):
    """The image moved by signed steps on the model's own gradient before it is classified, with no
    gradient through that: towards the predicted class (anti-adversary, Alfarra et al. 2022)."""

    def lowered(self, logits: Tensor) -> Tensor:
        """The sum over images of what the steps lower."""
        return nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum")

    def forward(self, x: Tensor) -> Tensor:
        moved = x.detach()
        with torch.enable_grad():
            for _ in range(2):
                moved = moved.requires_grad_()
                (g,) = torch.autograd.grad(self.lowered(self.model(moved)), moved)
                moved = (moved - 0.1 * g.sign()).detach()
        return self.model(x + moved - x.detach())


@kind("hedge defense")
class Hedged(Countered):
    """Steps away from all classes at once (hedge defense, Wu et al. 2021)."""

    def lowered(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(1).sum()


@kind("detached branch")
class Branched(Around):
    """Two branches, of which the one that decides is detached; the other sees a blurred image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach()) + 0.1 * self.model(_blurred(x))


@on_images("input dropout")
def dropped(x: Tensor) -> Tensor:
    """A fifth of the pixels dropped at random; plain torch randomness."""
    return x * (torch.rand_like(x) < 0.8).to(x)


@on_images("added noise")
def noise_added(x: Tensor) -> Tensor:
    """Normal noise added to the image; plain torch randomness."""
    return x + 0.2 * torch.randn_like(x)
