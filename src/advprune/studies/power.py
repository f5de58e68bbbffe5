"""Studies whose comparisons could never be significant are refused before they are run.

In the best case, that is: every batch of one network needs more flips than every batch of another;
no image is lost where some are gained; all seeds agree. What a study has to be able to show is the
published gain where there is one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from typing import Any

from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.evaluate.faults import pairs_of, smallest_flip_p
from advprune.evaluate.means import smallest_mean_difference
from advprune.evaluate.statistics import ALPHA, smallest_difference
from advprune.studies.base import settings_of
from advprune.studies.bitflip import stored_entries
from advprune.studies.protocol import Member, MemberSettings
from advprune.studies.seeds import SeedsSettings

SAP_GAIN = 0.122  # Dhillon et al. (2018), under one gradient step at 1/255
SEEDS_EFFECT = 0.2  # a fifth of all images


def check_studies(params: Params) -> None:
    """Check the settings of all studies before anything is run.

    UserError where one is wrong, or compares what it could never tell apart, with the number of
    images, batches or seeds that could. A study that compares nothing may be of any size.
    """
    typed = {name: settings_of(params, name) for name in params.studies}
    found = _flips(params), _sap(params, typed), _seeds(params, typed), _corruptions(params)
    for refusal in chain.from_iterable(found):
        raise UserError(refusal)


def _flips(params: Params) -> Iterator[str]:
    """All comparisons of bit-flip studies are corrected together."""
    tests = len(pairs_of(stored_entries(params), params.dense()[0]))
    seeds = params.active().flips.seeds

    def smallest(seeds: int) -> float:
        return min(1.0, smallest_flip_p(seeds, seeds) * tests)

    if tests and smallest(seeds) >= ALPHA:
        enough = _first(lambda n: smallest(n) < ALPHA)
        yield (
            f"flips.seeds: with {seeds} batches none of {tests} comparisons can be significant "
            f"(p >= {smallest(seeds):.2g} by Holm); {enough} batches are enough, or fewer studies"
        )


def _sap(params: Params, typed: Mapping[str, Any]) -> Iterator[str]:
    """SAP beside its dense network: the budgets of an attack are corrected together."""
    members: dict[str, list[Member]] = defaultdict(list)
    for name, settings in typed.items():
        if isinstance(settings, MemberSettings):
            members[params.studies[name].of] += settings.members.values()
    is_compared = any(
        any(one.family is None for one in own) and any(one.is_published_sap for one in own)
        for own in members.values()
    )
    chosen = params.active().protocol
    tests, images = sum(eps > 0 for eps in chosen.eps), _images(params, chosen.images)

    def least(images: int) -> float:
        return smallest_difference(0, images, ALPHA / tests)

    if is_compared and tests and images is not None and least(images) > SAP_GAIN:
        enough = _first(lambda n: least(n) <= SAP_GAIN)
        yield (
            f"protocol.images: {images} images at {tests} budgets cannot show the published gain "
            f"of {100 * SAP_GAIN:.1f} points (McNemar, Holm, 80 % power); {enough} images can, or "
            "fewer budgets"
        )


def _seeds(params: Params, typed: Mapping[str, Any]) -> Iterator[str]:
    """The points of a study are compared with the dense networks together."""
    images = _images(params)
    for name, settings in typed.items():
        if not isinstance(settings, SeedsSettings) or not settings.points:
            continue
        points = len(settings.points)
        if settings.seeds < 2:
            yield f"studies.{name}.seeds: points are compared over 2 seeds at least (got 1)"

        def least(images: int, alpha: float = ALPHA / points) -> float:
            return smallest_mean_difference(images, alpha)

        if images is not None and least(images) > SEEDS_EFFECT:
            enough = _first(lambda n: least(n) <= SEEDS_EFFECT)
            yield (
                f"studies.{name}: {images} test images cannot show a difference of "
                f"{100 * SEEDS_EFFECT:.0f} points for {points} points (Holm, 80 % power); {enough} "
                "can (data.test_limit)"
            )


def _corruptions(params: Params) -> Iterator[str]:
    """Every model beside its dense network, which must be studied too."""
    own = {e.of: name for name, e in params.studies.items() if e.study == "corruptions"}
    for model, name in own.items():
        if (root := params.root(model)) not in own:
            yield f"studies.{name}: {model} is compared with {root}, which needs an entry too"


def _images(params: Params, wanted: int | None = None) -> int | None:
    """How many test images there are at most; None where the data set alone knows."""
    known = [n for n in (wanted, params.active().data.test_limit) if n is not None]
    return min(known, default=None)


def _first(is_enough: Callable[[int], bool]) -> int:
    return next(n for n in count(2) if is_enough(n))
