"""Results that others have published, as they stand in their sources; none of them is ours.

The one place for them: the report's findings and tables and docs/published.md read them here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Leaderboard:
    """Clean accuracy and accuracy under attack, in percent, by method and sparsity.

    rows: by method, for each of `sparsities` (fractions) clean and robust.
    """

    source: str
    protocol: str
    sparsities: tuple[float, ...]
    rows: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class Setting:
    """A row of the nn-prune table, in percent: parameters changed, clean and remnant accuracy."""

    changed: float
    clean: float
    remnant: float


@dataclass(frozen=True)
class Sweep:
    """The nn-prune table. rows: by `(family, setting)`, the setting as our reports write it."""

    source: str
    data: str
    rows: Mapping[tuple[str, str], Setting]


@dataclass(frozen=True)
class Figure:
    """One published figure, in the source's own digits, and what it was found on.

    unread: it is known from others and was not read at its source.
    """

    setting: str
    figure: str
    unread: bool = False


NN_PRUNE = Sweep(
    source="README of nn-prune (Kahsolt/adversarial-prune on GitHub, October 2022), table ResNet18",
    data="torchvision's ResNet18 on 1,000 ImageNet images",
    rows={
        ("dense", "–"): Setting(0, 91.80, 0.20),
        ("E", "1e-05"): Setting(0.0978, 91.80, 0.20),
        ("E", "0.0001"): Setting(0.5217, 91.80, 0.20),
        ("E", "0.001"): Setting(4.7786, 92.00, 0.20),
        ("E", "0.005"): Setting(23.2845, 92.00, 0.20),
        ("E", "0.007"): Setting(31.9905, 92.50, 0.20),
        ("E", "0.01"): Setting(43.9910, 90.70, 0.20),
        ("E", "0.02"): Setting(72.8967, 37.10, 0.10),
        ("E", "0.05"): Setting(95.9159, 0.10, 0.10),
        ("S", "9"): Setting(0.0050, 91.80, 0.20),
        ("S", "7"): Setting(0.0182, 91.70, 0.20),
        ("S", "5"): Setting(0.0922, 85.90, 32.60),
        ("S", "3"): Setting(0.9286, 23.50, 7.20),
        ("R", "0.001"): Setting(100, 91.90, 34.20),
        ("R", "0.01"): Setting(100, 87.10, 30.60),
        ("R", "0.1"): Setting(100, 0.20, 0.10),
        ("int8", "8 bits (transfer)"): Setting(0, 91.20, 0.20),
    },
)

GAP_SOURCE = (
    "Weiss, Alves and Kundu, Hardening DNNs against Transfer Attacks during Network Compression "
    "using Greedy Adversarial Pruning (AICAS 2022, arXiv 2206.07406), abstract, and its code"
)
GAP = {
    "transfer": Figure(
        "CIFAR-10, ResNet20 and others; PGD, 10 steps, on the uncompressed network",
        "compressed networks resist these images (plots alone, no number)",
    ),
    "int8": Figure("the same after 8-bit quantization, static, by layer", "plots alone, no number"),
}

SAP_SOURCE = (
    "Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018, "
    "arXiv 1803.01442); Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of "
    "Security (ICML 2018), table 1; Dhillon and Carlini, Erratum Concerning the Obfuscated "
    "Gradients Attack on Stochastic Activation Pruning (arXiv 2010.00071), abstract"
)
SAP = {
    "gain": Figure(
        "CIFAR-10, ResNet-20, SAP-100; FGSM at 1/255, gradients and predictions over 100 draws",
        "12.2 points over dense",
        unread=True,
    ),
    "broken": Figure(
        "CIFAR-10, SAP on convolutions; margin loss, 500 small steps, eps 0.031", "0 % left"
    ),
    "not broken": Figure(
        "CIFAR-10, SAP as published; the same attack", "does not break it (no number)", unread=True
    ),
    "bpda": Figure("CIFAR-10, SAP as published; BPDA", "0.1 % left", unread=True),
}

BFA_SOURCE = (
    "Rakin, He and Fan, Bit-Flip Attack (ICCV 2019, arXiv 1903.12269), abstract; He et al., "
    "Defending and Harnessing the Bit-Flip based Adversarial Weight Attack (CVPR 2020), the "
    "notebook of its code (elliothe/BFA); ± is a standard deviation over 5 runs"
)
BFA = {
    "imagenet": Figure("ImageNet, ResNet-18, 8 bits", "13 flips of 93 million bits: 69.8 to 0.1 %"),
    "8 bits": Figure("CIFAR-10, ResNet-20, 8 bits", "28.0 ± 4.47 flips; clean 91.84 %"),
    "4 bits": Figure("CIFAR-10, ResNet-20, 4 bits", "40.8 ± 6.3 flips; clean 91.33 %"),
    "clustered": Figure(
        "CIFAR-10, ResNet-20, 8 bits, piecewise clustering of weight 1e-3",
        "58.79 ± 4.14 flips; clean 90.02 %",
    ),
    "binary": Figure("CIFAR-10, ResNet-20, 1 bit", "541.2 ± 49.8 flips; clean 88.36 %"),
    "random": Figure("ImageNet, ResNet-18, 8 bits, 100 random flips", "less than 1 point lost"),
}

RA_BNN_SOURCE = (
    "Rakin et al., RA-BNN (2021, arXiv 2103.13813), abstract, and the logs of its code "
    "(adnansirajrakin/IEEECCWC2025); one run each"
)
RA_BNN = {
    "grown": Figure(
        "CIFAR-10, RA-BNN ResNet-20, 2.31 million parameters",
        "1150 flips: 89.92 to 10.96 %",
    ),
    "base": Figure(
        "CIFAR-10, binary ResNet-18, 11.18 million parameters", "666 flips: 91.11 to 10.98 %"
    ),
    "uniform": Figure("uniformly wider, as many parameters", "none: the control is missing"),
    "accuracy": Figure(
        "CIFAR-10, against a binary network of the base's size", "2 to 8 points more"
    ),
    "bits": Figure("CIFAR-10, against networks of more bits", "over 125 times as many flips"),
}

AWT_SOURCE = (
    "Shi et al., Finding Dynamics Preserving Adversarial Winning Tickets (AISTATS 2022, arXiv "
    "2202.06488), abstract"
)
AWT = {
    "ticket": Figure(
        "sparse at initialization, then trained on attacked images",
        "as robust as the dense network (its table is not at hand)",
    ),
}

HYDRA_SOURCE = (
    "Sehwag, Wang, Mittal and Jana, HYDRA (NeurIPS 2020, arXiv 2002.10509), table of results in "
    "its repository (inspire-group/hydra); RobustBench for the stronger attack"
)
_HYDRA_PROTOCOL = "CIFAR-10, VGG-16 / WRN-28-4, PGD at eps 0.031"
HYDRA = {
    "dense": Figure(_HYDRA_PROTOCOL, "51.9 / 57.2 % left"),
    "LWM 90 %": Figure(_HYDRA_PROTOCOL, "48.8 / 53.8 % left"),
    "LWM 95 %": Figure(_HYDRA_PROTOCOL, "45.2 / 49.2 % left"),
    "LWM 99 %": Figure(_HYDRA_PROTOCOL, "34.3 / 37.3 % left"),
    "HYDRA 90 %": Figure(_HYDRA_PROTOCOL, "49.5 / 55.2 % left"),
    "HYDRA 95 %": Figure(_HYDRA_PROTOCOL, "48.7 / 54.2 % left"),
    "HYDRA 99 %": Figure(_HYDRA_PROTOCOL, "41.7 / 47.3 % left"),
    "attack": Figure(
        "CIFAR-10, WRN-28-10, 90 %, PGD with 50 steps; AutoAttack",
        "62.24 % left; 57.14 % left",
    ),
}

ADVERSARIAL_PRUNING = Leaderboard(
    source="Adversarial Pruning Benchmark (Piras et al., Adversarial Pruning: A Survey and "
    "Benchmark of Pruning Methods for Adversarial Robustness, Pattern Recognition, arXiv "
    "2409.01249), leaderboard in its repository pralab/AdversarialPruningBenchmark",
    protocol="CIFAR-10, ResNet18, unstructured, AutoAttack (Linf, eps 0.031) on all 10,000 test "
    "images, one network a row and no interval",
    sparsities=(0.90, 0.95, 0.99),
    rows={
        "RADMM": ((80.54, 43.68), (79.33, 42.56), (71.17, 37.21)),
        "HYDRA": ((76.74, 43.34), (76.16, 42.45), (72.21, 38.80)),
        "HARP": ((83.38, 45.40), (83.38, 45.69), (83.11, 45.50)),
        "PwoA": ((83.29, 45.35), (82.58, 41.25), (76.33, 28.95)),
        "MAD": ((73.67, 41.10), (70.70, 38.96), (58.90, 29.26)),
        "Li20": ((77.39, 41.31), (73.54, 39.29), (59.42, 31.37)),
        "RST": ((60.92, 14.31), (56.93, 16.76), (48.90, 15.16)),
        "RobustBird": ((78.16, 43.35), (79.27, 44.60), (69.36, 37.08)),
        "TwinRep": ((76.37, 42.93), (73.19, 41.47), (64.97, 36.10)),
        "FlyingBird": ((80.69, 46.49), (77.42, 46.10), (75.40, 42.02)),
    },
)
