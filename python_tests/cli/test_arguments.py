"""Argument types."""

import argparse

import pytest

from dynprune_rt.cli import arguments


def test_values():
    assert arguments.shape("1,3,224,224") == arguments.shape("1x3x224x224") == (1, 3, 224, 224)
    assert arguments.floats("0.5,1") == (0.5, 1.0)
    assert arguments.cores("0,2-4") == (0, 2, 3, 4)
    assert arguments.positive("7") == 7
    assert arguments.fraction("0.25") == 0.25


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (arguments.shape, "1,x"),
        (arguments.shape, "1,0,3"),
        (arguments.shape, ""),
        (arguments.floats, "a"),
        (arguments.cores, "-1"),
        (arguments.positive, "0"),
        (arguments.positive, "-1"),
        (arguments.fraction, "0"),
        (arguments.fraction, "1.5"),
        (arguments.fraction, "nan"),
    ],
)
def test_refusals_quote_the_text(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a"):
        kind(text)
