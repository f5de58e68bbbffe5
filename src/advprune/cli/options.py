"""Options that several subcommands share, and their shell completion."""

import inspect
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from advprune.core.errors import UserError
from advprune.core.fit import Fit
from advprune.core.networks import LIBRARY, is_factory
from advprune.core.params import load
from advprune.core.settings import parse, yaml_of

if TYPE_CHECKING:
    import torch

    from advprune.models.benchmarks import Recognized
    from advprune.models.preprocessing import Preprocessing
    from advprune.models.spec import ModelSpec


def completed(choose: Callable[[Any], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completion of names that `choose` finds in params.yaml; silent where there is none."""

    def names(incomplete: str) -> list[str]:
        try:
            return [name for name in choose(load()) if name.startswith(incomplete)]
        except UserError:
            return []

    return names


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Profile of params.yaml; by default its `profile`.",
        autocompletion=completed(lambda params: params.profiles),
    ),
]
FactoryOption = Annotated[
    str | None,
    typer.Option(
        help="package.module:function, your own code that makes the network. A function that "
        "a file names is called only if it is named here or in the profile."
    ),
]
FamilyArgument = Annotated[
    str,
    typer.Argument(
        help="The family's key, such as E or magnitude_global.",
        autocompletion=completed(  # from the settings: the registry takes seconds
            lambda params: dict.fromkeys(
                one.get("family", key) if isinstance(one, dict) else key
                for key, one in params.prune.items()
            )
        ),
    ),
]


def checkpoint_file(text: str) -> Path:
    """The file that an argument names; of the Hub (`hf:owner/name`) its local copy."""
    from advprune.core.hub import downloaded, on_hub

    return downloaded(text) if on_hub(text) else Path(text)


CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        help="A .safetensors file or PyTorch state dict; `hf:owner/name` of the Hugging Face Hub.",
        parser=checkpoint_file,
        metavar="CHECKPOINT",
    ),
]


@dataclass(frozen=True)
class Made:
    """What makes a network: by name, or the user's own code."""

    PANEL: ClassVar = "The network"
    architecture: Annotated[
        str | None,
        typer.Option(
            help="resnet18, resnet20, `torchvision/<name>`, `timm/<name>` or `cifar/<name>`.",
            autocompletion=lambda incomplete: [n for n in LIBRARY if n.startswith(incomplete)],
        ),
    ] = None
    factory: FactoryOption = None

    @property
    def name(self) -> str | None:
        """The one that is given; UserError for both, or for one that is none."""
        if self.architecture and self.factory:
            raise UserError("give either --architecture or --factory")
        for option in ("architecture", "factory"):
            name = getattr(self, option)
            if name is not None and is_factory(name) != (option == "factory"):
                raise UserError(
                    f"--{option}: {name!r} is none; a factory is package.module:function"
                )
        return self.architecture or self.factory


@dataclass(frozen=True)
class Known(Made):
    """What the command line says of a network, where its file does not."""

    PANEL: ClassVar = "The network (where its file does not say)"

    width: Annotated[int | None, typer.Option(help="Channels of the first convolution.")] = None
    classes: Annotated[int | None, typer.Option(help="Outputs of the last layer.")] = None
    channels: Annotated[int | None, typer.Option(help="Channels of an image.")] = None
    options: Annotated[
        str | None,
        typer.Option(help="Further arguments of the network, as in params.yaml: '{img_size: 32}'."),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option(
            help="Share of each layer's weights that the largest popup_scores keep (HYDRA)."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """What describes the network, for the audit; a factory counts as an architecture."""
        said: dict[str, Any] = {"architecture": self.name}
        said |= {key: getattr(self, key) for key in ("width", "classes", "channels")}
        if self.options:
            said["options"] = yaml_of(self.options, "--options")
            if not isinstance(said["options"], dict):
                raise UserError(f"--options: write a mapping of settings (got {self.options!r})")
        return {key: value for key, value in said.items() if value is not None}

    def read(self, path: Path) -> "Read":
        """A checkpoint. Where it has no header, what is not said here is that of the benchmark's
        network that it is (models/benchmarks.py), or of a config.json beside it."""
        from advprune.models.benchmarks import recognized
        from advprune.models.checkpoint import header_spec
        from advprune.models.preprocessing import described
        from advprune.models.tensor_file import read_weights

        tensors, metadata = read_weights(path)
        if header := header_spec(metadata, str(path)):
            return Read(tensors, header, self.given())
        if (self.name or "cifar/").startswith("cifar/") and (theirs := recognized(tensors)):
            return Read(theirs.tensors, None, theirs.given | self.given(), theirs)
        return Read(tensors, None, (described(path) if self.name is None else {}) | self.given())


@dataclass(frozen=True)
class Read:
    """What a checkpoint holds, and what is said of its network besides its header."""

    tensors: "dict[str, torch.Tensor]"
    header: "ModelSpec | None"
    said: dict[str, Any]
    theirs: "Recognized | None" = None


@dataclass(frozen=True)
class Network(Known):
    """The same of a network that is run on images."""

    normalize: Annotated[
        bool | None,
        typer.Option(
            help="Whether the network is given normalized images; by default as its header says, "
            "else as timm or torchvision trained it, else as in the profile."
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(help="Mean of each channel that images are normalized by: 0.485,0.456,…"),
    ] = None
    std: Annotated[
        str | None, typer.Option(help="Standard deviation of each channel, likewise.")
    ] = None
    resize: Annotated[
        int | None, typer.Option(min=1, help="Resize the shorter side of pictures, in pixels.")
    ] = None
    crop: Annotated[
        int | None, typer.Option(min=1, help="Cut out the middle square of this side.")
    ] = None

    def fit(self, own: "Preprocessing | None" = None) -> Fit | None:
        """How pictures become images, where that is given here; interpolated as in training."""
        if self.resize is None and self.crop is None:
            return None
        way = (own.fit if own and own.fit else Fit()).interpolation
        said = {"resize": self.resize, "crop": self.crop, "interpolation": way}
        return parse(Fit, said, "--resize and --crop")

    def preprocessing(self, own: "Preprocessing | None", channels: int) -> dict[str, Any]:
        """mean, std and fit of the network's spec: what is given here, else how it was trained
        (`own`), as far as either says. UserError where numbers are wrong, or too many."""
        from advprune.models.preprocessing import for_channels

        if (self.mean is None) != (self.std is None):
            raise UserError("give --mean and --std together")
        found: dict[str, Any] = {} if own is None else {"mean": own.mean, "std": own.std}
        if self.mean is not None and self.std is not None:
            found = {"mean": _numbers(self.mean, "--mean"), "std": _numbers(self.std, "--std")}
        if self.normalize is False:
            found = {"mean": (0.0,), "std": (1.0,)}
        found = {key: for_channels(f"--{key}", found[key], channels) for key in found}
        fit = self.fit(own) or (own and own.fit)
        return found | ({"fit": fit} if own or fit else {})


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise UserError(f"{option}: write numbers with commas between (got {text!r})") from error


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options instead of its parameters that are dataclasses: one for each
    field, in the panel of --help that the class names."""
    given = inspect.signature(command).parameters
    kinds: dict[str, Any] = {
        name: one.annotation for name, one in given.items() if is_dataclass(one.annotation)
    }
    shown: list[inspect.Parameter] = [one for name, one in given.items() if name not in kinds]
    for kind in kinds.values():
        for field in inspect.signature(kind).parameters.values():
            option = copy(field.annotation.__metadata__[0])
            option.rich_help_panel = kind.PANEL
            shown.append(field.replace(annotation=Annotated[field.annotation.__origin__, option]))

    @wraps(command)
    def called(**values: Any) -> None:
        for name, kind in kinds.items():
            values[name] = kind(**{one.name: values.pop(one.name) for one in fields(kind)})
        command(**values)

    alike = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown]
    called.__signature__ = inspect.Signature(alike)  # type: ignore[attr-defined]
    return called
