"""The page without a browser: valid, closed in itself, and true to every character."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from newtune.data.inspect.page import histogram, ticks
from tiny import tiny_tokenizer

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Checks the nesting and collects tokens as (classes, title, exact text), by example."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.examples: list[tuple[int, list[tuple[str, str, str]]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in <{tag}>"
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in VOID:
            self.open.append((tag, given))
        if "data-row" in given:
            self.examples.append((int(given["data-row"]), []))
        if self.is_token(given) and self.examples:
            self.examples[-1][1].append((given["class"], given["title"], ""))
        if "data-char" in given:
            self.add(chr(int(given["data-char"], 16)))

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop()[0] == tag, f"</{tag}> is out of place"

    def handle_data(self, data):
        inside = self.open[-1][1].get("class") if self.open else ""
        in_token = any(self.is_token(given) for _, given in self.open)
        if in_token and self.examples and inside not in ("ctl", "by"):
            self.add(data)

    def add(self, text):
        classes, title, before = self.examples[-1][1][-1]
        self.examples[-1][1][-1] = (classes, title, before + text)

    @staticmethod
    def is_token(given):
        return (given.get("class") or "").split(" ")[0] == "t" and "title" in given


@pytest.fixture(scope="module")
def page(written) -> Reader:
    return Reader(written.html)


def test_the_tokens_of_every_example_are_the_text_of_its_row(page, written):
    rows = (written.config.parent / "<i>rows & more.jsonl").read_text().splitlines()
    tokenizer = tiny_tokenizer()
    assert sorted(row for row, _ in page.examples) == list(range(1, 11))
    for number, tokens in page.examples:
        messages = json.loads(rows[number - 1])["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert "".join(text for _, _, text in tokens) == text
        ids = [int(re.search(r"· id (\d+) ·", title)[1]) for _, title, _ in tokens]
        assert ids == tokenizer.encode(text)


def test_what_is_trained_is_the_answer_and_its_end(page, written):
    rows = (written.config.parent / "<i>rows & more.jsonl").read_text().splitlines()
    for number, tokens in page.examples:
        answer = json.loads(rows[number - 1])["messages"][1]["content"]
        trained = "".join(text for classes, _, text in tokens if "y" in classes.split())
        assert trained == answer + "<|im_end|>"
        assert all(
            ("· trained, label" in title) == ("y" in classes.split())
            for classes, title, _ in tokens
        )


def test_text_stays_text(page, written):
    assert page.counts["script"] == page.counts["style"] == page.counts["h1"] == 1
    assert "alert(1)</script>" not in written.html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", written.html)
    assert "<i>rows" not in written.html


def test_nothing_comes_from_outside(page, written):
    links = [v for name, v in page.attributes if name in ("href", "src", "srcset", "data")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|url\(|@import", written.html)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]


def test_turns_boundaries_counts_and_choices_are_there(written):
    html = written.html
    assert re.search(r"micro-batches 1 to (\d) of \1, as the trainer gets them", html)
    assert "<b>assistant</b> <small>turn 2</small>" in html
    assert "attention is cut at 0, " in html
    assert "longer than 320 tokens" in html
    assert "`messages` is empty" in html
    assert "sequence_len" in html
    assert "chat_template tokenizer_default" in html
    assert "roles_to_train assistant" in html
    assert "positions restart at 0" in html


def test_histogram_counts_every_example_once():
    lengths = np.array([1, 9, 10, 10, 399], dtype=np.int32)
    bars = histogram(lengths)
    assert [(bar.start, bar.end, bar.count) for bar in bars if bar.count] == [
        (0, 9, 2), (10, 19, 2), (390, 399, 1),
    ]  # fmt: skip
    assert histogram(lengths[:0]) == []
    assert len(histogram(np.array([1_000_000], dtype=np.int32))) <= 40
    assert ticks(130, 3) == [0, 50, 100]
    assert ticks(3) == [0, 1, 2, 3]
