"""Whose measurements one table shows."""

from dataclasses import replace

from choice.test_measured import ONE, SETUP
from poa.choice.measured import Measured
from poa.choice.subjects import common_setup


def test_the_setup_shown_is_that_of_most_subjects_then_of_most_networks() -> None:
    onnx = replace(SETUP, runtime="onnx")
    one, two = Measured(onnx, {"32x2": ONE}), Measured(SETUP, {"32x2": ONE, "64x3": ONE})
    assert common_setup([[one, two]]) == SETUP
    assert common_setup([[one], [one, two]]) == onnx
    assert common_setup([[one], [replace(one, setup=SETUP)]]) == onnx
    assert common_setup([[], []]) is None
