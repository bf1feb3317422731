"""The page in a real browser: it shows, its extras work, nothing of a row runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--dump-dom",
]


def dom(page: Path, profile: Path) -> str:
    """Return the document after its script ran."""
    words = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout


def test_one_batch_shows_and_no_text_of_a_row_runs(written, tmp_path):
    shown = dom(written.path, tmp_path / "profile")
    articles = re.findall(r'<article class="batch"[^>]*>', shown)
    assert len(articles) > 1
    assert [" hidden" in tag for tag in articles] == [False] + [True] * (len(articles) - 1)
    assert len(re.findall(r"<script\b", shown)) == 1
    assert len(re.findall(r"<h1\b", shown)) == 1
    assert shown.count('class="t') == written.html.count('class="t')
    assert re.search(r'<button type="button" id="next">', shown)


def test_keys_step_through_tokens_and_say_what_they_are(written, tmp_path):
    press = """
    const group = document.querySelector(".example .tokens");
    group.focus();
    group.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    document.title = document.getElementById("said").textContent;
    """
    page = tmp_path / "pressed.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written.html)
    page.write_text(html.replace("</body>", f"<script>{press}</script></body>"))
    title = re.search(r"<title>(.*?)</title>", dom(page, tmp_path / "profile"))[1]
    assert re.match(r"“u.*” · id \d+ · not trained, label -100 · position 1 · turn 1, user", title)


def test_a_script_that_is_not_the_pages_own_does_not_run(written, tmp_path):
    page = tmp_path / "added.html"
    added = "<script>document.title = 'ran'</script></body>"
    page.write_text(written.html.replace("</body>", added))
    assert "<title>What is trained" in dom(page, tmp_path / "profile")
