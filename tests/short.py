"""The attacks of params.yaml at a small size, for tests of what commands do with what they find."""

from collections.abc import Callable
from typing import Any

from advprune import defaults
from advprune.core.attack_settings import AttackSettings, OtherAttack
from advprune.core.settings import yaml_of
from advprune.evaluate import probes
from advprune.evaluate.probes import by_answers

SIZES: dict[str, dict[str, Any]] = {
    "apgd_ce": {"steps": 10, "restarts": 1},
    "distance": {"steps": 20, "restarts": 1},
    "square": {"queries": 20, "after": "apgd_ce"},
}
PROBES = {"probe_nes": {"steps": 3, "samples": 8}, "probe_student": {"rounds": 1, "steps": 5}}


def attacks(text: str, where: str) -> Any:
    """Settings, with few attacks of few steps."""
    found = yaml_of(text, where)
    for name, size in SIZES.items():
        found["attacks"][name] |= size
    for kind in ("deterministic", "quantized"):
        names = found["suite"][kind]
        found["suite"][kind] = [name for name in names if name in {*SIZES, "apgd_parent"}]
    found["attacks"]["apgd_parent"] |= {"steps": 5, "after": "apgd_ce"}
    found["suite"] |= {"table": ["field"], "transfer": ["field"]}
    found["curves"]["steps"] = [1, 5]
    return found


def answered(main: AttackSettings) -> dict[str, OtherAttack]:
    """The probes by answers, with few of them."""
    made = by_answers(main).items()
    return {n: OtherAttack.model_validate(one.model_dump() | PROBES[n]) for n, one in made}


def install(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have evaluations outside of a project run these."""
    patch(defaults, "yaml_of", attacks)
    few_answers(patch)


def few_answers(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have all evaluations ask for few answers: a student is a training by itself."""
    patch(probes, "by_answers", answered)
