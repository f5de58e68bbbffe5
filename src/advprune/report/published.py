"""Results that others have published, in their sources' own digits; none of them is ours.

The section `published` sets them beside ours.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One published figure, in the source's own digits, and what it was found on.

    key: which of ours is set beside it: a setting, a model's family, an attack on SAP, how weights
    are stored, or a family at a sparsity. unread: known from others, not read at its source.
    """

    key: str
    setting: str
    figure: str
    unread: bool = False


@dataclass(frozen=True)
class System:
    """A published system. differs: their regime, and how it differs from ours."""

    title: str
    source: str
    differs: str
    figures: tuple[Figure, ...]


# By family and setting, in percent: parameters changed, clean and remnant accuracy.
NN_PRUNE = {
    "dense –": (0, 91.8, 0.2),
    "E 1e-05": (0.0978, 91.8, 0.2),
    "E 0.0001": (0.5217, 91.8, 0.2),
    "E 0.001": (4.7786, 92, 0.2),
    "E 0.005": (23.2845, 92, 0.2),
    "E 0.007": (31.9905, 92.5, 0.2),
    "E 0.01": (43.991, 90.7, 0.2),
    "E 0.02": (72.8967, 37.1, 0.1),
    "E 0.05": (95.9159, 0.1, 0.1),
    "S 9": (0.005, 91.8, 0.2),
    "S 7": (0.0182, 91.7, 0.2),
    "S 5": (0.0922, 85.9, 32.6),
    "S 3": (0.9286, 23.5, 7.2),
    "R 0.001": (100, 91.9, 34.2),
    "R 0.01": (100, 87.1, 30.6),
    "R 0.1": (100, 0.2, 0.1),
    "int8 transfer": (0, 91.2, 0.2),
}

# By method and sparsity: percent that PGD at eps 0.031 leaves of VGG-16 and WRN-28-4 on CIFAR-10.
HYDRA = {
    "dense 0.0": (51.9, 57.2),
    "LWM 0.9": (48.8, 53.8),
    "LWM 0.95": (45.2, 49.2),
    "LWM 0.99": (34.3, 37.3),
    "HYDRA 0.9": (49.5, 55.2),
    "HYDRA 0.95": (48.7, 54.2),
    "HYDRA 0.99": (41.7, 47.3),
}

# By method, clean and AutoAttack accuracy in percent at each of these sparsities.
BENCHMARK_SPARSITIES = (0.90, 0.95, 0.99)
BENCHMARK = {
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
}

_SEEDS = (
    "Theirs are trained for far longer (HYDRA: 220 epochs and 500,000 further images) and choose "
    "the epoch by test images; ours are means over seeds of the last epoch."
)
SYSTEMS = (
    System(
        "E, S and R (nn-prune)",
        "README of nn-prune (Kahsolt/adversarial-prune on GitHub, October 2022), table ResNet18",
        "Theirs: torchvision's ResNet18 on 1,000 ImageNet images, eps 0.03, step 0.001. Their "
        "script swaps success rate and share of changed predictions, so neither is repeated. The "
        "threshold of E is absolute: what it removes depends on width and training.",
        tuple(
            Figure(one, one, f"changed {changed:g} %, clean {clean} %, remnant {remnant} %")
            for one, (changed, clean, remnant) in NN_PRUNE.items()
        ),
    ),
    System(
        "GAP",
        "Weiss, Alves and Kundu, Hardening DNNs against Transfer Attacks during Network "
        "Compression using Greedy Adversarial Pruning (AICAS 2022, arXiv 2206.07406), abstract, "
        "and its code",
        "Theirs attacks normalized images (8/255 is about 2/255 in pixels), scores on augmented "
        "training images and fine-tunes at a rate of 1e-6; no control. Ours: budget in pixels, "
        "test images, a fine-tuning that trains, and random pruning as control.",
        (
            *(
                Figure(
                    family,
                    "CIFAR-10, ResNet20 and others; PGD, 10 steps, on the uncompressed network",
                    "compressed networks resist these images (plots alone, no number)",
                )
                for family in ("GAP_layer", "GAP_global")
            ),
            Figure(
                "int8",
                "the same after 8-bit quantization, static, by layer",
                "plots alone, no number",
            ),
        ),
    ),
    System(
        "SAP and the attacks on it",
        "Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR "
        "2018, arXiv 1803.01442); Athalye, Carlini and Wagner, Obfuscated Gradients Give a "
        "False Sense of Security (ICML 2018), table 1; Dhillon and Carlini, Erratum Concerning "
        "the Obfuscated Gradients Attack on Stochastic Activation Pruning (arXiv 2010.00071), "
        "abstract",
        "Theirs: CIFAR-10. Ours: a ResNet18 and few images, on digits at six times their budgets.",
        (
            Figure(
                "gain",
                "CIFAR-10, ResNet-20, SAP-100; FGSM at 1/255, gradients and predictions over 100 "
                "draws",
                "12.2 points over dense",
                unread=True,
            ),
            Figure(
                "broken",
                "CIFAR-10, SAP on convolutions; margin loss, 500 small steps, eps 0.031",
                "0 % left",
            ),
            Figure(
                "not broken",
                "CIFAR-10, SAP as published; the same attack",
                "does not break it (no number)",
                unread=True,
            ),
            Figure("bpda", "CIFAR-10, SAP as published; BPDA", "0.1 % left", unread=True),
        ),
    ),
    System(
        "Bit flips (BFA)",
        "Rakin, He and Fan, Bit-Flip Attack (ICCV 2019, arXiv 1903.12269), abstract; He et al., "
        "Defending and Harnessing the Bit-Flip based Adversarial Weight Attack (CVPR 2020), the "
        "notebook of its code (elliothe/BFA); ± is a standard deviation over 5 runs",
        "Theirs are trained through the quantizer and wider. Their code for one bit allows only "
        "flips that lower the loss to first order; random flips there draw a layer first. Theirs "
        "has a standard deviation over runs, ours an interval over batches.",
        (
            Figure(
                "8 bits",
                "ImageNet, ResNet-18, 8 bits",
                "13 flips of 93 million bits: 69.8 to 0.1 %",
            ),
            Figure("8 bits", "CIFAR-10, ResNet-20, 8 bits", "28.0 ± 4.47 flips; clean 91.84 %"),
            Figure("4 bits", "CIFAR-10, ResNet-20, 4 bits", "40.8 ± 6.3 flips; clean 91.33 %"),
            Figure(
                "clustered",
                "CIFAR-10, ResNet-20, 8 bits, piecewise clustering of weight 1e-3",
                "58.79 ± 4.14 flips; clean 90.02 %",
            ),
            Figure("base", "CIFAR-10, ResNet-20, 1 bit", "541.2 ± 49.8 flips; clean 88.36 %"),
            Figure(
                "8 bits", "ImageNet, ResNet-18, 8 bits, 100 random flips", "less than 1 point lost"
            ),
        ),
    ),
    System(
        "RA-BNN",
        "Rakin et al., RA-BNN (2021, arXiv 2103.13813), abstract, and the logs of its code "
        "(adnansirajrakin/IEEECCWC2025); one run each",
        "Their attack flips the sign of the float weight behind a bit, with true labels of test "
        "images, so their counts are not counts of stored bits; trained for 1,000 epochs. Ours "
        "flips stored bits, with predicted labels of training images.",
        (
            Figure(
                "grown",
                "CIFAR-10, RA-BNN ResNet-20, 2.31 million parameters",
                "1150 flips: 89.92 to 10.96 %",
            ),
            Figure(
                "base",
                "CIFAR-10, binary ResNet-18, 11.18 million parameters",
                "666 flips: 91.11 to 10.98 %",
            ),
            Figure(
                "uniform", "uniformly wider, as many parameters", "none: the control is missing"
            ),
            Figure(
                "grown",
                "CIFAR-10, against a binary network of the base's size",
                "2 to 8 points more",
            ),
            Figure(
                "grown", "CIFAR-10, against networks of more bits", "over 125 times as many flips"
            ),
        ),
    ),
    System(
        "HYDRA",
        "Sehwag, Wang, Mittal and Jana, HYDRA (NeurIPS 2020, arXiv 2002.10509), table of "
        "results in its repository (inspire-group/hydra); RobustBench for the stronger attack",
        f"Theirs: CIFAR-10, PGD at eps 0.031. {_SEEDS}",
        tuple(
            Figure(one, one, f"robust {vgg} % (VGG-16), {wide} % (WRN-28-4)")
            for one, (vgg, wide) in HYDRA.items()
        ),
    ),
    System(
        "The Adversarial Pruning Benchmark",
        "Piras et al., Adversarial Pruning: A Survey and Benchmark of Pruning Methods for "
        "Adversarial Robustness, Pattern Recognition, arXiv 2409.01249; leaderboard in its "
        "repository pralab/AdversarialPruningBenchmark",
        f"Theirs: CIFAR-10, ResNet18, AutoAttack at eps 0.031, 10,000 test images. {_SEEDS}",
        tuple(
            Figure(f"{method} {at}", f"{method} {at}", f"clean {clean} %, robust {robust} %")
            for method, values in BENCHMARK.items()
            for at, (clean, robust) in zip(BENCHMARK_SPARSITIES, values, strict=True)
        ),
    ),
)
