import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from poa.pictures.kinds import files_of
from poa.pictures.page import Picture, Section, html, write
from poa.pictures.patches import Match, Pair, pairs


class Reader(HTMLParser):
    """Notes what a page refers to, and that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


SECTIONS = [
    Section("colours", "As colours", "What & how", ["<none>: no"], [Picture("a b.png", 'cat "x" <1>')]),
    Section("matches", "Matches", "Lines", [], []),
]


def test_page(tmp_path: Path) -> None:
    path = write(tmp_path, "What <run> sees", "64x3", SECTIONS)
    assert path == tmp_path / "index.html"
    assert list(tmp_path.iterdir()) == [path]
    text = path.read_text()
    assert text == html("What <run> sees", "64x3", SECTIONS)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.images == [{"src": "a%20b.png", "alt": 'cat "x" <1>', "loading": "lazy"}]
    assert reader.links == ["#colours", "#matches", "a%20b.png"]
    assert "What &lt;run&gt; sees" in text
    assert "&lt;none&gt;: no" in text
    assert "http" not in text, "the page needs nothing but its pictures"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n<b>")
    shown = r"caf\xe9\n&lt;b&gt;"
    text = write(tmp_path, odd, odd, [Section("colours", "C", "T", [odd], [Picture("a.png", odd)])]).read_text("utf-8")
    assert text.count(shown) == 6
    assert files_of("matches", ["a b", "a/b"]) == ["matches-00-a-b.png", "matches-01-a-b.png"]
    assert files_of("matches", ["A", "a", "x" * 300])[2] == f"matches-02-{'x' * 100}.png"
    assert files_of("matches", ["64x3", odd]) == ["matches-64x3.png", "matches-caf-b-.png"]


def grey(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_pairs(tmp_path: Path) -> None:
    pair = Pair("32x1", grey(10), grey(20), [Match(0, 3, 0.9), Match(3, 3, 0.5)], 2)
    pairs([pair, pair._replace(is_wrong=[False, True]), pair._replace(matches=[])], out=tmp_path / "pairs.png")
    found = pixels(tmp_path / "pairs.png")
    lines = (found.max(axis=2).astype(int) - found.min(axis=2) > 150).sum
    assert found.shape[1] > found.shape[0]
    assert lines() > 1000
    pairs([pair], out=tmp_path / "one.png")
    pairs([pair._replace(is_wrong=[True, True])], out=tmp_path / "dashed.png")

    def inked(name: str) -> int:
        each = pixels(tmp_path / name)
        return int((each.max(axis=2).astype(int) - each.min(axis=2) > 150).sum())

    assert inked("dashed.png") < 0.9 * inked("one.png")
