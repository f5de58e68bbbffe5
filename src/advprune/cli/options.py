"""Options that several subcommands share, and their shell completion."""

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
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        help="resnet18, resnet20, torchvision/<name> or timm/<name>; by default the header's, or "
        "inferred from names and shapes.",
        autocompletion=lambda incomplete: [name for name in LIBRARY if name.startswith(incomplete)],
    ),
]
FactoryOption = Annotated[
    str | None,
    typer.Option(
        help="package.module:function, your own code that makes the network. A function that a "
        "file names is called only if it is given here or in the profile.",
    ),
]
WidthOption = Annotated[int | None, typer.Option(help="Channels of the first convolution.")]
ClassesOption = Annotated[int | None, typer.Option(help="Outputs of the last layer.")]
ChannelsOption = Annotated[int | None, typer.Option(help="Channels of an image.")]
KeepOption = Annotated[
    float | None,
    typer.Option(help="Share of each layer's weights that the largest popup_scores keep (HYDRA)."),
]


NormalizeOption = Annotated[
    bool | None,
    typer.Option(
        help="Whether the network is given normalized images; by default as its header says, else "
        "as in the profile."
    ),
]


def given(
    architecture: str | None,
    factory: str | None,
    width: int | None,
    classes: int | None,
    channels: int | None,
) -> dict[str, Any]:
    """The options that describe a network, for the audit; a factory counts as an architecture."""
    if architecture and factory:
        raise UserError("give either --architecture or --factory")
    for option, name in (("architecture", architecture), ("factory", factory)):
        if name is not None and is_factory(name) != (option == "factory"):
            raise UserError(f"--{option}: {name!r} is none; a factory is package.module:function")
    said = {
        "architecture": architecture or factory,
        "width": width,
        "classes": classes,
        "channels": channels,
    }
    return {key: value for key, value in said.items() if value is not None}
