"""Weights by timm's names and models for the hub: with `data/hub` and `data/remote` all that connects to servers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, create_repo, upload_folder

from poa.errors import UserError, first_line

PREFIXES = ("hf-hub:", "hf_hub:")
"""Begin names of models of the hub that timm does not list."""
PATIENCE_SECONDS = 10.0
"""How long a server may take to answer."""
VALID_SECONDS = 600.0
"""How long it counts that a server has answered or has not."""


def create_model(name: str, **arguments: Any) -> Any:
    """A timm model of which something has to be fetched, unless it was fetched before.

    Raises:
        ConnectionError: That is not possible; says why.
    """
    unreachable = _why_unreachable()
    try:
        with _offline(unreachable is not None):  # what was downloaded before is found offline
            _check_address(name, unreachable)
            return timm.create_model(name, **arguments)
    except OSError as error:
        raise ConnectionError(unreachable or first_line(error)) from None


def upload(folder: Path, name: str) -> str:
    """Hand the folder of a model to the hub; the address of its page.

    A repository of that name which is not there yet is made, and is private.

    Args:
        folder: All files in it are uploaded.
        name: Of the repository: ``OWNER/MODEL``, or ``MODEL`` of the user who is logged in.

    Raises:
        UserError: That is not possible; says why.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{folder} is not uploaded to {name}: HF_HUB_OFFLINE is set. Unset it and try again.")
    try:
        page = create_repo(name, private=True, exist_ok=True)
        upload_folder(repo_id=page.repo_id, folder_path=folder, commit_message=f"Add {folder.resolve().name}")
    except Exception as error:  # of the client of the hub, and of the network
        raise UserError(
            f"{folder} is written, but could not be uploaded to {name} ({first_line(error)}). Log in with `hf auth "
            "login`, check the name and the connection, and run the same command again."
        ) from None
    return str(page)


def _why_unreachable() -> str | None:
    """Why the server may not be asked or does not answer; tried once, since its client would try again and again."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and they were not downloaded before"
    return _why_silent(constants.ENDPOINT, int(time.monotonic() // VALID_SECONDS))


@lru_cache(maxsize=1)
def _why_silent(server: str, _period: int) -> str | None:
    """Why a server does not answer; asked once in a period, as a command may build a network several times."""
    try:
        with urlopen(Request(server, method="HEAD"), timeout=PATIENCE_SECONDS):
            return None
    except HTTPError:
        return None
    except OSError as error:
        return f"{server} does not answer: {getattr(error, 'reason', error)}"


def _check_address(name: str, unreachable: str | None) -> None:
    """Keep timm from other servers as well, which it asks for a few old models."""
    if unreachable is None or name.startswith(PREFIXES):
        return
    known = timm.get_pretrained_cfg(name)
    if known is None or known.hf_hub_id or not known.url:
        return
    if not Path(torch.hub.get_dir(), "checkpoints", known.url.rpartition("/")[2]).exists():
        raise ConnectionError(unreachable)


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
