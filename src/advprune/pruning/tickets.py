"""Tickets: sparse networks chosen at initialization, which are then trained adversarially.

AWT and NTT search for mask and weights whose training would go as the dense network's
(`ticket_search`); random_ticket and magnitude_ticket are the controls, and inherited_ticket goes
the other way: a sparse network is trained first, and a dense one grows from it.

The network that is given counts for its architecture alone: every ticket starts from the
initialization that the dense network of the same seed had, and all of them see the same images in
the same order. Masks are on the weights of convolutions and linear layers, the classifier's too,
and not on biases or batch-norm.
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
