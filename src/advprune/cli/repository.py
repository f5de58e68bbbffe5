"""The repository as a command sees it: settings, paths, images, networks."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprune.cli.options import Network
from advprune.core.errors import UserError
from advprune.core.networks import is_factory, is_library
from advprune.core.settings import parse

if TYPE_CHECKING:
    from torch import nn

    from advprune.core.params import Params, Profile
    from advprune.data import Split

UNKNOWN = Network()


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

    def network(self, path: Path, known: Network = UNKNOWN) -> "nn.Module":
        """The network in a checkpoint that passes the audit, ready for the profile's images.

        Checkpoints of this library describe themselves. Of others the architecture is the one that
        is `known` or inferred, or the profile's if that is not one of this library's; images are
        normalized as timm or torchvision trained the network, else as in the profile. What is
        `known` overrides both. Raises UserError if the audit finds a fault, or if the network does
        not fit the images.
        """
        from advprune.models.audit import audit
        from advprune.models.checkpoint import build, fill, header_spec, read_weights, stored
        from advprune.models.infer import naming
        from advprune.models.outside import check_answers
        from advprune.models.preprocessing import preprocessing_of
        from advprune.models.spec import ModelSpec
        from advprune.models.unmask import plain
        from advprune.training.base import spec_for

        tensors, metadata = read_weights(path)
        spec, own = header_spec(metadata, str(path)), self.profile.model
        said = known.given(path if spec is None else None)
        images = self.split("test")
        fits = {"channels": images.images.shape[1], "classes": len(images.classes)}
        made = {"architecture": own.network} | said
        if spec is None and not is_library(made["architecture"]):
            profiles = own.options and made["architecture"] == own.network
            said = fits | ({"options": own.options} if profiles else {}) | made
        factory = self.factory(said)
        found = audit(tensors, spec, given=said, keep=known.keep, factory=factory)
        if found.spec is None or not found.sound:
            more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
            raise UserError(f"{path}: {found.faults[0]}{more}; see `advprune audit`")
        trained, spec = spec is None, found.spec
        how = preprocessing_of(spec.architecture, spec.options, path) if trained else None
        seen = known.preprocessing(how, spec.channels)
        if "mean" not in seen and (trained or known.normalize):
            chosen = own.model_copy(update={"normalize": known.normalize or own.normalize})
            ours = spec_for(chosen, self.split("train"))
            seen |= {"mean": ours.mean, "std": ours.std}
        spec = parse(ModelSpec, dict(spec) | seen, str(path))
        for what, needs in fits.items():
            if (has := getattr(spec, what)) != needs:
                raise UserError(
                    f"{path} is a network of {has} {what}, but profile {self.params.profile} has "
                    f"{needs}; choose another with --profile"
                )
        model = build(spec, factory)
        wanted = stored(model)
        names = naming(spec, tensors, wanted)
        fill(model, plain(tensors, known.keep, names, wanted).tensors, where=str(path))
        check_answers(model, images.shape)
        return model

    def factory(self, given: Mapping[str, Any]) -> str | None:
        """The function that may be called to make a network: the one given, or the profile's."""
        name = given.get("architecture", self.profile.model.factory)
        return name if name and is_factory(name) else None
