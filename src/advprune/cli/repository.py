"""The repository as a command sees it: settings, paths, images, networks."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprune.core.errors import UserError
from advprune.core.networks import is_factory, is_library

if TYPE_CHECKING:
    from torch import nn

    from advprune.core.params import Params, Profile
    from advprune.data import Split
    from advprune.models.spec import ModelSpec


class Repository:
    """The current folder, seen with the settings of one profile."""

    def __init__(self, profile: str | None) -> None:
        """Read params.yaml; UserError where it is missing or wrong."""
        from advprune.core.params import load

        self.params: Params = load(profile=profile)

    @property
    def profile(self) -> "Profile":
        """The active profile's settings."""
        return self.params.active()

    def place(self, kind: str, name: str = "") -> Path:
        """`<kind>/<profile>/<name>`."""
        return Path(kind) / self.params.profile / name

    def split(self, name: str) -> "Split":
        """The profile's train, val or test images: as prepared, if from the settings and files that
        are there now, else made in memory."""
        from advprune.data import read_split
        from advprune.data.sources import key_of

        path = self.place("data", f"{name}.safetensors")
        if path.is_file():
            split = read_split(path)
            if split.made == key_of(self.profile.data, self.params.seed):
                return split
        return self._prepared[name]

    @cached_property
    def _prepared(self) -> "dict[str, Split]":
        from advprune.data import prepare

        return prepare(self.profile.data, self.params.seed)

    def network(
        self,
        path: Path,
        given: Mapping[str, Any] | None = None,
        keep: float | None = None,
        normalize: bool | None = None,
    ) -> "nn.Module":
        """The network in a checkpoint that passes the audit, ready for the profile's images.

        Checkpoints of this library describe themselves. Of others the architecture is `given` or
        inferred, or the profile's if that is not one of this library's; images are normalized as in
        the profile. `normalize` overrides both. keep: see `models.audit`. Raises UserError
        if the audit finds a fault, or if the network does not fit the images.
        """
        from advprune.models.audit import audit
        from advprune.models.checkpoint import build, fill, header_spec, read_weights, stored
        from advprune.models.infer import naming
        from advprune.models.outside import check_answers
        from advprune.models.unmask import plain

        tensors, metadata = read_weights(path)
        spec = header_spec(metadata, where=str(path))
        said = dict(given or {}) if spec else self._said(given or {})
        allowed = self.factory(said)
        found = audit(tensors, spec, given=said, keep=keep, factory=allowed)
        if found.spec is None or not found.sound:
            more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
            raise UserError(f"{path}: {found.faults[0]}{more}; see `advprune audit`")
        if spec is None or normalize is not None:
            spec = self._with_normalization(found.spec, normalize)
        self._check(spec, path)
        model = build(spec, allowed)
        names = naming(spec, tensors, stored(model))
        wanted = stored(model)
        fill(model, plain(tensors, keep, names, wanted).tensors, where=str(path))
        check_answers(model, self.split("test").shape)
        return model

    def factory(self, given: Mapping[str, Any]) -> str | None:
        """The function that may be called to make a network: the one given, or the profile's."""
        name = given.get("architecture", self.profile.model.factory)
        return name if name and is_factory(name) else None

    def _said(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a foreign network: what was given, and the profile's network if it is
        not one of this library's."""
        own, images = self.profile.model, self.split("test")
        known = {"architecture": own.network} | dict(given)
        if is_library(known["architecture"]):
            return dict(given)
        if own.options and known["architecture"] == own.network:
            known = {"options": own.options} | known
        return {"classes": len(images.classes), "channels": images.images.shape[1]} | known

    def _with_normalization(self, spec: "ModelSpec", normalize: bool | None) -> "ModelSpec":
        """The spec of a foreign network with the mean and std of the training images."""
        from advprune.training.base import spec_for

        chosen = self.profile.model.normalize if normalize is None else normalize
        settings = self.profile.model.model_copy(update={"normalize": chosen})
        own = spec_for(settings, self.split("train"))
        return spec.model_copy(update={"mean": own.mean, "std": own.std})

    def _check(self, spec: "ModelSpec", path: Path) -> None:
        images = self.split("test")
        for what, has, needs in (
            ("channels", spec.channels, images.images.shape[1]),
            ("classes", spec.classes, len(images.classes)),
        ):
            if has != needs:
                raise UserError(
                    f"{path} is a network of {has} {what}, but profile {self.params.profile} has "
                    f"{needs}; choose another with --profile"
                )
