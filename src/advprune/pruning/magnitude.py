"""random and magnitude masks: weights masked at random, or by small magnitude.

Claim (Han et al., 2015). Weights near zero can be removed, and a short training repairs the loss.
In the GAP study (Weiss et al., 2022) these are the baselines of GAP; random pruning shows what
removing that many weights does by itself.

Formula. Prunable weights and biases of convolutions and linear layers, without the classifier, are
ranked by `|w|` over the network (magnitude_global) or within each tensor (magnitude_layer), or by
uniform random numbers from the run's seed (random). The smallest become zero, all at once; ties are
broken by position. The count is exact: the published code cuts at a quantile, where ties and zeros
change how much is removed, and in random pruning keeps each weight with a probability.

Compression. All parameters over those that remain, as published: batch-norm and classifier count,
so the share removed from the prunable ones is above `1 - 1/compression`. A compression beyond what
the prunable weights allow is refused. Fine-tuning applies the mask after every step and follows the
one-cycle schedule; the published code intends a constant rate of 1e-3 but applies 1e-6. Masked
weights save neither time nor memory here; the family filters can.

Source. Han et al., Learning both Weights and Connections for Efficient Neural Networks (NeurIPS
2015); Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using
Greedy Adversarial Pruning (AICAS 2022).
"""

from torch import nn

from advprune.pruning.family import Data, Pruned, family
from advprune.pruning.masks import Amount, Scope, magnitudes, prunable, random_scores, ranked


@family("random", Amount)
def random(model: nn.Module, setting: Amount, data: Data) -> Pruned:
    """Any weights."""
    return ranked(model, random_scores(prunable(model), data.generator), setting, data)


@family("magnitude_global", Amount, scope="global")
@family("magnitude_layer", Amount, scope="layer")
def magnitude(model: nn.Module, setting: Amount, data: Data, scope: Scope) -> Pruned:
    """The smallest weights, of all or of each tensor."""
    return ranked(model, magnitudes(prunable(model)), setting, data, scope=scope)
