"""Rows at an address: over a web server on this machine, and fsspec's file system in memory."""

import gzip
import json
import logging
import sys

import fsspec
import pytest

from newtune.data.sources import Source, open_source
from newtune.data.sources.remote import Address, _file_system, is_address
from newtune.errors import DataError, SetupError
from web import serve

ROWS = [{"n": n} for n in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def site():
    with serve() as site:
        yield site


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def read(tmp_path):
    def read(path, **options):
        source = Source(path, cache_folder=tmp_path / "cache", base_folder=tmp_path, **options)
        (entries,) = open_source(source).chunks()
        return entries

    return read


def numbers(entries):
    return [entry.row["n"] for entry in entries]


def test_a_file_of_the_web_is_downloaded_once(site, read):
    site.files["/data/rows.jsonl"] = LINES
    site.etags["/data/rows.jsonl"] = '"one"'
    entries = read(f"{site.url}/data/rows.jsonl?download=true")
    assert numbers(entries) == [0, 1, 2, 3, 4]
    assert entries[1].place == f"{site.url}/data/rows.jsonl, line 2"  # without the query
    assert site.fetched == ["/data/rows.jsonl?download=true"]
    assert numbers(read(f"{site.url}/data/rows.jsonl?download=true", split="train[1:3]")) == [1, 2]
    assert len(site.fetched) == 1


def test_a_changed_file_is_fetched_anew(site, read):
    path = "/rows.jsonl.gz"
    site.files[path], site.etags[path] = gzip.compress(LINES), '"one"'
    assert numbers(read(site.url + path)) == [0, 1, 2, 3, 4]
    site.files[path], site.etags[path] = gzip.compress(LINES[:9]), '"two"'
    assert numbers(read(site.url + path)) == [0]


def test_without_the_server_the_copy_is_used_and_said_so(read, caplog):
    with serve() as site:
        site.files["/rows.jsonl"] = LINES
        url = f"{site.url}/rows.jsonl"
        read(url)
        other = f"{site.url}/other.jsonl"
    with caplog.at_level(logging.INFO, "newtune"):
        assert numbers(read(url)) == [0, 1, 2, 3, 4]
    assert "using the copy that was downloaded before" in caplog.text
    with pytest.raises(DataError, match=r"other.jsonl: cannot be reached, and was not downloaded"):
        read(other)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"there is no such file \(HTTP status 404\)"),
        (403, r"access is refused \(HTTP status 403\)"),
        (500, r"cannot be reached, and was not downloaded before: HTTP status 500"),
    ],
)
def test_a_status_is_said(site, read, status, message):
    site.files["/rows.jsonl"] = LINES
    site.statuses["/rows.jsonl"] = status
    with pytest.raises(DataError, match=message) as raised:
        read(f"{site.url}/rows.jsonl?signature=secret")
    assert "secret" not in str(raised.value)


def test_a_download_that_breaks_off_leaves_nothing(site, read, tmp_path):
    site.files["/rows.jsonl"] = LINES * 1000
    site.cut.add("/rows.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl: the download (broke off|is not whole)"):
        read(f"{site.url}/rows.jsonl")
    assert not list((tmp_path / "cache").rglob("rows.jsonl"))
    site.cut.clear()
    assert len(read(f"{site.url}/rows.jsonl", split="train[:10]")) == 10


def test_a_web_page_is_no_data(site, read):
    site.files["/blob/rows.jsonl"] = b"\n<!DOCTYPE html><html><body>{}</body></html>"
    with pytest.raises(DataError, match=r"gives a web page, not data.*`raw` or `resolve`"):
        read(f"{site.url}/blob/rows.jsonl")


def test_data_files_may_be_addresses(site, read, tmp_path):
    for n, row in enumerate(ROWS):
        site.files[f"/part{n}.jsonl"] = json.dumps(row).encode()
    (tmp_path / "here.jsonl").write_text('{"n": 9}')
    files = (f"{site.url}/part3.jsonl", "here.jsonl", f"{site.url}/part1.jsonl")
    assert numbers(read("json", data_files=files)) == [3, 9, 1]
    assert numbers(read(site.url, data_files=("part2.jsonl", "part0.jsonl"))) == [2, 0]


def test_an_unknown_kind_asks_for_one(site, read):
    site.files["/download"] = LINES
    with pytest.raises(DataError, match=r"/download: what kind of file is this\? Set `ds_type`"):
        read(f"{site.url}/download?id=7")
    assert numbers(read(f"{site.url}/download?id=7", kind="json")) == [0, 1, 2, 3, 4]


def test_folders_and_patterns_of_a_bucket(memory, read):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "README.md"):
        memory.pipe(f"/bucket/data/{name}", json.dumps({"n": name}).encode())
    assert numbers(read("memory://bucket/data")) == ["train-0.jsonl", "train-1.jsonl"]
    assert numbers(read("memory://bucket/data/", split="test")) == ["test.jsonl"]
    assert numbers(read("memory://bucket/data/*.jsonl"))[0] == "test.jsonl"
    assert numbers(read("memory://bucket/data", data_files=("test.jsonl",))) == ["test.jsonl"]
    entries = read("memory://bucket/data")
    assert entries[0].place == "memory://bucket/data/train-0.jsonl, line 1"
    memory.pipe("/bucket/data/train-0.jsonl", b'{"n": "changed"}')
    assert numbers(read("memory://bucket/data"))[0] == "changed"
    with pytest.raises(DataError, match=r"no file matches"):
        read("memory://bucket/*.csv")
    with pytest.raises(DataError, match=r"there is no such file"):
        read("memory://bucket/nothing.jsonl")


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [
        ("https://host/rows.jsonl", "fsspec.implementations.http", "http"),
        ("s3://bucket/rows.jsonl", "s3fs", "s3"),
        ("gs://bucket/rows.jsonl", "gcsfs", "gcs"),
        ("az://bucket/rows.jsonl", "adlfs", "azure"),
        ("abfs://bucket/rows.jsonl", "adlfs", "azure"),
    ],
)
def test_a_missing_package_says_how_to_install_it(read, monkeypatch, address, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, address.split(":")[0], raising=False)
    with pytest.raises(SetupError, match=rf"pip install 'newtune\[{extra}\]'"):
        read(address)


def test_an_unknown_protocol_is_refused(read):
    with pytest.raises(DataError, match=r"`htps://` is not known. Use one of http://, https://"):
        read("htps://host/rows.jsonl")


def test_what_is_shown_of_an_address_holds_no_secret():
    assert Address("https://me:key@host/a/rows.jsonl?sig=x").shown == "https://host/a/rows.jsonl"
    assert Address("s3://bucket/a/rows.jsonl").shown == "s3://bucket/a/rows.jsonl"
    assert Address("https://host/a%20b/ro ws.jsonl?x=/y.csv").file_name == "ro_ws.jsonl"
    assert is_address("hf://datasets/me/rows")
    assert not is_address("me/rows")
    assert not is_address("C:/rows.jsonl")


def test_each_protocol_has_its_extra():
    import tomllib
    from pathlib import Path

    from newtune.data.sources.remote import EXTRAS

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    assert _file_system(Address("memory://x")) is not None
