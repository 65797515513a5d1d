"""Blocks of the live sections: explanations beside controls, pictures, and work that can be stopped."""

import threading

import ipywidgets as w
import numpy as np
import pytest
from matplotlib.figure import Figure

from nppkit.errors import NppkitError
from nppkit.show.widgets import WITHOUT_KERNEL, Form, Task, control, live, picture, show


@pytest.fixture
def form():
    return Form(levels=control(w.IntSlider, "Levels #L", min=1, max=4), lam=control(w.Text, "Lambda", value="1/2"))


def refuse(message):
    def function(**values):
        raise NppkitError(message)

    return function


def test_controls_are_labelled_and_report_when_let_go(form):
    """Every control has its label, and a slider that is dragged does not ask for a picture at every pixel."""
    assert [c.description for c in form.controls.values()] == ["Levels #L", "Lambda"]
    assert not any(c.continuous_update for c in form.controls.values())


@pytest.mark.parametrize(("message", "beside"), [("lambda 7 is outside (0, 1)", "lam"), ("levels 9 is too many", "levels")])
def test_a_refusal_is_explained_beside_the_control_it_names(form, message, beside):
    """By its name or its label; the others stay empty, and the explanation goes when the value is accepted."""
    assert form.evaluate(refuse(message)) is None
    assert [name for name, note in form.notes.items() if message in note.value] == [beside]
    assert form.evaluate(lambda **values: values) == {"levels": 1, "lam": "1/2"}
    assert not any(note.value for note in form.notes.values())


def test_a_typed_number_has_its_bounds_beside_it():
    """A number beyond them becomes the nearest one, and the reader sees why; also after a refusal."""
    form = Form(seed=control(w.BoundedIntText, "Seed", min=0, max=10**6))
    form.controls["seed"].value = -5
    form.evaluate(refuse("seed 0 is taken"))
    assert "is taken" in form.notes["seed"].value
    assert form.evaluate(lambda seed: seed) == 0 and form.notes["seed"].value == "0 to 1,000,000"


def test_a_refusal_that_names_none_stands_beside_the_last_change(form):
    """The reader looks where the hand was; what the value says is text, not markup."""
    form.view(refuse("<b>nothing is left"))
    form.controls["lam"].value = "1/3"
    assert "&lt;b&gt;nothing is left" in form.notes["lam"].value and not form.notes["levels"].value


def test_live_draws_at_once_and_after_each_change():
    """The last picture stays when a value is refused."""

    def draw(p):
        if p == 3:
            raise NppkitError("p 3 does not divide the grid")
        return f"side {p}"

    controls = {"p": control(w.IntSlider, "Patch side", min=1, max=4)}
    view = live(controls, draw).children[1]
    assert view.value == "side 1"
    controls["p"].value = 2
    assert view.value == "side 2"
    controls["p"].value = 3
    assert view.value == "side 2"


def test_pictures_are_png_with_words():
    """A figure or pixels become an image tag whose alternative text is escaped; those of several times move."""
    figure = Figure()
    figure.subplots().plot([1, 2])
    for source in (figure, np.zeros((2, 3, 3), np.uint8)):
        tag = picture(source, 'a "picture"')
        assert "data:image/png;base64,iVBOR" in tag and 'alt="a &quot;picture&quot;"' in tag
    assert "data:image/gif;base64,R0lGOD" in picture(np.arange(36, dtype=np.uint8).reshape(2, 2, 3, 3), "moving")


def finish(task):
    task.thread.join(10)
    assert not task.thread.is_alive() and not task.start_button.disabled and task.stop_button.disabled


def test_task_runs_to_its_end():
    """The bar counts the steps, and the start button comes back."""
    seen = []
    task = Task("Go", lambda: (3, (seen.append(i) for i in range(3))))
    task.start_button.click()
    finish(task)
    assert (seen, task.bar.value, task.status.value) == ([0, 1, 2], 3, "done")


def test_task_stops_after_the_step_it_is_at():
    """Stop ends an endless task; a second start while it runs is ignored; it can be started again."""
    begun, go_on = threading.Event(), threading.Event()

    def steps():
        while True:
            begun.set()
            go_on.wait(10)
            yield

    task = Task("Go", lambda: (0, steps()))
    task.start()
    first = task.thread
    assert begun.wait(10)
    task.start()
    assert task.thread is first and not task.stop_button.disabled
    task.stop_button.click()
    go_on.set()
    finish(task)
    assert task.status.value == "stopped"


def test_task_begins_again_as_soon_as_its_button_is_on():
    """A click at the moment in which the button comes back is not lost."""
    runs = []
    task = Task("Go", lambda: (1, iter([runs.append(1)])))

    def again(change):
        if not change["new"] and len(runs) < 2:
            task.start()

    task.start_button.observe(again, "disabled")
    task.start()
    first = task.thread
    first.join(10)
    finish(task)
    assert len(runs) == 2 and task.thread is not first


def test_task_shows_errors_and_refusals():
    """A step's error is shown instead of lost in the thread; a refused preparation starts nothing."""

    def steps():
        yield
        raise NppkitError("the file is gone")

    task = Task("Go", lambda: (2, steps()))
    task.start()
    finish(task)
    assert "the file is gone" in task.status.value
    refused = Task("Go", lambda: None)
    refused.start()
    assert refused.thread is None


def test_every_live_section_has_a_line_without_a_kernel(capsys):
    """What a page without a kernel shows in a live section's place is said in words."""
    show(w.HTML("live"))
    assert WITHOUT_KERNEL in capsys.readouterr().out


def test_the_newest_values_are_drawn_last():
    """Two changes in two threads: the picture that stays is that of the values that the controls show."""
    drawing, go_on = threading.Event(), threading.Event()

    def draw(level):
        if level == 2:
            drawing.set()
            go_on.wait(10)
        return f"level {level}"

    slider = control(w.IntSlider, "Level", min=1, max=3, value=1)
    app = live({"level": slider}, draw)
    older, newer = (threading.Thread(target=setattr, args=(slider, "value", value)) for value in (2, 3))
    older.start()
    assert drawing.wait(10)
    newer.start()
    newer.join(0.2)
    go_on.set()
    older.join(10)
    newer.join(10)
    assert app.children[1].value == "level 3"
