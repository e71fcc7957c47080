"""Argument types and options that several subcommands have."""

from __future__ import annotations

import argparse


def shape(text: str) -> tuple[int, ...]:
    """``1,3,224,224`` or ``1x3x224x224``."""
    try:
        dims = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        dims = ()
    if not dims or min(dims) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1,3,224,224")
    return dims


def floats(text: str) -> tuple[float, ...]:
    """``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406") from None


def cores(text: str) -> tuple[int, ...]:
    """``0,2,4`` or ``0-3``."""
    result: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            result += range(int(low), int(high or low) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of cores such as 0,2 or 0-3") from None
    return tuple(result)


def positive(text: str) -> int:
    """An integer above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def fraction(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share in (0, 1]")
    return value


def add_threads(parser: argparse.ArgumentParser, default: int = 0) -> None:
    """``--threads``."""
    about = "0: one per core" if default == 0 else "default: %(default)s"
    parser.add_argument("--threads", type=int, default=default, metavar="N", help=f"threads to run on ({about})")


def add_normalization(parser: argparse.ArgumentParser) -> None:
    """``--mean`` and ``--std`` for uint8 images."""
    group = parser.add_argument_group("uint8 images", "x = (pixel / 255 - mean) / std, per channel")
    group.add_argument("--mean", type=floats, metavar="R,G,B", help="for example 0.485,0.456,0.406")
    group.add_argument("--std", type=floats, metavar="R,G,B", help="for example 0.229,0.224,0.225")
