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


def said_after(written, tmp_path: Path, events: str) -> str:
    """Return what the page says of a token after these events on the first example's tokens.

    A headless window does not always have the focus, so the events are dispatched, not provoked.
    """
    press = f"""
    const group = document.querySelector(".example .tokens");
    const key = (name) => new KeyboardEvent("keydown", {{ key: name, bubbles: true }});
    for (const event of [{events}]) group.dispatchEvent(event);
    document.title = said.hidden ? "nothing" : said.textContent;
    """
    page = tmp_path / "pressed.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written.html)
    page.write_text(html.replace("</body>", f"<script>{press}</script></body>"))
    return re.search(r"<title>(.*?)</title>", dom(page, tmp_path / "profile"))[1]


def test_keys_step_through_tokens_and_say_what_they_are(written, tmp_path):
    title = said_after(written, tmp_path, 'new FocusEvent("focus"), key("ArrowRight")')
    assert re.match(r"“u.*” · id \d+ · not trained, label -100 · position 1 · turn 1, user", title)


def test_escape_hides_what_is_said_and_an_arrow_brings_it_back(written, tmp_path):
    focus = 'new FocusEvent("focus"), key("ArrowRight"), key("Escape")'
    assert said_after(written, tmp_path, focus) == "nothing"
    assert " · position 0 · " in said_after(written, tmp_path, focus + ', key("ArrowLeft")')


def test_a_script_that_is_not_the_pages_own_does_not_run(written, tmp_path):
    page = tmp_path / "added.html"
    added = "<script>document.title = 'ran'</script></body>"
    page.write_text(written.html.replace("</body>", added))
    assert "<title>What is trained" in dom(page, tmp_path / "profile")
