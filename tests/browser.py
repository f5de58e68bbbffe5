"""A page in a headless browser, where this machine has one: what a script finds out in it."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu")

# Before anything of the page: what is told to the console as an error, and what asks for a network.
LISTEN = """
<script>
window.errors = [];
window.told = (...words) => window.errors.push(words.map(String).join(" "));
console.error = window.told;
addEventListener("error", (event) => window.told(event.message || event.target.outerHTML), true);
addEventListener("unhandledrejection", (event) => window.told(event.reason));
addEventListener("securitypolicyviolation", (event) => window.told(event.violatedDirective));
window.hacked = 0;
</script>
"""
# After it: the test, whose result is left in the page as text.
FINISH = """
<script>
(async () => {
  const sleep = (time) => new Promise((done) => setTimeout(done, time));
  const found = {};
  try { %s } catch (error) { window.told(error.stack); }
  found.errors = window.errors;
  found.hacked = window.hacked;
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = JSON.stringify(found);
  document.body.replaceChildren(place);
})();
</script>
"""


def run_in(page: str, script: str, folder: Path, width: int = 1200) -> dict[str, Any]:
    """Open a copy of the page and run a script in it, which writes into `found`."""
    assert BROWSER is not None
    file = folder / "page.html"
    tested = page.replace("<head>", f"<head>{LISTEN}", 1) + FINISH % script
    file.write_text(tested, encoding="utf-8")
    command = [BROWSER, *OPTIONS, f"--window-size={width},900"]
    command += [f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    result = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result is not None, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(unescape(result[1]))
    return found
