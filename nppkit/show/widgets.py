"""Building blocks of the live sections: labelled controls with explanations beside them, pictures, and work that can be stopped.

Nothing here draws through pyplot or assumes the main thread: JupyterLab may deliver a control's change in another one.
"""

import base64
import functools
import html
import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import ipywidgets as w
import numpy as np
import torch
from IPython.display import Javascript, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nppkit.data.video import save_picture
from nppkit.errors import NppkitError

WITHOUT_KERNEL = "(live section: run this notebook in JupyterLab to use it)"
LABEL = {"description_width": "150px"}
WIDTH = "430px"


# JupyterLab takes keys from a focused control for itself: the down arrow on a menu goes to the next cell, B adds one, M turns
# this one into text (jupyter-widgets/ipywidgets#3912). An element with this attribute keeps them; those above it do not count.
OWN_KEYS = """document.addEventListener("focusin", event =>
  event.target.closest(".jupyter-widgets") && event.target.setAttribute("data-lm-suppress-shortcuts", "true"))"""


REACTING = threading.RLock()


def in_turn(react: Callable) -> Callable:
    """Reactions one after the other: each reads the controls when it begins, so the last one shows the newest values.

    JupyterLab may deliver two changes in two threads; drawn side by side, the older picture could end on top.
    """

    @functools.wraps(react)
    def reacting(*args, **kwargs):
        with REACTING:
            return react(*args, **kwargs)

    return reacting


def show(app: w.Widget) -> None:
    """Display a live section whose controls keep their keys; a page without a kernel shows one line in its place."""
    keys = w.Output()
    keys.append_display_data(Javascript(OWN_KEYS))
    bundle = w.VBox([app, keys])._repr_mimebundle_(include=None, exclude=None)
    display({**bundle, "text/plain": WITHOUT_KERNEL}, raw=True)


def control(kind: type[w.Widget], label: str, **settings) -> w.Widget:
    """An ipywidgets control with its label, wide enough to be read; it reports a value when it is let go of."""
    if "continuous_update" in kind.class_trait_names():
        settings.setdefault("continuous_update", False)
    return kind(description=label, style=LABEL, layout=w.Layout(width=WIDTH), **settings)


def picture(source: Figure | np.ndarray | Path, alt: str, scale: int = 1) -> str:
    """HTML of a figure, of uint8 pixels (H, W, 3) or (T, H, W, 3), which move, or of an image file, enlarged `scale` times.

    `alt` says what it shows.
    """
    pixels = drawn(source) if isinstance(source, Figure) else source
    pixels = np.asarray(Image.open(pixels).convert("RGB")) if isinstance(pixels, Path) else pixels
    frames = torch.tensor(pixels.reshape(-1, *pixels.shape[-3:])).permute(0, 3, 1, 2)
    save_picture(frames, buffer := io.BytesIO(), scale)
    data, kind = base64.b64encode(buffer.getvalue()).decode(), "png" if len(frames) == 1 else "gif"
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{data}" style="max-width:100%">'


def drawn(figure: Figure) -> np.ndarray:
    """A figure's pixels, uint8 (H, W, 3), drawn once; savefig draws it twice."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


class Form:
    """Controls by name, each in a row with a place for an explanation of its value."""

    def __init__(self, **controls: w.Widget):
        self.controls, self.changed = controls, next(iter(controls))
        self.notes = {name: w.HTML(bounds(c)) for name, c in controls.items()}
        self.box = w.VBox([w.HBox([c, self.notes[name]]) for name, c in controls.items()])
        for name, c in controls.items():
            c.observe(lambda _, name=name: setattr(self, "changed", name), "value")

    @property
    def values(self) -> dict[str, object]:
        return {name: c.value for name, c in self.controls.items()}

    def evaluate(self, function: Callable[..., object]) -> object | None:
        """function(**values); a NppkitError is explained beside the control that it names, or the one changed last."""
        for name, note in self.notes.items():
            note.value = bounds(self.controls[name])
        try:
            return function(**self.values)
        except NppkitError as error:
            word = str(error).split()[0].strip(":")
            named = (name for name, c in self.controls.items() if word in (name, c.description.lower()))
            self.notes[next(named, self.changed)].value = explanation(str(error))
            return None

    def view(self, draw: Callable[..., str]) -> w.HTML:
        """What draw(**values) returns as HTML, drawn again after every change; where it refuses, the last picture stays."""
        view, shown = w.HTML(), {}

        @in_turn
        def redraw() -> None:
            if shown == self.values:  # a control that moves another one reports after it
                return
            shown.update(self.values)
            view.value = self.evaluate(draw) or view.value

        for c in self.controls.values():
            c.observe(lambda _: redraw(), "value")
        redraw()
        return view


def bounds(c: w.Widget) -> str:
    """What explains that a number typed beyond them becomes the nearest one; a slider shows its own."""
    return f"{c.min:,} to {c.max:,}" if isinstance(c, w.BoundedIntText) else ""


def explanation(message: str) -> str:
    """A refusal as HTML, in words and not in colour alone."""
    return f'<span role="alert" style="color:#B04A00"><b>Not possible:</b> {html.escape(message)}</span>'


def live(controls: dict[str, w.Widget], draw: Callable[..., str]) -> w.VBox:
    """Controls, and below them what draw(**values) returns as HTML, drawn again after every change."""
    form = Form(**controls)
    return w.VBox([form.box, form.view(draw)])


class Task:
    """Work in small steps in a thread: a start button, a progress bar and a stop button.

    prepare() returns the number of steps (0: no end in sight) and an iterable of them; it may return None to refuse.
    """

    def __init__(self, label: str, prepare: Callable[[], tuple[int, Iterable] | None], icon: str = "play"):
        self.prepare, self.stopping, self.thread = prepare, threading.Event(), None
        self.start_button = w.Button(description=label, icon=icon, button_style="primary")
        self.stop_button = w.Button(description="Stop", icon="stop", disabled=True)
        self.bar = w.IntProgress(layout=w.Layout(width="200px", visibility="hidden"))
        self.status = w.HTML()
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.box = w.HBox([self.start_button, self.stop_button, self.bar, self.status])

    @in_turn
    def start(self) -> None:
        """Prepare, and begin unless it was refused or is going on."""
        if self.start_button.disabled:
            return
        if (prepared := self.prepare()) is None:
            return
        self.stopping.clear()
        self.bar.max, self.bar.value, self.bar.layout.visibility = prepared[0] or 1, 0, "visible" if prepared[0] else "hidden"
        self.start_button.disabled, self.stop_button.disabled, self.status.value = True, False, "running"
        self.thread = threading.Thread(target=self.run, args=(prepared[1],), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End after the step that is being worked on."""
        self.stopping.set()

    def run(self, steps: Iterable) -> None:
        """The thread's work: step by step until the end, a stop or an error, which is shown."""
        try:
            for done, _ in enumerate(steps, 1):
                self.bar.value = min(done, self.bar.max)
                if self.stopping.is_set():
                    break
            self.status.value = "stopped" if self.stopping.is_set() else "done"
        except Exception as error:  # shown instead of lost in a thread
            kind = "" if isinstance(error, NppkitError) else f"{type(error).__name__}: "
            self.status.value = explanation(f"{kind}{error}")
        finally:
            self.stop_button.disabled, self.bar.layout.visibility = True, "hidden"
            self.start_button.disabled = False  # last: from here on it may begin again
