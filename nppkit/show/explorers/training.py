"""A training in the notebook that draws its own curve, can be stopped, and be repeated with another schedule."""

from collections.abc import Callable, Iterator
from functools import partial

import ipywidgets as w
import torch
from torch import Tensor, nn

from nppkit.schedule import learning_rate, multi_scale_segments, segment_at
from nppkit.show import plots
from nppkit.show.widgets import Form, Task, control, picture


class LiveTraining:
    """Train `model` from its `initial` weights on loss(codes, labels, p) with a schedule of the reader's choice.

    Its loss is drawn while it runs, and it can be stopped. codes: (n, N), labels: (n,). Every training starts from the same
    weights and sees the same batches of 64.
    """

    def __init__(self, model: nn.Module, initial: dict[str, Tensor], loss: Callable, codes: Tensor, labels: Tensor):
        self.model, self.initial, self.steps = model, initial, partial(training_steps, model, loss, codes, labels)
        self.form = Form(
            levels=control(w.IntSlider, "Levels #L", min=1, max=3, value=2),
            lam=control(w.Text, "Lambda", value="1/2"),
            epochs=control(w.IntSlider, "Epochs of 10 steps", min=4, max=100, value=20),
            lr=control(w.FloatLogSlider, "Learning rate", base=10, min=-4, max=-2, step=0.1, value=1e-3),
        )
        self.view, self.count, self.curves = w.HTML(), 0, {}
        self.task = Task("Train", lambda: self.form.evaluate(self.prepare))
        self.box = w.VBox([self.form.box, self.task.box, self.view])

    def prepare(self, levels: int, lam: str, epochs: int, lr: float) -> tuple[int, Iterator]:
        """Begin a training whose curve is kept beside the last two."""
        segments = multi_scale_segments(epochs, levels, lam)
        total = 10 * epochs
        self.model.load_state_dict(self.initial)
        shown = ", ".join(f"{c.description} {c.value}" for c in self.form.controls.values())
        self.count += 1
        self.curves = dict([*self.curves.items()][-2:]) | {f"{self.count}: {shown}": []}
        return total, self.draw(self.steps(segments, 10, lr), total)

    def draw(self, steps: Iterator[float], total: int) -> Iterator[None]:
        """Take one step after another, and draw the losses twenty times on the way."""
        losses = list(self.curves.values())[-1]
        for loss in steps:
            losses.append(loss)
            if len(losses) % max(1, total // 20) == 0 or len(losses) == total:
                self.view.value = picture(plots.losses(self.curves), f"losses after {len(losses)} of {total} steps")
            yield


def training_steps(model: nn.Module, loss: Callable, codes, labels, segments, steps_per_epoch: int, lr: float) -> Iterator[float]:
    """One optimiser step after another through the segments; yields each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for step in range(segments[-1].end * steps_per_epoch):
        optimizer.param_groups[0]["lr"] = learning_rate(step, segments, steps_per_epoch, lr)
        batch = torch.randint(len(codes), (64,), generator=torch.Generator().manual_seed(step))
        value = loss(codes[batch], labels[batch], segments[segment_at(step, segments, steps_per_epoch)].patch_size)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield value.item()
