"""What a listing says is what a table gives back."""

from pathlib import Path

import numpy as np

from poa.data.content import CONTENT
from poa.data.entries import Entries, Entry
from poa.data.sources import Listing, Source
from poa.data.table import Table, write_contents, write_listing


def test_images_in_several_archives_are_read_there_and_not_looked_at_where_their_digests_are_known(
    tmp_path: Path,
) -> None:
    entries = Entries()
    for entry in (Entry("a/1.png", 3, 1, file=1), Entry("b/2.png", 2, 0, file=0)):
        entries.append(entry)
    files = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for file, content in zip(files, (b"xy", b"-abc"), strict=True):
        file.write_bytes(content)
    folder = tmp_path / "table"
    folder.mkdir()
    contents = np.array([(0, 0, 7), (0, 0, 9)], CONTENT)
    listing = Listing(entries=entries, place=list(map(str, files)), contents=contents)
    write_listing(listing, Source("tar", tmp_path, text="two tars"), folder)
    write_contents(folder, earlier=(), progress=lambda *_: 1 / 0)  # nothing is counted, as nothing is looked at
    table = Table.load(folder)
    assert [table.reader.read(table.entry(row)) for row in (0, 1)] == [b"abc", b"xy"]
    assert table.reader.parts(table.entry(0))(1, 2) == b"bc"
    assert (table.contents["digest"].tolist(), table.source) == ([7, 9], "two tars")
