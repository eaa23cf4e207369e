import pytest
import torch

from poa.errors import UserError
from poa.evaluation.protocol import check_features, check_labels, check_widths, unit_rows


def test_finds_what_is_not_finite_in_the_last_row() -> None:
    features = torch.zeros(20_000, 1)
    check_features(features, name="test")
    features[-1] = -torch.inf
    with pytest.raises(UserError, match="features of the test images hold NaN or infinity"):
        check_features(features, name="test")


def test_rows_are_needed_whatever_the_least_is() -> None:
    with pytest.raises(UserError, match="too few test images: got 0, at least 1"):
        check_features(torch.zeros(0, 3), name="test", least=0)


def test_labels_go_up_to_the_last_class() -> None:
    features, labels = torch.zeros(3, 2), torch.tensor([0, 1, 3])
    check_labels(features, labels, name="test")
    check_labels(features, labels, name="test", num_classes=4)
    with pytest.raises(UserError, match="go from 0 to 3; with 3 classes they go from 0 to 2"):
        check_labels(features, labels, name="test", num_classes=3)


def test_widths() -> None:
    check_widths(torch.zeros(3, 2), torch.zeros(4, 2), names=("training", "test"))
    with pytest.raises(UserError, match="training images have width 2, those of the test images 5"):
        check_widths(torch.zeros(3, 2), torch.zeros(4, 5), names=("training", "test"))


def test_unit_rows_have_length_1_or_0() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert unit_rows(rows, torch.device("cpu")).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
