"""The bar draws on terminals only."""

import io

from dynprune_rt.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_silent_without_a_terminal():
    stream = io.StringIO()
    with ProgressBar("working", stream) as bar:
        bar(1, 2)
    assert stream.getvalue() == ""


def test_draws_and_clears():
    stream = Terminal()
    with ProgressBar("working", stream) as bar:
        bar(1, 2, "half way")
        bar(2, 2)
    text = stream.getvalue()
    assert "half way" in text
    assert " 50%" in text
    assert "100%" in text
    assert text.endswith("\r\x1b[K")


def test_redraws_are_limited():
    stream = Terminal()
    with ProgressBar("working", stream) as bar:
        for i in range(1000):
            bar(i, 1000)
    assert stream.getvalue().count("working") < 100
