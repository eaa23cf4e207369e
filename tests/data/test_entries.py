"""The image files of a source, in columns."""

from poa.data.entries import Entries, Entry

FILES = [
    Entry("b/2.jpg", 3),
    Entry("a.jpg", 2**40, 2**41, 7, True, 3),
    Entry("\udce9/1.jpg", 0, 5),
    Entry("ä/1.jpg", 1),
]


def test_entries_are_what_was_added() -> None:
    entries = Entries()
    for file in FILES:
        entries.append(file)
    assert (len(entries), list(entries), entries[1]) == (4, FILES, FILES[1])
    assert [type(value) for value in next(iter(entries))] == [str, int, int, int, bool, int]
    assert {name: column.tolist() for name, column in entries.numbers.items()} == {
        "size": [3, 2**40, 0, 1],
        "offset": [0, 2**41, 5, 0],
        "stored": [0, 7, 0, 0],
        "deflated": [0, 1, 0, 0],
        "file": [0, 3, 0, 0],
    }


def test_entries_are_sorted_by_name_with_all_that_belongs_to_them() -> None:
    entries = Entries()
    for file in FILES:
        entries.append(file)
    assert [FILES[row] for row in entries.sort()] == list(entries) == sorted(FILES)
    entries.append(FILES[0])
    assert list(entries)[-1] == FILES[0]
