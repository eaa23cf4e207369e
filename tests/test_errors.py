import pytest

from poa.errors import counted


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1352, "image", "1,352 images"),
        (2, "class", "2 classes"),
        (2, "batch", "2 batches"),
        (2, "epoch", "2 epochs"),
        (3, "category", "3 categories"),
    ],
)
def test_one_thing_is_named_in_the_singular(number: int, noun: str, told: str) -> None:
    assert counted(number, noun) == told
