"""The search for a ticket that learns as the dense network does, by outputs and tangent kernel.

AWT (Shi et al., Finding Dynamics Preserving Adversarial Winning Tickets, AISTATS 2022): with f_0
the dense network at initialization and f_s the sparse one, mask and weights minimize

    1/N ||f_0(X) - f_s(X)||^2 + gamma^2/N^2 ||Theta_0(X, X~) - Theta_s(X, X~)||_F^2

over batches X of training images, X~ the same images under attack. NTT (Liu and Zenke, Finding
Trainable Sparse Networks through Neural Tangent Transfer, ICML 2020) is the same at X~ = X.

Here each term is in units of what it would be for a network that is zero, `||f_0||^2 / N` and
`||Theta_0||_F^2 / N^2`, so that one gamma serves networks of any size; Adam is blind to the common
factor. The published gamma, which is not known to us, is `gamma * ||f_0|| sqrt(N) / ||Theta_0||_F`.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from advprune.core.device import device_of, salted
from advprune.core.errors import UserError
from advprune.core.params import Settings
from advprune.core.progress import progress
from advprune.pruning.family import Data, Images
from advprune.pruning.kernel import kernel_products, probing_vectors, trainable
from advprune.pruning.masks import Masks, Scope, select
from advprune.training.adversarial import Inner, pgd_images

Row = dict[str, float]
MEASURED = 8  # distances that are reported are of so many times the vectors of a step


class GaugeSettings(Settings):
    """What outputs and kernels are compared on.

    batch: training images. attack_steps: of PGD, at the profile's training eps and step, which
    makes X~. projections: random vectors that the kernel is multiplied with in a step; null takes
    all unit vectors, batch * classes of them, which is exact. together: vectors a pass, for speed
    at the cost of memory.
    """

    batch: int = Field(default=64, ge=1, le=4096)
    attack_steps: int = Field(default=5, ge=0, le=1000)
    projections: int | None = Field(default=1, ge=1, le=100_000)
    together: int = Field(default=1, ge=1, le=100_000)


class SearchSettings(GaugeSettings):
    """How a ticket is searched for.

    steps: of Adam, at rate lr. gamma: weight of the kernel beside the outputs. refresh: steps
    between two choices of the mask; the last has at least so many left.
    """

    steps: int = Field(default=100, ge=0, le=1_000_000)
    lr: float = Field(default=1e-2, gt=0, le=10)
    gamma: float = Field(default=1.0, ge=0, le=1000)
    refresh: int = Field(default=25, ge=1)


def magnitude_mask(weights: dict[str, torch.Tensor], count: int, scope: Scope) -> Masks:
    """The `count` weights of smallest magnitude."""
    return select({name: w.detach().abs() for name, w in weights.items()}, count, scope)


@dataclass(frozen=True)
class Gauge:
    """Measures how far sparse networks are from a dense one, always on the same images.

    clean, crafted: X, the first batch of training images, and X~, the same attacked on the dense
    network (X itself for NTT). vectors: what the kernels are multiplied with. outputs, products: of
    the dense network.
    """

    clean: torch.Tensor
    crafted: torch.Tensor
    vectors: torch.Tensor
    together: int
    outputs: torch.Tensor
    products: torch.Tensor

    @classmethod
    def of(cls, dense: nn.Module, data: Data, setting: GaugeSettings, attacked: bool) -> "Gauge":
        """For networks that start from `dense`; everything random follows `data.seed`."""
        generator = torch.Generator().manual_seed(salted(data.seed, "tickets", "gauge"))
        batch = data.images[: setting.batch], data.labels[: setting.batch]
        clean, crafted = pair(dense, batch, data, setting, attacked, generator)
        count = setting.projections and MEASURED * setting.projections
        with torch.no_grad():
            outputs = dense(clean)
            vectors = probing_vectors(outputs, count, generator)
            products = in_parts(dense, clean, crafted, vectors, setting.together, {})
        return cls(clean, crafted, vectors, setting.together, outputs, products)

    @torch.no_grad()
    def __call__(self, sparse: nn.Module, removed: Masks) -> Row:
        """`output_distance` and `kernel_distance`: the two terms, as shares of `output_norm` and
        `kernel_norm`, which are those of the dense network (1: as far off as a zero network)."""
        found = in_parts(sparse, self.clean, self.crafted, self.vectors, self.together, removed)
        output = mean_square(self.outputs - sparse(self.clean)) / self.output_norm
        kernel = mean_square(self.products - found) / self.kernel_norm
        row = {"output_distance": output, "kernel_distance": kernel}
        row |= {"output_norm": self.output_norm, "kernel_norm": self.kernel_norm}
        return {name: float(f"{float(value):.5g}") for name, value in row.items()}

    @property
    def output_norm(self) -> torch.Tensor:
        """`||f_0||^2 / N`; at least a tiny number, to divide by."""
        return mean_square(self.outputs).clamp_min(1e-12)

    @property
    def kernel_norm(self) -> torch.Tensor:
        """`||Theta_0||_F^2 / N^2`, likewise."""
        return mean_square(self.products).clamp_min(1e-12)


def mean_square(values: torch.Tensor) -> torch.Tensor:
    """`||f||^2 / N` of outputs `[N, O]`; of products with a kernel, `[P, N, O]`, its estimate
    `mean_p ||D v_p||^2 / N^2`."""
    images = values.shape[-2]
    return values.square().sum() / (images if values.ndim == 2 else len(values) * images**2)


def in_parts(
    model: nn.Module,
    clean: torch.Tensor,
    crafted: torch.Tensor,
    vectors: torch.Tensor,
    together: int,
    removed: Masks,
) -> torch.Tensor:
    """`kernel_products`, of so many vectors at a time."""
    parts = vectors.split(together)
    return torch.cat([kernel_products(model, clean, crafted, part, removed) for part in parts])


def pair(
    model: nn.Module,
    batch: Images,
    data: Data,
    setting: GaugeSettings,
    attacked: bool,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """X and X~ of a batch: PGD on `model` by the true labels, or the very same images."""
    x, y = (t.to(device_of(model)) for t in batch)
    if not attacked:
        return x, x
    train = data.train
    return x, pgd_images(model, x, y, Inner(train.eps, train.step, setting.attack_steps), generator)


@dataclass
class _State:
    """What changes in a search, besides the student's weights: all that a killed run needs.

    parked: the values that removed weights had; they may come back.
    """

    removed: Masks
    parked: dict[str, torch.Tensor]
    optimizer: torch.optim.Adam
    rows: list[Row] = field(default_factory=list)
    step: int = 0


@dataclass(frozen=True)
class Search:
    """Finds mask and weights of a sparse network that is close to `dense` to first order.

    dense: at initialization, in evaluation mode; left as it is. weights: names of the weights that
    may be removed, `count` of them are, in all (`global`) or evenly (`layer`). attacked: AWT; else
    NTT. path: where an unfinished search is kept, to be resumed after a kill.
    """

    dense: nn.Module
    weights: tuple[str, ...]
    count: int
    scope: Scope
    setting: SearchSettings
    data: Data
    attacked: bool
    path: Path | None

    def run(self) -> tuple[nn.Module, Masks, list[Row]]:
        """The sparse network, its mask, and how close it was: a row each `refresh` steps
        (`Gauge`), the first before any step."""
        student, gauge = copy.deepcopy(self.dense), self._gauge()
        state = self._begin(student)
        if not self._resume(student, state):
            self._note(student, state, gauge)
        with progress("ticket search, steps", self.setting.steps) as advance:
            advance(state.step)
            while state.step < self.setting.steps:
                self._step(student, state, gauge)
                state.step += 1
                if state.step % self.setting.refresh == 0 or state.step == self.setting.steps:
                    self._refresh(student, state)
                    self._note(student, state, gauge)
                advance(1)
        return student, state.removed, state.rows

    def _gauge(self) -> Gauge:
        return Gauge.of(self.dense, self.data, self.setting, self.attacked)

    def _begin(self, student: nn.Module) -> _State:
        """The weights of the dense network, the smallest of them removed."""
        empty = {n: torch.zeros_like(student.get_parameter(n)) for n in self.weights}
        nothing = {name: values.bool() for name, values in empty.items()}
        optimizer = torch.optim.Adam(trainable(student).values(), lr=self.setting.lr)
        state = _State(nothing, empty, optimizer)
        self._choose(student, state)
        return state

    @torch.no_grad()
    def _choose(self, student: nn.Module, state: _State) -> None:
        """Remove the weights that are smallest now, counting the parked ones at their old values.

        Adam's moments of removed weights are forgotten: without a gradient they stay where they
        are.
        """
        found = {n: student.get_parameter(n) for n in self.weights}
        whole = {n: w + state.parked[n] for n, w in found.items()}
        state.removed = magnitude_mask(whole, self.count, self.scope)
        for name, weight in found.items():
            gone = state.removed[name]
            state.parked[name] = whole[name].masked_fill(~gone, 0.0)
            weight.copy_(whole[name].masked_fill(gone, 0.0))
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state.optimizer.state.get(weight, {}):
                    state.optimizer.state[weight][key].masked_fill_(gone, 0.0)

    def _step(self, student: nn.Module, state: _State, gauge: Gauge) -> None:
        """One step of Adam on the distance from the dense network on a batch."""
        setting, generator = self.setting, self._generator(state.step)
        rows = torch.randperm(len(self.data.images), generator=generator)[: setting.batch]
        batch = self.data.images[rows], self.data.labels[rows]
        clean, crafted = pair(student, batch, self.data, setting, self.attacked, generator)
        state.optimizer.zero_grad()
        self._descend(student, state.removed, (clean, crafted), gauge, generator)
        for name, gone in state.removed.items():
            gradient = student.get_parameter(name).grad
            assert gradient is not None
            gradient.masked_fill_(gone, 0.0)
        state.optimizer.step()

    def _descend(
        self,
        student: nn.Module,
        removed: Masks,
        images: tuple[torch.Tensor, torch.Tensor],
        gauge: Gauge,
        generator: torch.Generator,
    ) -> None:
        """Add the gradient of the distance to those of the student, pass by pass."""
        setting, clean = self.setting, images[0]
        with torch.no_grad():
            target = self.dense(clean)
        loss = mean_square(target - student(clean)) / gauge.output_norm
        loss.backward()
        vectors = probing_vectors(target, setting.projections, generator)
        for part in vectors.split(setting.together):
            with torch.no_grad():
                moved = kernel_products(self.dense, *images, part)
            change = mean_square(moved - kernel_products(student, *images, part, removed))
            share = len(part) / len(vectors)
            term = setting.gamma**2 * share * change / gauge.kernel_norm
            term.backward()
            loss = loss.detach() + term.detach()
        if not torch.isfinite(loss):
            raise UserError("ticket search: the distance is not a number; lower search.lr")

    def _generator(self, step: int) -> torch.Generator:
        """A generator of its own for each step, so that a resumed search goes on the same way."""
        words = "tickets", "search", str(step)
        return torch.Generator().manual_seed(salted(self.data.seed, *words))

    def _refresh(self, student: nn.Module, state: _State) -> None:
        """Choose the mask anew, unless fewer than a period of steps is left to settle in."""
        if state.step + self.setting.refresh <= self.setting.steps:
            self._choose(student, state)

    def _note(self, student: nn.Module, state: _State, gauge: Gauge) -> None:
        """Add a row, and keep the state."""
        state.rows.append({"step": state.step, **gauge(student, state.removed)})
        if self.path is None:
            return
        kept = {
            "student": student.state_dict(),
            "removed": state.removed,
            "parked": state.parked,
            "optimizer": state.optimizer.state_dict(),
            "rows": state.rows,
            "step": state.step,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        torch.save(kept, temporary)
        temporary.replace(self.path)

    def _resume(self, student: nn.Module, state: _State) -> bool:
        """Load a kept state; False where there is none."""
        if self.path is None or not self.path.is_file():
            return False
        kept = _read(self.path)
        student.load_state_dict(kept["student"])
        state.optimizer.load_state_dict(kept["optimizer"])
        device = device_of(student)
        state.removed = {name: mask.to(device) for name, mask in kept["removed"].items()}
        state.parked = {name: values.to(device) for name, values in kept["parked"].items()}
        state.rows, state.step = kept["rows"], kept["step"]
        return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
        raise UserError(f"the search's state {path} is damaged; delete it to start anew") from error
