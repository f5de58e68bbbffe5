"""Tickets: sparse initializations found by the tangent kernel (AWT, NTT), and controls.

Claim (Shi et al., 2022). A sparse network can be found at initialization, before any training,
whose adversarial training proceeds as the dense network's would: it ends equally robust. NTT (Liu
and Zenke, 2020) claims the same for clean training. random_ticket and magnitude_ticket are what a
search has to beat. inherited_ticket (Wang et al., 2020) is the other way round: a dense network
that inherits the weights of a small robust one is claimed to become robust sooner than one trained
from scratch.

Formula. With f_0 the dense network at initialization and f_s the sparse one, AWT minimizes over
mask and weights `1/N ||f_0(X) - f_s(X)||² + gamma²/N² ||Theta_0(X, X~) - Theta_s(X, X~)||²`, where
`Theta(X, X~)[i, j, a, b] = <d f_a(x_i)/d theta, d f_b(x~_j)/d theta>` is the tangent kernel, X are
training images and X~ the same under PGD on the sparse network (kernel.py, ticket_search.py). NTT
takes X~ = X. The mask keeps the weights of largest magnitude, per layer or over the network, and
is chosen anew every `refresh` steps. Both terms are in units of what a network that is zero would
have. random_ticket ranks by uniform random numbers, magnitude_ticket by `|w|` at initialization.
inherited_ticket trains a random ticket, then all weights from there; it ends dense.

Training. The network that is given counts for its architecture and seed alone: every ticket starts
from the initialization of the dense network of the same seed and sees the same images in the same
order. Masks are on the weights of convolutions and linear layers, the classifier's too, and are
held at exactly zero.

Cost. A search step multiplies the kernel with `projections` random vectors, each a backward pass
at X~ and a forward derivative at X, differentiated once more; the estimate is unbiased, and exact
with all `batch * classes` unit vectors. Schedules and densities of the AWT paper are not public:
ours are settings, chosen on the distances of the search and on no test image.

Source. Shi, Zheng, Ding, Gao and Zhang, Finding Dynamics Preserving Adversarial Winning Tickets
(AISTATS 2022, arXiv 2202.06488); Liu and Zenke, Finding Trainable Sparse Networks through Neural
Tangent Transfer (ICML 2020); Frankle et al., Pruning Neural Networks at Initialization (ICLR
2021); Wang et al., Achieving Adversarial Robustness via Sparsity (2020), by its abstract and
others' summaries.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.core.device import salted
from advprune.core.train_settings import FineTuneSettings
from advprune.models.resnet import initialize
from advprune.pruning.family import Data, Pruned, Setting, family, require
from advprune.pruning.masks import Masks, Scope, clear, everywhere, select, tune
from advprune.pruning.ticket_search import (
    Gauge,
    GaugeSettings,
    Row,
    Search,
    SearchSettings,
    magnitude_mask,
)


def _adversarial() -> FineTuneSettings:
    return FineTuneSettings(method="pgd", epochs=15, lr=0.1)


class Ticket(Setting):
    """inherited_ticket: how sparse, and how it is trained.

    sparsity: removed share of all weights of convolutions and linear layers. scope: the same share
    of each layer, or one ranking of all. train: the training of the ticket, mask held; null leaves
    it at initialization.
    """

    shorthand: ClassVar[str | None] = "sparsity"
    sparsity: float = Field(ge=0, lt=1)
    scope: Scope = "layer"
    train: FineTuneSettings | None = Field(default_factory=_adversarial)


class ControlTicket(Ticket):
    """random_ticket, magnitude_ticket: the same, and what their distance from the dense network is
    measured on."""

    gauge: GaugeSettings = GaugeSettings()


class SearchedTicket(Ticket):
    """AWT, NTT: the same, and how mask and weights are searched for."""

    search: SearchSettings = SearchSettings()


def prunable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of all convolutions and linear layers by name, in the order of the modules."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def at_initialization(model: nn.Module, data: Data) -> nn.Module:
    """The dense network as the recipe of seed `data.seed` initializes it, in evaluation mode.

    That is with batch-norm as it begins, at mean 0 and variance 1.
    """
    dense = copy.deepcopy(model).requires_grad_(True)
    for module in dense.modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()
    initialize(dense, torch.Generator().manual_seed(data.seed))
    return dense.eval()


def _count(model: nn.Module, setting: Ticket) -> int:
    return round(setting.sparsity * sum(w.numel() for w in prunable_weights(model).values()))


def _trained(
    name: str, model: nn.Module, removed: Masks, setting: Ticket, data: Data, rows: list[Row]
) -> Pruned:
    """The ticket, trained with its mask held. Tickets of one seed see the same batches.

    The notes: `removed` and `prunable` (numbers of weights), `search` (distances from the dense
    network at initialization, `ticket_search.Gauge`), `finetune` (the history of the training).
    """
    clear(model, removed)
    generator = torch.Generator().manual_seed(salted(data.seed, "tickets", "train"))
    history = tune(name, model, setting.train, data, generator, removed)
    notes = {
        "removed": sum(int(mask.sum()) for mask in removed.values()),
        "prunable": sum(mask.numel() for mask in removed.values()),
        "search": rows,
        "finetune": history,
    }
    return Pruned(model.eval(), everywhere(model, removed), notes)


def _beside(state: Path | None, phase: str) -> Path | None:
    """Where an earlier phase keeps its state: beside that of the training."""
    return state and state.with_name(f"{state.stem}-{phase}{state.suffix}")


def _searched(
    name: str, model: nn.Module, setting: SearchedTicket, data: Data | None, attacked: bool
) -> Pruned:
    known = require(data, name)
    dense = at_initialization(model, known)
    search = Search(
        dense,
        tuple(prunable_weights(dense)),
        _count(dense, setting),
        setting.scope,
        setting.search,
        known,
        attacked,
        _beside(known.state, "search"),
    )
    student, removed, rows = search.run()
    return _trained(name, student, removed, setting, known, rows)


def _control(
    name: str,
    dense: nn.Module,
    removed: Masks,
    setting: ControlTicket,
    data: Data,
) -> Pruned:
    """A ticket of the dense network's own weights, its distance measured as AWT's search does."""
    gauge = Gauge.of(dense, data, setting.gauge, attacked=True)
    clear(dense, removed)
    rows = [{"step": 0, **gauge(dense, removed)}]
    return _trained(name, dense, removed, setting, data, rows)


def _random_mask(dense: nn.Module, setting: Ticket, generator: torch.Generator) -> Masks:
    scores = {
        name: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device)
        for name, w in prunable_weights(dense).items()
    }
    return select(scores, _count(dense, setting), setting.scope)


@family("AWT", SearchedTicket)
def awt(
    model: nn.Module, setting: SearchedTicket, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Mask and weights of the same outputs and mixed tangent kernel as the dense network's."""
    return _searched("AWT", model, setting, data, attacked=True)


@family("NTT", SearchedTicket)
def ntt(
    model: nn.Module, setting: SearchedTicket, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The same by the tangent kernel of clean images; labels play no part in the search."""
    return _searched("NTT", model, setting, data, attacked=False)


@family("random_ticket", ControlTicket)
def random_ticket(
    model: nn.Module, setting: ControlTicket, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Any weights of the initialization."""
    known = require(data, "random_ticket")
    dense = at_initialization(model, known)
    removed = _random_mask(dense, setting, generator)
    return _control("random_ticket", dense, removed, setting, known)


@family("magnitude_ticket", ControlTicket)
def magnitude_ticket(
    model: nn.Module, setting: ControlTicket, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The largest weights of the initialization. At sparsity 0 it is the dense network itself."""
    known = require(data, "magnitude_ticket")
    dense = at_initialization(model, known)
    removed = magnitude_mask(prunable_weights(dense), _count(dense, setting), setting.scope)
    return _control("magnitude_ticket", dense, removed, setting, known)


@family("inherited_ticket", Ticket)
def inherited_ticket(
    model: nn.Module, setting: Ticket, data: Data | None, generator: torch.Generator
) -> Pruned:
    """A random ticket is trained, and the dense network that inherits its weights is trained on.

    Wang et al., Achieving Adversarial Robustness via Sparsity (2020): the large network starts as
    the small one, its other weights at zero, and all of them learn. Nothing is removed in the end.
    """
    known = require(data, "inherited_ticket")
    dense = at_initialization(model, known)
    removed = _random_mask(dense, setting, generator)
    small = replace(known, state=_beside(known.state, "small"))
    first = _trained("inherited_ticket", dense, removed, setting, small, [])
    nothing = {name: torch.zeros_like(mask) for name, mask in removed.items()}
    second = _trained("inherited_ticket", first.model, nothing, setting, known, [])
    second.notes["small"] = first.notes
    return second


def dynamics(pruned: Pruned) -> list[Row]:
    """How a ticket learnt, a row an epoch: `epoch`, `loss` (of the batches it was trained on) and,
    where `Data.probe` has images, `clean_accuracy` and `robust_accuracy` on them."""
    columns = {
        "epoch": "epoch",
        "train_loss": "loss",
        "probe_clean": "clean_accuracy",
        "probe_robust": "robust_accuracy",
    }
    return [
        {words: row[key] for key, words in columns.items() if key in row}
        for row in pruned.notes["finetune"]
    ]
