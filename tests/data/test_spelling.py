from poa.data.spelling import Spellings


def test_a_name_is_found_however_it_is_spelt() -> None:
    names = ["a/b.png", "A/c.png", "a/C.png", "caf\u00e9/x.png"]
    found = Spellings(names).find
    assert [found(name) for name in names] == [0, 1, 2, 3]
    assert [found(name) for name in ("./a/b.png", "a\\b.png", "/a//b.png", "a/x/../B.PNG")] == [0] * 4
    assert found("cafe\u0301/x.png") == 3
    assert found("a/c.png") is None, "it could be either"
    assert found("b.png") is None
