"""Hub datasets: what is asked of the library, and its errors in words that help."""

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from newtune.data.sources import Source, open_source
from newtune.errors import DataError

SOURCE = Source("someone/rows", name="small", revision="v1", split="train[1:]")


def test_rows_come_with_name_revision_and_split(monkeypatch):
    asked = {}

    def load(path, name, **arguments):
        asked.update(arguments, path=path, name=name)
        return Dataset.from_list([{"text": "a"}, {"text": "b"}, {"text": "c"}])

    monkeypatch.setattr("newtune.data.hub.load_dataset", load)
    rows = open_source(SOURCE)
    entries = [entry for chunk in rows.chunks() for entry in chunk]
    assert [entry.row["text"] for entry in entries] == ["b", "c"]
    assert entries[0].place == "someone/rows, row 2"
    assert asked == {"path": "someone/rows", "name": "small", "split": "train", "revision": "v1"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "gated.*HF_TOKEN"),
        (DatasetNotFoundError("Dataset 'x' doesn't exist."), "neither a local file.*private"),
        (ConnectionError("Couldn't reach the Hub"), "cannot be reached.*HF_HOME"),
        (ValueError('Unknown split "trian".\nmore'), r'Unknown split "trian"\.$'),
    ],
)
def test_an_error_names_the_dataset_and_what_to_do(monkeypatch, error, message):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("newtune.data.hub.load_dataset", load)
    with pytest.raises(DataError, match=f"(?s)^someone/rows: .*{message}"):
        open_source(SOURCE)
