"""A headless Chromium that opens pages and says what it sees."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.js")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# A window is never narrower than about 500 pixels, so the page is in a frame of the right width.
FRAME = """<!doctype html>
<body style="margin: 0">
<iframe src="{page}" style="border: 0; width: {width}px; height: 2000px"></iframe>
<pre id="result"></pre>
<script>
addEventListener("message", (event) => {{
  document.getElementById("result").textContent = event.data;
}});
</script>
"""


def find_browser() -> str | None:
    """The path of Chromium or Chrome; `None` if there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def measure_page(
    browser: str, page: str, directory: Path, *, width: int, dark: bool
) -> dict[str, Any]:
    """Open a page in a frame of a width, and run `probe.js` in it.

    page: its HTML.
    RETURNS: the result of the probe, and messages of the console as "console".
    """
    # The page allows its own script only.
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    probe = f"<script>{PROBE.read_text(encoding='utf-8')}</script></body>"
    (directory / "page.html").write_text(opened.replace("</body>", probe), encoding="utf-8")
    frame = directory / "frame.html"
    frame.write_text(FRAME.format(page="page.html", width=width), encoding="utf-8")
    dom, console = run_browser(browser, frame, dark=dark)
    result = re.search(r'<pre id="result">(.+?)</pre>', dom, re.DOTALL)
    assert result is not None, (dom[-2000:], console)
    return {**json.loads(html.unescape(result.group(1))), "console": console}


def run_browser(browser: str, file: Path, *, dark: bool = False) -> tuple[str, list[str]]:
    """Open a file. RETURNS: its DOM as HTML, and the messages of the console."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={file.parent / 'profile'}", "--window-size=1600,2000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, file.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
