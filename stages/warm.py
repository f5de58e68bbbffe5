"""Run a command, such as `dvc repro`, whose stage scripts need not import torch each time anew.

    python stages/warm.py python -m dvc repro

Importing torch and pandas takes longer than much of what a stage does. Here this process imports
them once, while the command runs, and forks for every stage script that the command starts:
`hand_over`, called by `common.script`, passes the script's arguments, folder, environment and
standard streams here, and exits as the fork does. Only other people's packages are imported
beforehand, and nothing is computed, so that a fork gives the same bytes as a process of its own.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

ADDRESS = "ADVPRUNE_WARM"  # environment variable: the socket on which the warm process listens
PRELOADED = (
    "torch",
    "pandas",
    "pyarrow.parquet",
    "safetensors.torch",
    "pydantic.main",
    "ruamel.yaml",
    "rich.progress",
    "scipy.stats",
    "typer",
    "torch._dynamo",  # every optimizer imports it
)
STREAMS = (0, 1, 2)


def hand_over() -> None:
    """Where there is a warm process, let it run this script, and exit as its fork does."""
    address = os.environ.pop(ADDRESS, None)
    if address is None:
        return
    task = {"argv": sys.argv, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    message = json.dumps(task).encode()
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except OSError:  # it is gone: go on alone
            return
        socket.send_fds(client, [len(message).to_bytes(8, "big")], STREAMS)
        client.sendall(message)
        status = client.recv(1)
    os._exit(status[0] if status else 1)


class Warm:
    """Serves `hand_over` for as long as a command runs."""

    def __init__(self, listener: socket.socket, command: subprocess.Popen[bytes]) -> None:
        self.listener, self.command = listener, command
        self.selector = selectors.DefaultSelector()
        self.forks: dict[socket.socket, int] = {}  # whose script each process runs

    def serve(self) -> int:
        """Until the command ends; its exit status."""
        ended = os.pidfd_open(self.command.pid)
        for source in (self.listener, ended):
            self.selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == ended:
                    return self.command.wait()
                if key.fileobj is self.listener:
                    self._begin(self.listener.accept()[0])
                elif key.data is None:  # the script itself was killed: so is its work
                    os.kill(self.forks[key.fileobj], signal.SIGKILL)  # type: ignore[index]
                    self.selector.unregister(key.fileobj)
                else:
                    self._end(key.fileobj, key.data)

    def _begin(self, client: socket.socket) -> None:
        size, streams, *_ = socket.recv_fds(client, 8, len(STREAMS))
        with client.makefile("rb") as stream:
            task = json.loads(stream.read(int.from_bytes(size, "big")))
        process = os.fork()
        if not process:
            _become(task, streams)
        for descriptor in streams:
            os.close(descriptor)
        self.forks[client] = process
        self.selector.register(client, selectors.EVENT_READ)
        self.selector.register(os.pidfd_open(process), selectors.EVENT_READ, client)

    def _end(self, descriptor: Any, client: socket.socket) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self.forks.pop(client), 0)[1])
        self.selector.unregister(descriptor)
        os.close(descriptor)
        if client in self.selector.get_map():
            self.selector.unregister(client)
            client.sendall(bytes([code if code >= 0 else 128 - code]))
        client.close()


def _become(task: dict[str, Any], streams: list[int]) -> NoReturn:
    """Be the script, in the forked process, which ends here."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor, standard in zip(streams, STREAMS, strict=True):
            os.dup2(descriptor, standard)
        os.environ.clear()
        os.environ.update(task["environment"])
        os.chdir(task["folder"])
        sys.argv = task["argv"]
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter would: show it and fail
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(command: list[str]) -> int:
    """Run `command` beside a warm process; its exit status."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        return subprocess.run(command).returncode
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address := f"{folder}/socket")
        listener.listen()
        running = subprocess.Popen(command, env={**os.environ, ADDRESS: address})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # is the command's affair
        for package in PRELOADED:
            importlib.import_module(package)
        gc.freeze()  # forks need not look through all that
        return Warm(listener, running).serve()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # what was imported has nothing to put away, and some of it would complain
