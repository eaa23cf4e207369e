import os
from pathlib import Path

import numpy as np
import pytest

from poa.data.blocks import BLOCK, Blocks, most_kept
from poa.errors import UserError

WHOLE = np.random.default_rng(0).bytes(3 * BLOCK + 100)


class Server:
    """Gives parts of a file, or all of it where it knows no parts."""

    def __init__(self, *, gives_parts: bool = True) -> None:
        self.asked: list[tuple[int, int]] = []
        self.gives_parts = gives_parts

    def fetch(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return WHOLE[offset : offset + length] if self.gives_parts else WHOLE

    def read(self, blocks: Blocks, offset: int, length: int, file: str = "a") -> bool:
        found = blocks.read(offset, length, size=len(WHOLE), file=file, fetch=self.fetch)
        return found == WHOLE[offset : offset + length]


def test_each_block_is_fetched_once(tmp_path: Path) -> None:
    server, blocks = Server(), Blocks(tmp_path, 10**9)
    for span in ((BLOCK + 5, 10), (BLOCK - 1, 3), (3 * BLOCK + 50, 50), (0, len(WHOLE)), (7, BLOCK), (5, 0)):
        assert server.read(blocks, *span)
    assert server.asked == [(BLOCK, BLOCK), (0, BLOCK), (3 * BLOCK, 100), (2 * BLOCK, BLOCK)]
    assert server.read(Blocks(tmp_path, 10**9), 0, len(WHOLE))  # another process
    assert len(server.asked) == 4
    assert server.read(blocks, 0, 9, file="another, or changed")
    assert len(server.asked) == 5
    next(path for path in tmp_path.glob("*/*") if path.stat().st_size == 100).write_bytes(b"cut short")
    assert server.read(blocks, 3 * BLOCK, 100)
    assert len(server.asked) == 6


def test_all_that_a_server_gives_is_kept(tmp_path: Path) -> None:
    server, blocks = Server(gives_parts=False), Blocks(tmp_path, 10**9)
    assert server.read(blocks, 2 * BLOCK, 7)
    assert server.read(blocks, 0, len(WHOLE))
    assert len(server.asked) == 1


def test_blocks_that_were_read_longest_ago_go(tmp_path: Path) -> None:
    server, blocks = Server(), Blocks(tmp_path, 8 * BLOCK)
    for number in range(20):
        assert server.read(blocks, 0, BLOCK, file=str(number))
        assert server.read(blocks, 0, BLOCK, file="0")
        for path in tmp_path.glob("*/*"):  # or two may fall into one tick of the clock
            age = path.stat().st_mtime_ns - 10**9
            os.utime(path, ns=(age, age))
    assert len(list(tmp_path.glob("*/*"))) <= 8
    assert len(server.asked) == 20
    assert server.read(blocks, 0, BLOCK, file="19")
    assert len(server.asked) == 20
    assert server.read(blocks, 0, BLOCK, file="1")
    assert len(server.asked) == 21


def test_nothing_is_kept_where_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for blocks in (Blocks(tmp_path / "file", 10**9), Blocks(tmp_path / "none", 0)):
        server = Server()
        assert server.read(blocks, 0, 5)
        assert server.read(blocks, 0, 5)
        assert len(server.asked) == 2


def test_how_much_is_kept_is_said_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POA_CACHE_GB", raising=False)
    assert most_kept() == 20 * 10**9
    monkeypatch.setenv("POA_CACHE_GB", "0.5")
    assert most_kept() == 5 * 10**8
    for wanted in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("POA_CACHE_GB", wanted)
        with pytest.raises(UserError, match=f"POA_CACHE_GB must be a number of gigabytes such as 20, got '{wanted}'"):
            most_kept()
