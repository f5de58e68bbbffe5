"""Common corruptions: noise, blur, brightness, contrast, JPEG and pixels, at five severities.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations (ICLR 2019), with the strengths of CIFAR-10-C for small images and of ImageNet-C for
large ones. Those that need textures or constants for one image size are left out (glass, snow,
frost, fog, elastic), so that means are not theirs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from math import cos, inf, radians, sin
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from advprune.evaluate.compare import MARGIN, by_width, right
from advprune.evaluate.means import (
    Mean,
    MeanComparison,
    compare_means,
    mean,
    smallest_mean_difference,
)

SEVERITIES = (1, 2, 3, 4, 5)
SMALL, LARGE = 32, 224  # sides that the published strengths are for, in pixels
ZOOMS = 11  # images that a zoom blur averages

# An image float64 [C, H, W] in [0, 1], a strength, random numbers -> the image, to be clipped.
Apply = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
Register = Callable[[Apply], Apply]


@dataclass(frozen=True)
class Kind:
    """A corruption. small, large: strengths by severity; in_pixels: they are lengths."""

    apply: Apply
    small: tuple[Any, ...]
    large: tuple[Any, ...]
    in_pixels: bool = False

    def strength(self, severity: int, side: int) -> Any:
        """At a severity, on images whose shorter side has `side` pixels: that of the nearer size,
        by ratio. Lengths grow and shrink with the image, but not below those for 32 pixels."""
        is_large = side * side > SMALL * LARGE
        found = (self.large if is_large else self.small)[severity - 1]
        scale = side / LARGE if is_large else max(side / SMALL, 1.0)
        return np.multiply(found, scale) if self.in_pixels else found


def corrupt(images: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt uint8 `images` `[N, C, H, W]`; the result is uint8 again. Severity 0 changes nothing.

    Random numbers follow from an image's pixels, `kind` and `seed` alone: all models see the same,
    and each severity has the noise of the one before. ValueError for what is unknown.
    """
    if kind not in KINDS or severity not in (0, *SEVERITIES):
        known = ", ".join(KINDS)
        raise ValueError(f"corrupt: no {kind!r} at severity {severity!r}; 0 to 5 of {known}")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"corrupt: images must be uint8 [N, C, H, W], not {images.dtype}")
    if severity == 0:
        return images.copy()
    one = KINDS[kind]
    strength = one.strength(severity, min(images.shape[2:]))
    found = np.empty_like(images)
    for place, image in enumerate(images):
        digest = hashlib.sha256(kind.encode() + image.tobytes()).digest()
        random = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
        changed = one.apply(image / 255, strength, random)
        found[place] = np.rint(255 * changed.clip(0, 1))
    return found


KINDS: dict[str, Kind] = {}


def _kind(small: tuple[Any, ...], large: tuple[Any, ...], in_pixels: bool = False) -> Register:
    """Register a corruption under its function's name."""

    def register(apply: Apply) -> Apply:
        KINDS[apply.__name__] = Kind(apply, small, large, in_pixels)
        return apply

    return register


@_kind((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Normal noise is added to each value."""
    return x + deviation * random.standard_normal(x.shape)


@_kind((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
def shot_noise(x: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    """Photons are counted: white is `photons` of them on average."""
    return random.poisson(x * photons) / photons


@_kind((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """A share of the values becomes black or white."""
    drawn, white = random.random(x.shape), random.random(x.shape) < 0.5
    return np.where(drawn < share, white, x)


@_kind((0.06, 0.10, 0.12, 0.16, 0.20), (0.15, 0.20, 0.35, 0.45, 0.60))
def speckle_noise(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Normal noise in proportion to each value is added."""
    return x + x * deviation * random.standard_normal(x.shape)


@_kind((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), in_pixels=True)
def gaussian_blur(x: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """Each channel is smoothed by a Gaussian of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, sigma, sigma), mode="nearest")


@_kind(
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    in_pixels=True,
)
def defocus_blur(
    x: np.ndarray, lengths: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """The mean over a disk of a radius, whose rim is blurred."""
    from scipy.ndimage import gaussian_filter
    from scipy.signal import fftconvolve

    radius, rim = lengths
    reach = int(np.ceil(radius + 3 * rim))
    away = np.arange(-reach, reach + 1)
    disk = (away[:, None] ** 2 + away**2 <= radius**2).astype(float)
    kernel = gaussian_filter(disk / disk.sum(), rim, mode="constant")
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    return fftconvolve(padded, kernel[None] / kernel.sum(), mode="valid", axes=(1, 2))


@_kind(
    ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    in_pixels=True,
)
def motion_blur(
    x: np.ndarray, lengths: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """A trail in one direction, up to 45 degrees from the horizontal, which fades as a Gaussian."""
    radius, sigma = lengths
    steps, angle = np.arange(round(2 * radius) + 1), radians(random.uniform(-45, 45))
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    edge, (height, width) = len(steps), x.shape[1:]
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge)), mode="edge")
    found = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        top, left = edge + round(step * sin(angle)), edge + round(step * cos(angle))
        found += weight * padded[:, top : top + height, left : left + width]
    return found


@_kind((1.06, 1.11, 1.16, 1.21, 1.26), (1.11, 1.16, 1.21, 1.26, 1.31))
def zoom_blur(x: np.ndarray, most: float, random: np.random.Generator) -> np.ndarray:
    """The mean of the image enlarged about its centre by 1 to `most`."""
    from scipy.ndimage import affine_transform

    centre, found = (np.array(x.shape) - 1) / 2, np.zeros_like(x)
    for factor in np.linspace(1, most, ZOOMS):
        shrink = np.array([1, 1 / factor, 1 / factor])
        found += affine_transform(x, shrink, centre * (1 - shrink), order=1, mode="nearest")
    return found / ZOOMS


@_kind((0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(x: np.ndarray, more: float, random: np.random.Generator) -> np.ndarray:
    """The value of HSV rises, hue and saturation stay: channels grow in proportion."""
    value = x.max(0)
    grown = (value + more).clip(max=1)
    return np.where(value > 0, x * grown / np.where(value > 0, value, 1), grown)


@_kind((0.75, 0.50, 0.40, 0.30, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """What differs from a channel's mean shrinks to a share of it."""
    grey = x.mean((1, 2), keepdims=True)
    return grey + share * (x - grey)


@_kind((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
def jpeg(x: np.ndarray, quality: int, random: np.random.Generator) -> np.ndarray:
    """Written and read by Pillow: three channels as RGB, others one by one as grey."""
    pixels, found = np.rint(255 * x).astype(np.uint8), []
    for picture in [pixels.transpose(1, 2, 0)] if len(x) == 3 else pixels:
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)))
    return (found[0].transpose(2, 0, 1) if len(x) == 3 else np.stack(found)) / 255


@_kind((0.95, 0.90, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Made smaller and large again by Pillow, by means over boxes."""
    height, width = x.shape[1:]
    small, found = (max(int(width * share), 1), max(int(height * share), 1)), []
    for channel in x.astype(np.float32):
        picture = Image.fromarray(channel).resize(small, Image.Resampling.BOX)
        found.append(np.asarray(picture.resize((width, height), Image.Resampling.BOX)))
    return np.stack(found)


@dataclass(frozen=True, eq=False)
class Shares:
    """Per image the share of its versions that a model has right, `[n]`. versions: by corruption
    and severity."""

    values: np.ndarray
    versions: frozenset[tuple[str, int]]

    @property
    def mean(self) -> Mean:
        """Mean accuracy over versions; its interval covers other images."""
        return mean(self.values[None])


def shares(records: pd.DataFrame) -> Shares:
    """The shares of records of corrupted images, in the order of the images."""
    by_image = records.assign(right=right(records)).groupby("index").right.mean()
    versions = frozenset(zip(records.corruption, records.severity, strict=True))
    return Shares(by_image.to_numpy(), versions)


def compare_shares(first: Shares, second: Shares, margin: float = MARGIN) -> MeanComparison:
    """A paired t test over images; ValueError where the number of images or versions differ."""
    if first.values.shape != second.values.shape or first.versions != second.versions:
        raise ValueError("compare_shares: the shares are not of the same images")
    test = compare_means(first.values[None], second.values[None], margin)
    n, versions = test.mean.images, len(first.versions)

    def detectable_at(alpha: float) -> float:
        # At least what the loss of a single version of some images would show.
        least = smallest_mean_difference(n, alpha) / versions
        return inf if n == 1 else max(by_width(test.ends_at, alpha), least)

    return replace(test, detectable_at=detectable_at)
