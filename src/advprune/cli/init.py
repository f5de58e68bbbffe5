"""`advprune init`: a DVC project around a network and pictures of one's own."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from string import Template
from typing import Annotated, ClassVar

import typer

from advprune.cli.options import Made, option_groups
from advprune.core.errors import InputError, UserError

STAGES = "stages"
TEMPLATE = Path(__file__).with_suffix(".yaml")  # of params.yaml
EXTRA = "advprune[pipeline]"
DVC = ("-m", "dvc")
PINNED = "requirements.txt"  # stages depend on it, instead of the library's code
DENSE = "dense-standard"  # the network that every project has
NETWORKS = "networks"  # where a clone has the user's code
# Dependencies that a project lacks.
OF_THE_CLONE = ("src/", NETWORKS, "claims.yaml", "params", "rl/", "bench/")
MADE_BESIDE = (".dvc", ".dvcignore", "checkpoints")
# What is said of a key of the profile, which has the name of its option; curves follow from --eps.
OF_THE_PROFILE = re.compile(r".*?: profiles\.mine[.:] ?(data\.|model\.|curves\.)?(.*)")
SECTION = re.compile(r"^(?:#.*\n)*^(\w+):.*\n(?: .*\n|\n)*", re.MULTILINE)

HEADER = """\
# The pipeline, as advprune comes with it. Settings are in params.yaml. Stages depend on the version
# of the library by requirements.txt: after an upgrade change it there.
"""


@dataclass(frozen=True)
class Profile:
    """What the profile of a project is made of, besides the network."""

    PANEL: ClassVar = "The profile"
    data: Annotated[Path, typer.Option(help="The folder of pictures, one sub-folder per class.")]
    weights: Annotated[
        Path | None, typer.Option(help="Trained weights, taken instead of training.")
    ] = None
    eps: Annotated[str, typer.Option(help="Budget of attacks.")] = "8/255"
    size: Annotated[
        int | None, typer.Option(help="Pictures are resized to this many pixels squared.")
    ] = None
    normalize: Annotated[
        bool, typer.Option(help="Whether the network is given images normalized by mean and std.")
    ] = False


@option_groups
def init(own: Profile, made: Made) -> None:
    """Write a DVC project for a network and pictures of your own into the current folder.

    Writes params.yaml with a profile of your own, dvc.yaml, the scripts in stages/,
    requirements.txt and, where there is none, .gitignore, and makes the folder a DVC repository
    (.dvc/, .dvcignore). Then `dvc repro` trains or loads the network, compresses it, attacks all
    models and writes the report to reports/mine/. Needs `pip install 'advprune[pipeline]'`.
    Overwrites nothing.

    Exit status: 0, or 2 if nothing was written.
    """
    import advprune
    from advprune.core.files import WRITING, write_text
    from advprune.core.params import FILE
    from advprune.defaults import defaults, project
    from advprune.models.foreign import code_files

    if made.name is None:
        raise UserError("give either --factory or --architecture")
    for name in (FILE, "dvc.yaml", STAGES, PINNED):
        if Path(name).exists():
            raise UserError(f"{name} is there already; start in a folder without it")
    for path in (own.data, own.weights):
        if path is not None and not path.exists():
            raise UserError(f"there is no {path}")
    try:
        defaults(own.eps, "Linf", (1, 8, 8))
    except InputError as error:
        raise UserError(f"--{error}") from error
    home, here = project(), Path.cwd()
    code = [str(f.relative_to(here)) for f in code_files(made.factory) if f.is_relative_to(here)]
    written = {
        FILE: _params(own, made, (home / FILE).read_text("utf-8")),
        "dvc.yaml": _stages((home / "dvc.yaml").read_text("utf-8"), code),
        PINNED: f"{EXTRA}=={advprune.__version__}\n",
    }
    for file in sorted((home / STAGES).glob("*.py")):
        written[f"{STAGES}/{file.name}"] = file.read_text("utf-8")
    if not Path(".gitignore").exists():
        written[".gitignore"] = "/data/\n/runs/\n/records/\n/checkpoints/\n__pycache__/\n"
    new = [path for path in map(Path, (*written, STAGES, *MADE_BESIDE)) if not path.exists()]
    try:
        for name, content in written.items():
            write_text(Path(name), content)
        _check_profile(own.eps)
        _start_dvc()
    except BaseException:
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    if WRITING.parent in new:
        shutil.rmtree(WRITING.parent)  # of temporary files, and empty
    print(f"wrote {', '.join((FILE, 'dvc.yaml', STAGES, PINNED))}; now run `dvc repro`")


def _params(own: Profile, made: Made, shipped: str) -> str:
    """params.yaml: the profile, then what the shipped one says about everything else."""
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        root=json.dumps(str(own.data), ensure_ascii=False),
        size=json.dumps(own.size),
        eps=own.eps,
        network=f"{'factory' if made.factory else 'architecture'}: {made.name}",
        normalize=json.dumps(own.normalize),
        weights=json.dumps(
            {"standard": {"path": str(own.weights)}} if own.weights else {}, ensure_ascii=False
        ),
    )
    own_sections = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    return text + "".join(m[0] for m in SECTION.finditer(shipped) if m[1] not in own_sections)


def _check_profile(eps: str) -> None:
    """UserError where params.yaml is wrong, which names the option that its key comes from."""
    from advprune.core.params import load

    try:
        load()
    except UserError as error:
        if not (match := OF_THE_PROFILE.fullmatch(str(error))):
            raise
        option = f"eps {eps}: curves." if match[1] == "curves." else ""
        raise UserError(f"--{option}{match[2]}") from error


def _stages(packaged: str, code: list[str]) -> str:
    """dvc.yaml, with the library's version and the user's code instead of a clone's code."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 100
    content = yaml.load(packaged)
    for stage in content["stages"].values():
        block = stage.get("do", stage)
        kept = [one for one in block["deps"] if not str(one).startswith(OF_THE_CLONE)]
        block["deps"] = [*kept, PINNED, *(code if NETWORKS in block["deps"] else ())]
    for name in set(content["artifacts"]) - {DENSE}:  # models that a project may not have
        del content["artifacts"][name]
    stream = StringIO()
    yaml.dump(content, stream)
    return re.sub(r"\A(#.*\n)+", HEADER, stream.getvalue())


def _start_dvc() -> None:
    """Make the folder a DVC repository, below git's if there is one; UserError where that fails."""
    if Path(".dvc").is_dir():
        return
    asked = ["git", "rev-parse", "--show-prefix"]
    git = subprocess.run(asked, capture_output=True, text=True, check=False)
    kind = ["--no-scm"] if git.returncode else ["--subdir"] if git.stdout.strip() else []
    command = [sys.executable, *DVC, "init", "-q", *kind]
    quiet = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        why = "; ".join(done.stderr.strip().splitlines()[-1:])
        raise UserError(f"DVC cannot start here ({why}); pip install '{EXTRA}'")
