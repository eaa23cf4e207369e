from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from poa.errors import UserError
from poa.plots.figure import Cell, Row, heading, legend, printable, sheet
from poa.text import shortened


def grey(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_sheet_shows_every_picture_where_it_belongs(tmp_path: Path) -> None:
    rows = [Row("one\ntwo", [Cell(grey(10)), Cell(grey(20), frame="#ff0000")]), Row("$3", [Cell(grey(30))])]
    sheet(rows, out=tmp_path / "new" / "sheet.png")
    found = pixels(tmp_path / "new" / "sheet.png")
    places = {value: np.argwhere((found == value).all(axis=2)).mean(axis=0) for value in (10, 20, 30)}
    assert places[10][0] == pytest.approx(places[20][0], abs=2)
    assert places[10][1] == pytest.approx(places[30][1], abs=2)
    assert places[10][1] < places[20][1]
    assert places[10][0] < places[30][0]
    assert (found == (255, 0, 0)).all(axis=2).sum() > 100
    sheet(rows, out=tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "new" / "sheet.png").read_bytes()


def test_labels_are_not_cut_off(tmp_path: Path) -> None:
    sheet([Row("MMMMMMMMMMMM_128x6", [Cell(grey(200))])], out=tmp_path / "sheet.png")
    assert (pixels(tmp_path / "sheet.png")[:, :3] == 255).all()


def test_a_legend_names_all(tmp_path: Path) -> None:
    figure = Figure()
    handles = [figure.add_subplot().plot([1])[0] for _ in range(2)]
    legend(figure, columns=2, handles=handles, labels=["_hidden", "$x_1$"])
    texts = figure.legends[0].get_texts()
    assert [(text.get_text(), text.get_parse_math()) for text in texts] == [("_hidden", False), ("$x_1$", False)]


def test_sheets_that_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="200 rows of 1 pictures are too many"):
        sheet([Row("", [Cell(grey(1), "x")])] * 200, out=tmp_path / "sheet.png")


def test_words() -> None:
    assert printable("a\nb\u4e00") == "a\nb?"
    assert shortened("abcdef", 5) == "ab…ef"
    assert shortened("abcde", 5) == "abcde"
    assert len(shortened("x" * 99)) == 16


def test_long_titles_are_broken_into_lines() -> None:
    axes = Figure(figsize=(4, 3)).add_subplot()
    heading(axes, "a name of many words " * 4)
    lines = axes.get_title(loc="left").splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 32
