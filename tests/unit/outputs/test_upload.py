"""What is uploaded, and what a failing hub leaves behind."""

import pytest

from newtune.errors import ExportError, SetupError
from newtune.outputs.upload import check_hub, upload_result
from newtune.plan.parts import HubPlan

HUB = HubPlan("me/model", private=True, revision="v1")


class Hub:
    def __init__(self, error=None):
        self.calls = {}
        self.error = error

    def create_repo(self, repo_id, **options):
        self.calls["create_repo"] = (repo_id, options)

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.calls["upload_folder"] = options


def test_the_result_goes_up_without_checkpoints(tmp_path):
    hub = Hub()
    upload_result(tmp_path, HUB, api=hub)
    assert hub.calls["create_repo"] == ("me/model", {"private": True, "exist_ok": True})
    sent = hub.calls["upload_folder"]
    assert (sent["repo_id"], sent["folder_path"], sent["revision"]) == (
        "me/model",
        str(tmp_path),
        "v1",
    )
    assert {"checkpoint-*", "merged/*"} <= set(sent["ignore_patterns"])


def test_a_failing_upload_names_where_the_result_is(tmp_path):
    with pytest.raises(ExportError, match=f"403 Forbidden.*{tmp_path.name}"):
        upload_result(tmp_path, HUB, api=Hub(OSError("403 Forbidden.\nmore")))


def test_a_missing_token_stops_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SetupError, match="hf auth login"):
        check_hub(HUB)
    check_hub(None)
