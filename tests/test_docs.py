"""What the documents say is so: links lead somewhere, results are the committed metrics'."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
RESULTS = re.findall(r"<!-- results: (\S+) -->\n(.*?)\n<!-- end of results -->", README, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if not t.startswith("http")]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_profile_with_results_is_shown() -> None:
    committed = sorted(p.name for p in (ROOT / "metrics").iterdir() if p.is_dir())
    assert sorted(profile for profile, _ in RESULTS) == committed


def rerun_here(folder: str = "metrics") -> bool:
    """Whether metrics/ is not as committed: another machine may round otherwise."""
    if not (ROOT / ".git").exists():
        return True
    command = ["git", "status", "--porcelain", folder]
    return bool(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(rerun_here(), reason="metrics/ was made anew on this machine")
@pytest.mark.parametrize(("profile", "table"), RESULTS, ids=[profile for profile, _ in RESULTS])
def test_results_in_the_readme_are_the_committed_metrics(profile: str, table: str) -> None:
    command = [sys.executable, "stages/show.py", "--profile", profile, "--markdown"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table.strip() == shown.strip()


@pytest.mark.skipif(rerun_here("reports"), reason="reports/ was made anew on this machine")
def test_ours_beside_published_figures_are_those_of_the_committed_reports(tmp_path: Path) -> None:
    page, copy = ROOT / "docs" / "published.md", tmp_path / "published.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "stages/published.py", "--page", str(copy)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_commands_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= {"repro", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    scripts = set(re.findall(r"python (stages/\w+\.py)", README))
    assert scripts and all((ROOT / script).is_file() for script in scripts)


def test_every_stage_is_described() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert text.count("    desc: ") == text.count("    cmd: ")
