"""The search for a ticket that learns as the dense network does, by outputs and tangent kernel.

With J(X) the derivative of the outputs f(X) by the trainable parameters, the mixed tangent kernel
between clean images X and attacked ones X~ is `Theta = J(X) J(X~)^T`. Under gradient flow on the
loss at X~ it decides how f(X) moves, `df(X)/dt = -Theta dL/df(X~)`: two networks of equal outputs
and equal kernel start to learn alike. tickets.py says what AWT minimizes; in terms of our gamma the
published one, whose value is not public, is `gamma * ||f_0|| sqrt(N) / ||Theta_0||_F`.

The kernel is never formed: Jacobians would take `N O n` numbers for N images, O outputs and n
parameters. Each of its products `Theta v = J(X) (J(X~)^T v)` with P vectors v of random signs takes
a backward pass at X~ and a forward derivative at X, and can be differentiated once more. For any
matrix D `E ||D v||^2 = ||D||_F^2`, so distances are estimated without bias. With `A = D^T D`, the
variance of one product is `2 (||A||_F^2 - sum_k A_kk^2)` (Hutchinson, 1989). Parameters that a mask
removes have no derivative: f is a function of `mask * w`.

Networks are in evaluation mode, where images do not depend on each other. A search holds batch-norm
at the dense network's statistics, but distances are measured with those of the sparse network's own
maps (`calibrate`), as it has them where it learns.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.core.device import device_of, salted
from advprune.core.errors import UserError, first_line
from advprune.core.progress import progress
from advprune.core.settings import Settings
from advprune.pruning.family import Data
from advprune.pruning.masks import Masks, layer_weights
from advprune.training.adversarial import Inner, pgd_images
from advprune.training.inputs import Pair, load_state, save_state
from advprune.training.standard import Row

Tensors = dict[str, torch.Tensor]  # by parameter name
Choose = Callable[[Tensors], Masks]  # from weights to what is removed
CALIBRATION = 512  # training images, the first ones, that batch-norm takes its statistics from
MEASURED = 8  # reported distances use this many times the vectors of a step


class GaugeSettings(Settings):
    """What outputs and kernels are compared on: batches of a search, images of a `Gauge`."""

    batch: int = Field(default=64, ge=1, le=4096)  # training images
    attack_steps: int = Field(default=5, ge=0, le=1000)  # of PGD at the training eps: X~
    # Random vectors that the kernel is multiplied with in a step; null: all unit vectors, exactly.
    projections: int | None = Field(default=1, ge=1, le=100_000)


class SearchSettings(GaugeSettings):
    """How a ticket is searched for: `tickets.SearchedTicket` says what is what."""

    steps: int = Field(default=100, ge=0, le=1_000_000)
    lr: float = Field(default=1e-2, gt=0, le=10)
    gamma: float = Field(default=1.0, ge=0, le=1000)
    l2: float = Field(default=1e-3, ge=0, le=1000)
    refresh: int = Field(default=25, ge=1)


@torch.no_grad()
def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Set batch-norm's running statistics to those of what the model makes of the first
    `CALIBRATION` images `[N, C, H, W]`, in place. Its other layers stay in evaluation mode."""
    norms = {part: part.momentum for part in model.modules() if isinstance(part, _BatchNorm)}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    if norms:
        model(images[:CALIBRATION].to(device_of(model)))
    for norm, momentum in norms.items():
        norm.momentum = momentum
        norm.eval()


def trainable(model: nn.Module) -> Tensors:
    """theta: the parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kernel_products(
    model: nn.Module,
    clean: torch.Tensor,
    crafted: torch.Tensor,
    vectors: torch.Tensor,
    removed: Masks,
) -> torch.Tensor:
    """`Theta(clean, crafted) v` for each of the vectors `[P, M, O]`: `[P, N, O]`.

    It takes about `P n + (1 + P) (N + M) A` numbers, n parameters and A activations per image, and
    three times that where a gradient is taken. UserError, with torch's words, where an operation
    has no forward derivative or cannot be mapped over vectors.
    """
    parameters = trainable(model)

    def logits(values: Tensors, images: torch.Tensor) -> torch.Tensor:
        return functional_call(model, values, (images,))

    def product(vector: torch.Tensor) -> torch.Tensor:
        (gradient,) = pull(vector)
        kept = {
            name: g.masked_fill(removed[name], 0.0) if name in removed else g
            for name, g in gradient.items()
        }
        return jvp(lambda values: logits(values, clean), (parameters,), (kept,))[1]

    # Other kernels of attention have no second and no forward derivatives.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch's own use
        try:
            pull = vjp(lambda values: logits(values, crafted), parameters)[1]
            return vmap(product)(vectors)
        except RuntimeError as error:
            raise UserError(
                "torch cannot compute the network's tangent kernel, which tickets need: "
                f"{first_line(error)}"
            ) from error


def probing_vectors(
    outputs: torch.Tensor, count: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Vectors `[count, N, O]`, for outputs `[N, O]`, with `mean_p ||D v_p||^2 = ||D||_F^2` for any
    matrix D: in expectation, of independent random signs drawn on the CPU; where `count` is None
    exactly, of all unit vectors times `sqrt(N O)`."""
    size = outputs.numel()
    if count is None:
        found = torch.eye(size) * size**0.5
    else:
        found = torch.randint(2, (count, size), generator=generator) * 2 - 1
    return found.to(outputs).view(-1, *outputs.shape)


def mean_square(values: torch.Tensor) -> torch.Tensor:
    """`||f||^2 / N` of outputs `[N, O]`; of products with a kernel, `[P, N, O]`, its estimate
    `mean_p ||D v_p||^2 / N^2`."""
    images = values.shape[-2]
    return values.square().sum() / (images if values.ndim == 2 else len(values) * images**2)


def pair(model: nn.Module, batch: Pair, data: Data, steps: int, generator: torch.Generator) -> Pair:
    """X and X~ of a batch: PGD of that many steps on `model` by the true labels."""
    x, y = (t.to(device_of(model)) for t in batch)
    return x, pgd_images(model, x, y, Inner.usual(data.train.eps, steps), generator)


class Gauge:
    """Measures how far sparse networks are from a dense one, always on the same images: the first
    training images, which searches do not see, and the same attacked on the dense network.
    `output_norm` and `kernel_norm`: `||f_0||^2 / N` and `||Theta_0||_F^2 / N^2`, above zero."""

    def __init__(self, dense: nn.Module, data: Data, setting: GaugeSettings) -> None:
        """For networks that start from `dense`; everything random follows `data.seed`."""
        generator = torch.Generator().manual_seed(salted(data.seed, "tickets", "gauge"))
        batch = data.images[: setting.batch], data.labels[: setting.batch]
        self.images = pair(dense, batch, data, setting.attack_steps, generator)
        self.calibration = data.images[:CALIBRATION]
        count = setting.projections and MEASURED * setting.projections
        with torch.no_grad():
            self.outputs = dense(self.images[0])  # [N, O]
            self.vectors = probing_vectors(self.outputs, count, generator)  # [P, N, O]
            self.products = self._products(dense, {})  # [P, N, O]
        self.output_norm = mean_square(self.outputs).clamp_min(1e-12)
        self.kernel_norm = mean_square(self.products).clamp_min(1e-12)

    def _products(self, model: nn.Module, removed: Masks) -> torch.Tensor:
        parts = self.vectors.split(1)  # one at a time, for the sake of memory
        return torch.cat([kernel_products(model, *self.images, part, removed) for part in parts])

    @torch.no_grad()
    def __call__(self, sparse: nn.Module, removed: Masks) -> Row:
        """`output_distance` and `kernel_distance`: the two terms, as shares of `output_norm` and
        `kernel_norm` (1: as far off as a zero network), of a calibrated copy."""
        sparse = copy.deepcopy(sparse)
        calibrate(sparse, self.calibration)
        output = mean_square(self.outputs - sparse(self.images[0])) / self.output_norm
        kernel = mean_square(self.products - self._products(sparse, removed)) / self.kernel_norm
        row = {"output_distance": output, "kernel_distance": kernel}
        row |= {"output_norm": self.output_norm, "kernel_norm": self.kernel_norm}
        return {name: float(f"{float(value):.5g}") for name, value in row.items()}


class Search:
    """Finds mask and weights of a sparse network that is close to `dense` to first order.

    dense: at initialization, calibrated; left as it is. choose: the weights that go, by the values
    that all would have. `parked`: the values that removed weights had; they may come back. `rows`:
    how close it was, each `refresh` steps. An unfinished search is kept beside the state of the
    training, to be resumed after a kill.
    """

    def __init__(
        self, dense: nn.Module, gauge: Gauge, choose: Choose, setting: SearchSettings, data: Data
    ) -> None:
        self.dense, self.gauge, self.choose = dense, gauge, choose
        self.setting, self.data = setting, data
        self.student = copy.deepcopy(dense)
        self.optimizer = torch.optim.Adam(trainable(self.student).values(), lr=setting.lr)
        weights = layer_weights(self.student)
        self.parked = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.removed: Masks = {}
        self.rows: list[Row] = []
        self.step, self.path = 0, data.phase("search")

    def run(self) -> tuple[nn.Module, Masks, list[Row]]:
        """The sparse network, its mask, and the rows, the first before any step."""
        setting = self.setting
        if state := load_state(self.path, device_of(self.student)):
            self.student.load_state_dict(state.pop("student"))
            self.optimizer.load_state_dict(state.pop("optimizer"))
            vars(self).update(state)
        else:
            self._refresh()
            self._note()
        with progress("ticket search, steps", setting.steps) as advance:
            advance(self.step)
            while self.step < setting.steps:
                self._descend()
                self.step += 1
                if self.step % setting.refresh == 0 or self.step == setting.steps:
                    if self.step + setting.refresh <= setting.steps:  # else no time to settle
                        self._refresh()
                    self._note()
                advance(1)
        return self.student, self.removed, self.rows

    @torch.no_grad()
    def _refresh(self) -> None:
        """Choose the mask anew, counting the parked weights at their old values. Adam's moments of
        removed weights are forgotten: without a gradient they would stay where they are."""
        weights = layer_weights(self.student)
        whole = {name: weight + self.parked[name] for name, weight in weights.items()}
        self.removed = self.choose(whole)
        for name, weight in weights.items():
            gone = self.removed[name]
            self.parked[name] = whole[name].masked_fill(~gone, 0.0)
            weight.copy_(whole[name].masked_fill(gone, 0.0))
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self.optimizer.state.get(weight, {}):
                    self.optimizer.state[weight][key].masked_fill_(gone, 0.0)

    def _note(self) -> None:
        """Add a row, and keep the state."""
        self.rows.append({"step": self.step, **self.gauge(self.student, self.removed)})
        names = ("removed", "parked", "rows", "step")
        known = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(self.path, known | {name: getattr(self, name) for name in names})

    def _descend(self) -> None:
        """One step of Adam on the distance from the dense network on a batch."""
        # A generator for each step, so that a resumed search goes on the same way.
        seed = salted(self.data.seed, "tickets", "search", str(self.step))
        generator = torch.Generator().manual_seed(seed)
        batch, count = self.setting.batch, len(self.data.images)
        held = len(self.gauge.images[0])  # the first images, where there are enough others
        held = held if count >= held + batch else 0
        rows = held + torch.randperm(count - held, generator=generator)[:batch]
        seen = self.data.images[rows], self.data.labels[rows]
        images = pair(self.student, seen, self.data, self.setting.attack_steps, generator)
        self.optimizer.zero_grad()
        self.backward(images, generator)
        for name, weight in layer_weights(self.student).items():
            assert weight.grad is not None
            weight.grad.masked_fill_(self.removed[name], 0.0)
        self.optimizer.step()

    def backward(self, images: Pair, generator: torch.Generator) -> None:
        """Add the gradient of the distance (tickets.py) to those of the student."""
        # ||f_0(X) - f_s(X)||^2 / N, relative to an all-zero network's
        with torch.no_grad():
            target = self.dense(images[0])
        loss = mean_square(target - self.student(images[0])) / self.gauge.output_norm
        if self.setting.l2:  # ||m w||^2 / density, relative to the dense network's ||w||^2
            squares, whole = (
                torch.stack([w.square().sum() for w in layer_weights(one).values()]).sum()
                for one in (self.student, self.dense)
            )
            gone = sum(int(mask.sum()) for mask in self.removed.values())
            density = 1 - gone / sum(mask.numel() for mask in self.removed.values())
            loss = loss + self.setting.l2 * (squares / whole.detach() / max(density, 1e-12))
        loss.backward()
        # gamma^2 / N^2 ||Theta_0 - Theta_s||^2, relative likewise, by its products with vectors
        vectors = probing_vectors(target, self.setting.projections, generator)
        for part in vectors.split(1):
            with torch.no_grad():
                moved = kernel_products(self.dense, *images, part, {})
            change = moved - kernel_products(self.student, *images, part, self.removed)
            weight = self.setting.gamma**2 / len(vectors)
            term = weight * mean_square(change) / self.gauge.kernel_norm
            term.backward()
            loss = loss.detach() + term.detach()
        if not torch.isfinite(loss):
            raise UserError("ticket search: the distance is not a number; lower search.lr")
