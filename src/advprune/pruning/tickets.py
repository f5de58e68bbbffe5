"""Tickets: sparse initializations found by the tangent kernel (AWT), and controls.

Claim (Shi et al., 2022). A sparse network can be found at initialization, before any training,
whose adversarial training proceeds like the dense network's, so that it becomes as robust.
random_ticket and magnitude_ticket are the controls of the search; a random_ticket of sparsity 0 is
the dense network, trained as the tickets are.

Formula. With f_0 the dense network at initialization and f_s the sparse one, AWT minimizes over
mask and weights `1/N ||f_0(X) - f_s(X)||² + gamma²/N² ||Theta_0(X, X~) - Theta_s(X, X~)||²`, where
`Theta(X, X~)[i, j, a, b] = <d f_a(x_i)/d theta, d f_b(x~_j)/d theta>` is the tangent kernel, X are
training images and X~ the same under PGD on the sparse network (ticket_search.py). The mask keeps
the weights of largest magnitude of each layer, and is chosen anew every `refresh` steps. Both terms
are relative to those of an all-zero network. As in Neural Tangent Transfer (Liu and Zenke, 2020), a
third holds the remaining weights small, `l2 / density ||m w||²`, relative to the dense network's
`||w||²`. Distances, of controls too, are measured on the images of `gauge`, which the search does
not see; X~ is made on the dense network there, the same for all tickets. Above a kernel distance of
0.3 the search did not converge, and its ticket says nothing about the claim. random_ticket ranks by
uniform random numbers, magnitude_ticket by `|w|` at initialization.

Training. Only the parent's architecture and seed matter: every ticket starts from the
initialization of the dense network of the same seed, its batch-norm calibrated on 512 training
images, and sees the same images in the same order. Tickets of one parent whose `train` or `gauge`
differ are refused. Masks are on the weights of convolutions and linear layers, the classifier's
too, and are held at exactly zero.

Cost. A search step multiplies the kernel with `projections` random vectors, each a backward pass at
X~ and a forward derivative at X, differentiated once more. Schedules and densities of the AWT paper
are not public: ours are settings, chosen by the distances of the search, without test images.

Source. Shi, Zheng, Ding, Gao and Zhang, Finding Dynamics Preserving Adversarial Winning Tickets
(AISTATS 2022, arXiv 2202.06488); Liu and Zenke, Finding Trainable Sparse Networks through Neural
Tangent Transfer (ICML 2020); Frankle et al., Pruning Neural Networks at Initialization (ICLR
2021).
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.core.device import salted
from advprune.core.settings import Settings
from advprune.core.train_settings import FineTuneSettings
from advprune.models.resnet import initialize
from advprune.pruning.family import Data, Pruned, family, require
from advprune.pruning.masks import (
    Masks,
    Scores,
    clear,
    layer_weights,
    magnitudes,
    masked,
    random_scores,
    select,
    trained_by,
)
from advprune.pruning.ticket_search import (
    Gauge,
    GaugeSettings,
    Search,
    SearchSettings,
    calibrate,
)
from advprune.training.standard import Row

CONVERGED = 0.3  # kernel distance on held-out images above which a search did not converge
TRAINING = FineTuneSettings(method="pgd", epochs=15, lr=0.1)


class Ticket(Settings):
    """sparsity: removed share of the weights of each convolution and linear layer. train: training
    of the ticket, its mask fixed; null leaves it at initialization. gauge: what the distance from
    the dense network is measured on, by the keys of the same names of `search`."""

    sparsity: float = Field(ge=0, lt=1)
    train: FineTuneSettings | None = TRAINING
    gauge: GaugeSettings = GaugeSettings()

    def shared(self) -> dict[str, Any]:
        """What tickets of one parent have to share, by key: they are each other's controls."""
        gauge = {f"gauge.{key}": value for key, value in self.gauge}
        return trained_by(self.train, "train") | gauge

    def smallest(self, scores: Scores) -> Masks:
        """The weights of the smallest scores, the same share of each layer."""
        count = round(self.sparsity * sum(score.numel() for score in scores.values()))
        return select(scores, count, "layer")


class SearchedTicket(Ticket):
    """sparsity, train, gauge: as for the controls.

    search: `steps` of Adam at rate lr on batches of training images, attacked by PGD of
    `attack_steps`, with `projections` random vectors each (null: all unit vectors); gamma and l2
    weigh the kernel and the squares of the weights. At least `refresh` steps follow the last choice
    of the mask.
    """

    search: SearchSettings = SearchSettings()


@torch.no_grad()
def at_initialization(model: nn.Module, data: Data) -> nn.Module:
    """The dense network as the recipe of seed `data.seed` initializes it, in evaluation mode.
    Batch-norm is calibrated: at mean 0 and variance 1, as it begins, the network computes another
    function than the one that starts to learn."""
    dense = copy.deepcopy(model).requires_grad_(True)
    for module in dense.eval().modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()
    initialize(dense, torch.Generator().manual_seed(data.seed))
    calibrate(dense, data.images)
    return dense


def trained(
    model: nn.Module, removed: Masks, setting: Ticket, data: Data, rows: list[Row]
) -> Pruned:
    """The ticket, trained with its mask held, on the same batches as all tickets of its seed. The
    notes: `search` (rows of `Gauge`), `ticket` (the last of them), `finetune` (the history)."""
    generator = torch.Generator().manual_seed(salted(data.seed, "tickets", "train"))
    same = replace(data, generator=generator)
    pruned = masked(model, removed, setting.train, same, search=rows, ticket=rows[-1])
    model.eval()
    return pruned


@family("AWT", SearchedTicket)
def awt(model: nn.Module, setting: SearchedTicket, data: Data) -> Pruned:
    """Mask and weights of nearly the dense network's outputs and tangent kernel."""
    dense = at_initialization(model, require(data))
    gauge = Gauge(dense, data, setting.gauge)
    search = Search(dense, gauge, lambda w: setting.smallest(magnitudes(w)), setting.search, data)
    student, removed, rows = search.run()
    pruned = trained(student, removed, setting, data, rows)
    pruned.notes["ticket"] = rows[-1] | {"converged": rows[-1]["kernel_distance"] <= CONVERGED}
    return pruned


@family("random_ticket", Ticket, by="random")
@family("magnitude_ticket", Ticket, by="magnitude")
def control(model: nn.Module, setting: Ticket, data: Data, by: str) -> Pruned:
    """Any weights of the initialization, or its largest; at sparsity 0 the dense network itself."""
    dense = at_initialization(model, require(data))
    weights = layer_weights(dense)
    scores = magnitudes(weights) if by == "magnitude" else random_scores(weights, data.generator)
    removed = setting.smallest(scores)
    gauge = Gauge(dense, data, setting.gauge)
    clear(dense, removed)
    return trained(dense, removed, setting, data, [{"step": 0, **gauge(dense, removed)}])
