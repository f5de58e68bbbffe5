"""Results that others have published, as they stand in their sources; none of them is ours."""

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
