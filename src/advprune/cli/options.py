"""Options that several subcommands share, and their shell completion."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from advprune.core.errors import UserError
from advprune.core.networks import LIBRARY, is_factory


def _profiles(incomplete: str) -> list[str]:
    return _from_params(incomplete, lambda params: params.profiles)


def _families(incomplete: str) -> list[str]:
    """Those of `prune:` in params.yaml: asking the registry would take seconds."""
    return _from_params(
        incomplete,
        lambda params: dict.fromkeys(
            value.get("family", key) if isinstance(value, dict) else key
            for key, value in params.prune.items()
        ),
    )


def _from_params(incomplete: str, choose: Any) -> list[str]:
    from advprune.core import params

    try:
        return [name for name in choose(params.load()) if name.startswith(incomplete)]
    except UserError:  # completion stays silent where there is no repository
        return []


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Profile of params.yaml; by default its `profile`.",
        autocompletion=_profiles,
    ),
]
FamilyArgument = Annotated[
    str,
    typer.Argument(
        help="The family's key, such as E or magnitude_global.", autocompletion=_families
    ),
]
CheckpointArgument = Annotated[
    Path, typer.Argument(help="A .safetensors file, or a PyTorch state dict.")
]


@dataclass(frozen=True)
class Known:
    """What the command line says of a network, where its file does not."""

    architecture: Annotated[
        str | None,
        typer.Option(
            help="resnet18, resnet20, `torchvision/<name>` or `timm/<name>`; by default the "
            "header's, or inferred from names and shapes.",
            autocompletion=lambda incomplete: [n for n in LIBRARY if n.startswith(incomplete)],
        ),
    ] = None
    factory: Annotated[
        str | None,
        typer.Option(
            help="package.module:function, your own code that makes the network. A function that "
            "a file names is called only if it is given here or in the profile."
        ),
    ] = None
    width: Annotated[int | None, typer.Option(help="Channels of the first convolution.")] = None
    classes: Annotated[int | None, typer.Option(help="Outputs of the last layer.")] = None
    channels: Annotated[int | None, typer.Option(help="Channels of an image.")] = None
    keep: Annotated[
        float | None,
        typer.Option(
            help="Share of each layer's weights that the largest popup_scores keep (HYDRA)."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """What describes the network, for the audit; a factory counts as an architecture."""
        if self.architecture and self.factory:
            raise UserError("give either --architecture or --factory")
        for option in ("architecture", "factory"):
            name = getattr(self, option)
            if name is not None and is_factory(name) != (option == "factory"):
                raise UserError(
                    f"--{option}: {name!r} is none; a factory is package.module:function"
                )
        said = {key: getattr(self, key) for key in ("width", "classes", "channels")}
        said = {"architecture": self.architecture or self.factory} | said
        return {key: value for key, value in said.items() if value is not None}


@dataclass(frozen=True)
class Network(Known):
    """The same of a network that is run on images."""

    normalize: Annotated[
        bool | None,
        typer.Option(
            help="Whether the network is given normalized images; by default as its header says, "
            "else as in the profile."
        ),
    ] = None


def told(kind: type[Known]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a command with a parameter `known`: the fields of `kind` are options in its place."""
    fields = inspect.signature(kind).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**values: Any) -> None:
            own = {name: values.pop(name) for name in fields}
            command(known=kind(**own), **values)

        parameters = dict(inspect.signature(command).parameters)
        del parameters["known"]
        shown = [*parameters.values(), *fields.values()]
        kinds = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in shown]
        called.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
        return called

    return decorate
