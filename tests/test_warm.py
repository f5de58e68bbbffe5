"""The warm process: scripts run in its forks as they would alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGES = Path(__file__).parent.parent / "stages"
SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(STAGES)!r})
import warm
warm.hand_over()
print(sys.argv[1:], os.getcwd(), os.environ["GIVEN"], "pandas" in sys.modules, flush=True)
Path = __import__("pathlib").Path
if sys.argv[1] == "sleep":
    Path("pid").write_text(str(os.getpid()))
    time.sleep(60)
    Path("late").touch()
if sys.argv[1] == "raise":
    raise RuntimeError("as it happens")
sys.exit(int(sys.argv[1]))
"""
COMMAND = """
mkdir inside
GIVEN=one python script.py 0 "two words"; echo "status $?"
(cd inside && GIVEN=two python ../script.py 7); echo "status $?"
GIVEN=three python script.py raise; echo "status $?"
GIVEN=four python script.py sleep &
while ! [ -s pid ]; do sleep 0.05; done
kill -9 $!; wait $!
exit 5
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the warm process needs Linux")
def test_scripts_run_in_forks_as_they_would_alone(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    python = str(Path(sys.executable).parent)
    done = subprocess.run(
        [sys.executable, str(STAGES / "warm.py"), "bash", "-c", COMMAND],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout.splitlines() == [
        f"['0', 'two words'] {tmp_path} one True",
        "status 0",
        f"['7'] {tmp_path / 'inside'} two True",
        "status 7",
        f"['raise'] {tmp_path} three True",
        "status 1",
        f"['sleep'] {tmp_path} four True",
    ]
    assert "RuntimeError: as it happens" in done.stderr
    worker = Path(f"/proc/{(tmp_path / 'pid').read_text()}")
    deadline = time.monotonic() + 10
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists() and not (tmp_path / "late").exists()


def test_without_a_warm_process_a_script_goes_on_alone(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for address in ({}, {"ADVPRUNE_WARM": str(tmp_path / "gone")}):
        done = subprocess.run(
            [sys.executable, "script.py", "3"],
            cwd=tmp_path,
            env={**os.environ, "GIVEN": "alone", **address},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 3 and done.stdout.strip().endswith("alone False"), done.stderr
