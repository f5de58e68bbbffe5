"""The pipeline's stages on a machine without DVC, side by side: for one with a GPU.

    python bench/without_dvc.py plan plan.json                # where DVC is, of its params.yaml
    python bench/without_dvc.py run plan.json --processes 12  # there

A stage begins when those that make its dependencies have ended, those that the most others wait for
first. One that has ended well is not run again, so that the same command goes on where it was
stopped. Logs, and what has ended, are kept in `timings/stages/`; remove that to begin anew.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

LOGS = Path("timings/stages")
app = typer.Typer(add_completion=False, help=__doc__)
Plan = dict[str, dict[str, Any]]  # by address: command, outs, after


@app.command()
def plan(out: Annotated[Path, typer.Argument(help="JSON file.")]) -> None:
    """Write the stages of dvc.yaml: their commands, outputs, and which stages come before them."""
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph
        found = {
            stage.addressing: {
                "command": stage.cmd,
                "outs": [out.def_path for out in stage.outs],
                "after": sorted(before.addressing for before in graph.successors(stage)),
            }
            for stage in graph
            if stage.path_in_repo == "dvc.yaml"
        }
    out.write_text(json.dumps(found, indent=1) + "\n")


def waiting(stages: Plan) -> dict[str, int]:
    """How many stages wait for each, those that wait for these included."""
    before: dict[str, set[str]] = {}

    def all_before(name: str) -> set[str]:
        if name not in before:
            after = stages[name]["after"]
            before[name] = set(after).union(*map(all_before, after))
        return before[name]

    return {name: sum(name in all_before(other) for other in stages) for name in stages}


@app.command()
def run(
    path: Annotated[Path, typer.Argument(help="What `plan` wrote.")],
    processes: Annotated[int, typer.Option(min=1, help="Stages at a time.")] = 2,
    seconds: Annotated[float, typer.Option(help="After these, stages are killed.")] = float("inf"),
    leave: Annotated[str, typer.Option(help="Stages not to run: parts of names, by commas.")] = "",
) -> None:
    """Run the stages that have not ended well, but for those to leave and what comes after them;
    exit status 1 where one failed or was stopped."""
    begun, stages = time.monotonic(), json.loads(path.read_text())
    left = [part for part in leave.split(",") if part]
    dependents, missing = waiting(stages), {name for name in stages if not mark(name).is_file()}
    todo = {name for name in missing if not any(part in name for part in left)}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: set[str] = set()
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        while time.monotonic() - begun < seconds:
            ready = [name for name in todo if not missing & set(stages[name]["after"])]
            for name in sorted(ready, key=lambda name: (-dependents[name], name)):
                if len(running) < processes:
                    todo.remove(name)
                    running[name] = started(name, stages[name]["command"], processes)
            if not running:
                break
            time.sleep(0.2)
            for name, (process, since) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    now = time.monotonic()
                    if process.returncode or not all(map(os.path.exists, stages[name]["outs"])):
                        failed.add(name)
                        said = f"FAILED ({process.returncode}, {LOGS / name}.log)"
                    else:
                        missing.remove(name)
                        mark(name).touch()
                        said = "done"
                    print(f"{now - begun:6.0f} s: {name} {said} in {now - since:.1f} s", flush=True)
    finally:  # after an interrupt, too
        for name, (process, _) in running.items():
            os.killpg(process.pid, signal.SIGKILL)
            print(f"{name}: stopped; the same command goes on with it")
    if todo:
        print(f"not begun: {', '.join(sorted(todo))}")
    raise typer.Exit(bool(failed or running))


def mark(name: str) -> Path:
    """The file that says that a stage has ended well."""
    return LOGS / f"{name}.done"


def started(name: str, command: str, processes: int) -> tuple[subprocess.Popen[bytes], float]:
    """A stage's process in a group of its own, and when it began. Its share of the cores is what
    the others leave, unless the environment says otherwise."""
    command = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    share = {"ADVPRUNE_WORKERS": str(max((os.cpu_count() or 1) // processes, 1))}
    environment = share | os.environ | {"DVC_STAGE": f"dvc.yaml:{name}", "PYTHONUNBUFFERED": "1"}
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            shell=True,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, time.monotonic()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()
