"""What a command works in: settings, images, networks; of a repository, or of none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from advprune.cli.options import Network, ProfileOption
from advprune.core.errors import UserError
from advprune.core.fit import Fit
from advprune.core.networks import is_factory, is_library
from advprune.core.params import FILE, Params, load
from advprune.core.profile import Profile
from advprune.core.settings import parse
from advprune.core.train_settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from advprune.data import Split

UNKNOWN = Network()
COLOUR = 3  # channels
IMAGES = 500  # drawn for an evaluation


@dataclass(frozen=True)
class Images:
    """The images that a command works on: a profile's, or pictures of the user's own."""

    PANEL: ClassVar = "Images (of a profile in params.yaml, or --data)"
    profile: ProfileOption = None
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own pictures instead of a profile (params.yaml is not read): a folder of "
            "one sub-folder per class, a split (.safetensors) or images and labels (.npz)."
        ),
    ] = None
    names: Annotated[
        Path | None,
        typer.Option(
            help="File of class names of --data, one per line, in the order of the network's "
            "outputs; by default the sub-folders' in alphabetical order."
        ),
    ] = None
    eps: Annotated[
        str | None, typer.Option(help="Budget of attacks on --data. [default: 8/255]")
    ] = None

    def place(self, known: Network, part: str = "test") -> "Repository":
        """The pictures of --data (of its sub-folder `part`, test or train, if there are such), else
        the project that this folder is; UserError where an option goes with the other."""
        if self.data is not None:
            if self.profile is not None:
                raise UserError("give either --data or --profile")
            return Pictures(known, self, part)
        asked = vars(self) | {"profile": None}
        if part == "test":
            asked |= {"resize": known.resize, "crop": known.crop}
        for option in (key for key, value in asked.items() if value is not None):
            raise UserError(f"--{option} goes with --data; a profile has its own")
        if not Path(FILE).exists():
            raise UserError(
                f"cannot read {FILE}: it is not there; give your own pictures by --data, or run "
                "this in the root of a project"
            )
        return Repository(self.profile)


@dataclass(frozen=True)
class Attacked(Images):
    """The same of a command that attacks them."""

    norm: Annotated[
        str | None, typer.Option(help="Norm of the budget: Linf or L2. [default: Linf]")
    ] = None
    images: Annotated[
        int | None,
        typer.Option(min=1, help="How many pictures of --data are drawn. [default: 500]"),
    ] = None
    queries: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Queries per picture of --data for searches without gradients. "
            "[default: 300 by Square, 1000 by HopSkipJump]",
        ),
    ] = None


class Repository:
    """The current folder, seen with the settings of one profile."""

    params: Params
    model: ModelSettings  # of networks whose file does not say

    def __init__(self, profile: str | None) -> None:
        """Read params.yaml; UserError where it is missing or wrong."""
        self.params = load(profile=profile)
        self.model = self.params.active().model
        self._splits: dict[str, Split] = {}

    @property
    def profile(self) -> Profile:
        """The active profile's settings."""
        return self.params.active()

    def place(self, kind: str, name: str = "") -> Path:
        """`<kind>/<profile>/<name>`."""
        return Path(kind) / self.params.profile / name

    def split(self, name: str) -> "Split":
        """The train, val or test images: as prepared, if from the settings and files that are there
        now, else made in memory."""
        from advprune.data import prepare, read_split
        from advprune.data.sources import key_of

        if name not in self._splits:
            path = self.place("data", f"{name}.safetensors")
            split = read_split(path) if path.is_file() else None
            if split and split.made == key_of(self.profile.data, self.params.seed):
                self._splits[name] = split
            else:
                self._splits |= prepare(self.profile.data, self.params.seed)
        return self._splits[name]

    def sizes(self) -> dict[str, int]:
        """Channels and classes of the images."""
        images = self.split("test")
        return {"channels": images.shape[0], "classes": len(images.classes)}

    def show(self, fit: Fit | None, channels: int | None = None) -> None:
        """Show pictures as a network takes them; a profile's images are as they were prepared."""

    def has(self, count: int) -> str:
        """What has so many channels or classes, and what to do where a network has others."""
        return f"profile {self.params.profile} has {count}; choose another with --profile"

    def network(self, path: Path, known: Network = UNKNOWN) -> "nn.Module":
        """The network in a checkpoint that passes the audit, ready for these images.

        Checkpoints of this library describe themselves. Of others the architecture is `known`, or
        inferred, or the profile's if that is not one of this library's; images are normalized as is
        `known`, or as timm or torchvision trained the network, or as in the profile where that has
        such a network. UserError where the audit finds a fault or images do not fit.
        """
        from advprune.models.audit import audit, shown
        from advprune.models.checkpoint import build, fill
        from advprune.models.foreign import check_answers
        from advprune.models.preprocessing import Preprocessing, preprocessing_of
        from advprune.models.spec import ModelSpec
        from advprune.training.networks import spec_for

        read, own = known.read(path), self.model
        foreign, said = read.header is None, read.said
        made = {"architecture": own.network} | said
        if foreign and not is_library(name := made["architecture"]):
            options = {"options": own.options} if own.options and name == own.network else {}
            said = options | self.sizes() | shown(name, read.tensors) | made
        factory = self.factory(said)
        found = audit(read.tensors, read.header, given=said, keep=known.keep, factory=factory)
        if (spec := found.spec) is None or not found.sound:
            more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
            raise UserError(f"{path}: {found.faults[0]}{more}; see `advprune audit`")
        how = None
        if read.theirs and read.theirs.normalized:
            how = Preprocessing(*read.theirs.normalized, fit=None)
        # A network of the profile's kind is taken for one that was trained on its images.
        elif foreign and (own.network != spec.architecture or own.weights):
            how = preprocessing_of(spec.architecture, spec.options, path)
        seen = known.preprocessing(how, spec.channels)
        if "mean" not in seen and (foreign or known.normalize):
            seen |= {"mean": (0.0,) * spec.channels, "std": (1.0,) * spec.channels}
            if own.normalize if known.normalize is None else known.normalize:
                ours = spec_for(own.model_copy(update={"normalize": True}), self.split("train"))
                seen |= {"mean": ours.mean, "std": ours.std}
        spec = parse(ModelSpec, dict(spec) | seen, str(path))
        self.show(spec.fit, spec.channels)
        for what, needs in self.sizes().items():
            if (has := getattr(spec, what)) != needs:
                raise UserError(f"{path} is a network of {has} {what}, but {self.has(needs)}")
        model = build(spec, factory)
        fill(model, found.tensors, where=str(path))
        check_answers(model, self.split("test").shape)
        return model

    def factory(self, given: Mapping[str, Any]) -> str | None:
        """The function that may be called to make a network: the one given, or the profile's."""
        name = given.get("architecture", self.model.factory)
        return name if name and is_factory(name) else None


class Pictures(Repository):
    """No repository: pictures of one's own, under the settings that come with the package. They are
    read when the first network that they are shown to has said how."""

    def __init__(self, known: Network, given: Images, part: str = "test") -> None:
        """Look at the first of the pictures that are `given`; of the part `train` all are read."""
        from advprune.data.given import read_given, read_names
        from advprune.defaults import defaults

        said = {key: value for key, value in vars(given).items() if value is not None}
        data, self.fit, self.part = said["data"], known.fit(), part
        if self.fit is not None and not data.is_dir():
            raise UserError("--resize and --crop are for folders of pictures")
        names = read_names(said["names"]) if "names" in said else ()
        most = None if part == "train" else said.get("images", IMAGES)
        self.read = partial(read_given, data, classes=names, part=part)
        self.most, first = most, self.read(1)
        self.channels, self.classes = known.channels or first.shape[0], len(first.classes)
        self.model = ModelSettings(normalize=False)
        budget = said.get("eps", "8/255"), said.get("norm", "Linf")
        self.settings = partial(defaults, *budget, queries=said.get("queries"))

    @cached_property
    def params(self) -> Params:  # type: ignore[override]
        """Those that come with the package, for images of this size."""
        return self.settings(self._images.shape)

    def sizes(self) -> dict[str, int]:
        return {"channels": self.channels, "classes": self.classes}

    def show(self, fit: Fit | None, channels: int | None = None) -> None:
        """Grey ones in colour to a network of colour images, all at its size; UserError where that
        is another than that of the network before."""
        if self.channels == 1 and channels == COLOUR:
            self.channels = COLOUR
        if "_images" not in vars(self):
            self.fit = fit or self.fit
        elif fit not in (None, self.fit):
            raise UserError("the networks take pictures of other sizes; give --resize and --crop")

    def has(self, count: int) -> str:
        return f"the pictures have {count}; --names FILE names its classes in order"

    def split(self, name: str) -> "Split":
        if name not in ("test", self.part):
            raise UserError(
                "images are normalized by training images, and there are none; give the network's "
                "mean and standard deviation"
            )
        return self._images

    @cached_property
    def _images(self) -> "Split":
        found = self.read(self.most, fit=self.fit)
        if found.shape[0] == 1 < self.channels:
            return replace(found, images=found.images.repeat(1, self.channels, 1, 1))
        if found.shape[0] != self.channels:
            raise UserError("some of the pictures are grey and some in colour; convert them to one")
        return found
