"""Progress in a batch log: how far, how long, and how long still."""

import pytest

from nppkit.machine import progress


def test_lines_say_how_long_it_takes(monkeypatch, capsys):
    """A line after each interval names what is done, the time so far and the time left; nothing is lost on the way."""
    monkeypatch.setenv(progress.BATCH, "1")
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.progress([1, 2, 3, 4], "codes")) == [1, 2, 3, 4]
    assert capsys.readouterr().out.splitlines() == ["codes 1/4 after 12 s, 36 s left", "codes 3/4 after 24 s, 8 s left"]


def test_a_bar_is_there_while_something_is_loaded(monkeypatch):
    """It moves by itself, also without a number, and is taken away at the end, however that comes."""
    seen = []
    monkeypatch.setattr(progress, "display", lambda data, raw: seen.append(data["text/html"]))
    monkeypatch.setattr(progress, "clear_output", lambda: seen.append("gone"))
    with pytest.raises(ImportError), progress.waiting("Loading"):
        seen.append("at work")
        raise ImportError
    assert seen == ["<progress></progress> Loading", "at work", "gone"]
