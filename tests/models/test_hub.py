"""Models are handed to the client of the Hugging Face hub; a stand-in takes its place."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError

from poa.errors import UserError
from poa.models import hub


class Page(NamedTuple):
    repo_id: str

    def __str__(self) -> str:
        return f"https://hub/{self.repo_id}"


def test_a_folder_is_uploaded_to_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def create(name: str, **options: Any) -> Page:
        calls.append((name, options))
        return Page(f"me/{name}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "create_repo", create)
    monkeypatch.setattr(hub, "upload_folder", lambda **options: calls.append(options))
    assert hub.upload(tmp_path, "small") == "https://hub/me/small"
    assert calls[0] == ("small", {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("me/small", tmp_path)


def test_an_upload_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(hub, "create_repo", refused)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"is written, but could not be uploaded to me/x \(LocalToken.*Log in with"):
        hub.upload(tmp_path, "me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"is not uploaded to me/x: HF_HUB_OFFLINE is set\. Unset it"):
        hub.upload(tmp_path, "me/x")
