"""Hub datasets, from a hub on this machine: what is read, and errors in words that help."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from hub_server import Break, Hub
from newtune.data.sources import Rows, Source, open_source
from newtune.errors import DataError

SECRET = "hf_never_to_be_seen_0123456789"


def lines(*texts: str) -> bytes:
    return "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()


def texts(source: Source) -> list[str]:
    return texts_of(open_source(source))


def texts_of(rows: Rows) -> list[str]:
    return [entry.row["text"] for chunk in rows.chunks() for entry in chunk]


def refused(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        open_source(source)
    return str(caught.value)


@pytest.fixture
def rows(hub: Hub) -> Hub:
    """Serve `someone/rows`: two files per split, two configurations, a branch and a tag."""
    card = b"""---
configs:
- config_name: all
  data_files:
  - {split: train, path: "data/train-*"}
  - {split: test, path: "data/test.jsonl"}
- {config_name: few, data_files: few.jsonl}
---
"""
    files = {
        "README.md": card,
        "data/train-0.jsonl": lines("a", "b"),
        "data/train-1.jsonl": lines("c", "d"),
        "data/test.jsonl": lines("t"),
        "few.jsonl": lines("few"),
    }
    hub.add("someone/rows", {**files, "few.jsonl": lines("old")}, kind="dataset", tag="v1")
    hub.add("someone/rows", {**files, "few.jsonl": lines("new")}, kind="dataset", branch="dev")
    hub.add("someone/rows", files, kind="dataset")
    return hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    def switch() -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    return switch


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "all"}, ["a", "b", "c", "d"]),
        ({"name": "all", "split": "test"}, ["t"]),
        ({"name": "all", "split": "train[1:3]"}, ["b", "c"]),
        ({"name": "all", "split": "train[-25%:]"}, ["d"]),
        ({"name": "few"}, ["few"]),
        ({"name": "few", "revision": "v1"}, ["old"]),
        ({"name": "few", "revision": "dev"}, ["new"]),
        ({"data_files": ("few.jsonl",)}, ["few"]),
        ({"data_files": ("data/train-1.jsonl", "few.jsonl")}, ["c", "d", "few"]),
        ({"data_files": ("data/train-*",)}, ["a", "b", "c", "d"]),
        ({"name": "all", "shards": 2, "shard": 1}, ["b", "d"]),
    ],
)
def test_what_is_asked_for_is_read(rows: Hub, options, expected) -> None:
    assert texts(Source("someone/rows", **options)) == expected


def test_a_place_is_the_dataset_and_the_row(rows: Hub) -> None:
    opened = open_source(Source("someone/rows", name="all", split="train[1:]"))
    (chunk,) = opened.chunks()
    assert chunk[0].place == "someone/rows, row 2"


def test_rows_are_mapped_and_travel_as_paths(rows: Hub) -> None:
    big = {"train.jsonl": lines(*(f"{n}" * 400 for n in range(1000)))}
    rows.add("someone/big", big, kind="dataset")
    opened = open_source(Source("someone/big"))
    assert len(opened) == 1000
    packed = pickle.dumps(opened)
    assert len(packed) < 2000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(opened.row, 1000).result() == opened.row(1000)
    columns = opened.table.table.column("text").chunks
    files = list((Path(datasets.config.HF_DATASETS_CACHE)).rglob("*.arrow"))
    assert sum(file.stat().st_size for file in files) > 400_000
    assert sum(len(column) for column in columns) == 1000


def test_the_content_decides_the_fingerprint(rows: Hub) -> None:
    first = open_source(Source("someone/rows", name="few")).fingerprint
    assert open_source(Source("someone/rows", name="few")).fingerprint == first
    files = dict(rows.files("someone/rows", kind="dataset"))
    rows.add("someone/rows", {**files, "few.jsonl": lines("changed")}, kind="dataset")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert open_source(Source("someone/rows", name="few")).fingerprint != first


def test_a_private_dataset_needs_its_token(hub: Hub, monkeypatch) -> None:
    hub.add("me/rows", {"train.jsonl": lines("a")}, kind="dataset", private=True)
    said = refused(Source("me/rows"))
    assert "no token is given" in said
    assert "HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", SECRET))
    assert texts(Source("me/rows")) == ["a"]


def test_a_gated_dataset_says_where_to_accept_and_whose_token_it_was(hub: Hub, monkeypatch) -> None:
    hub.add("someone/rows", {"train.jsonl": lines("a")}, kind="dataset", gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("me", SECRET))
    said = refused(Source("someone/rows"))
    assert f"gated: accept its terms at {hub.url}/datasets/someone/rows" in said
    assert "the token in HF_TOKEN (of `me`) is used" in said
    assert SECRET not in said
    hub.readers["someone/rows"] = {"me"}
    huggingface_hub.HfFileSystem.clear_instance_cache()
    assert texts(Source("someone/rows")) == ["a"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": "someone/row"}, "has no dataset `someone/row`.*Did you mean `someone/rows`"),
        ({"path": "other/rows"}, "has no dataset.*Did you mean `someone/rows`"),
        ({"path": "nobody/nothing-like-it"}, "has no dataset.*Check the spelling"),
        ({"path": "my rows"}, "written with `./` in front|is no hub id"),
        ({"revision": "v1.0"}, "no revision `v1.0`.*It has: main, dev, v1.*Did you mean `v1`"),
        ({"name": "al"}, "'al' not found. Available: .*'all', 'few'"),
        ({"name": "all", "split": "tests"}, r'Unknown split "tests".*train.*test'),
        (
            {"data_files": ("fw.jsonl",)},
            "holds no file `fw.jsonl`.*Did you mean `few.jsonl`.*It holds: README.md, data/test",
        ),
        ({"data_files": ("few.jsonl", "x/*.csv")}, r"holds no file `x/\*.csv`.*few.jsonl"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(rows: Hub, options, expected) -> None:
    said = refused(Source(**{"path": "someone/rows", **options}))
    with pytest.raises(DataError, match=f"(?s){expected}"):
        raise DataError(said)
    assert said.startswith(options.get("path", "someone/rows"))
    assert "cannot be reached" not in said


def test_a_token_that_is_not_valid_is_told(hub: Hub, monkeypatch) -> None:
    hub.add("someone/rows", {"train.jsonl": lines("a")}, kind="dataset")
    monkeypatch.setenv("HF_TOKEN", "hf_expired_12345678901")
    said = refused(Source("someone/rows"))
    assert "does not accept the token: the token in HF_TOKEN" in said
    assert "hf_expired" not in said


@pytest.mark.parametrize(
    "options",
    [
        {"name": "all"},
        {"name": "all", "split": "test"},
        {"name": "few", "revision": "v1"},
        {"data_files": ("few.jsonl",)},
        {"data_files": ("data/train-1.jsonl", "few.jsonl"), "revision": "dev"},
    ],
)
def test_a_filled_cache_works_offline(rows: Hub, offline, options) -> None:
    source = Source("someone/rows", **options)
    expected = texts(source)
    rows.requests.clear()
    offline()
    assert texts(source) == expected
    assert not rows.requests


def test_an_empty_cache_offline_says_how_to_fill_it(rows: Hub, offline) -> None:
    offline()
    said = refused(Source("someone/rows", revision="v1"))
    assert "HF_HUB_OFFLINE is set" in said
    assert "`someone/rows` at revision v1" in said
    assert "newtune preprocess CONFIG" in said
    assert not rows.requests


@pytest.mark.parametrize(
    "asked", [{"revision": "v1"}, {"data_files": ("few.jsonl",)}, {"name": "few"}]
)
def test_another_part_of_a_cached_dataset_is_not_taken_for_it(rows: Hub, offline, asked) -> None:
    texts(Source("someone/rows", name="all"))
    offline()
    refused(Source("someone/rows", **{"name": "all", **asked}))


def test_a_hub_that_went_away_gives_what_it_gave_before(rows: Hub, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("time.sleep", lambda _: None)
    source = Source("someone/rows", name="few", revision="v1")
    commit = rows.repos["dataset", "someone/rows"].tags["v1"]
    assert texts(source) == ["old"]
    rows.breaks.append(Break("", times=999))
    assert texts(source) == ["old"]
    assert f"the cached commit {commit} is used" in caplog.text
    refused(Source("someone/rows", name="few", revision="dev"))


def test_a_hub_that_goes_away_in_between_gives_nothing_else(rows: Hub, monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert texts(Source("someone/rows", name="few")) == ["few"]
    rows.breaks.append(Break("resolve/", times=999))
    refused(Source("someone/rows", name="few", revision="v1"))


def test_a_download_that_breaks_off_goes_on(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    content = lines(*(f"row {n}" for n in range(500)))
    hub.add("someone/rows", {"train.jsonl": content}, kind="dataset")
    hub.breaks.append(Break(r"resolve/.*/train\.jsonl", after=3000, method="GET"))
    assert len(texts(Source("someone/rows"))) == 500


@pytest.mark.parametrize(
    "wrong",
    [
        Break(r"resolve/.*/train\.jsonl", after=100, method="GET", times=99),
        Break(r"resolve/.*/train\.jsonl", status=503, times=99),
        Break("/", times=999),
    ],
    ids=["breaks off for ever", "out of order", "no answer at all"],
)
def test_a_hub_that_stays_away_is_told_without_a_traceback(hub: Hub, monkeypatch, wrong) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add("someone/rows", {"train.jsonl": lines("a" * 400)}, kind="dataset")
    hub.breaks.append(Break(wrong.path, wrong.after, wrong.status, wrong.times, wrong.method))
    assert refused(Source("someone/rows")).startswith("someone/rows: ")


def test_a_broken_file_is_told_in_the_librarys_words(hub: Hub) -> None:
    hub.add("someone/rows", {"train.jsonl": b'{"text": "a"}\n{"text": \n'}, kind="dataset")
    assert "JSON" in refused(Source("someone/rows"))


def test_a_dataset_without_data_is_told(hub: Hub) -> None:
    hub.add("someone/rows", {"README.md": b"nothing here"}, kind="dataset")
    said = refused(Source("someone/rows"))
    assert said.startswith("someone/rows: ")
    assert "data" in said
