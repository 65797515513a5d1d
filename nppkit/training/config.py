"""The `training` section of a preset."""

from typing import Literal

from nppkit.settings import Above0, Below1, Bool, Count, Number, Positive, Share, section

Patch = Literal["mean", "offset", "attention", "linear", "heads"]


@section
class TrainingConfig:
    """One run's training; the defaults are the paper's (Section 3.1). An epoch here is a schedule epoch."""

    epochs: Positive = 300
    steps_per_epoch: Positive = 4
    batch_size: Positive = 64
    lr: Above0 = 1e-4
    end_lr: Number = 1e-5
    warmup_epochs: Number = 1.0
    decay_fraction: Share = 0.2
    beta1: Below1 = 0.9
    beta2: Below1 = 0.95
    weight_decay: Number = 0.05
    grad_clip: Above0 = 1.0
    dropout: Below1 = 0.1
    label_dropout: Share = 0.1
    condition: Literal["class", "names"] = "class"  # what tells the transformer a class: a token, or the bytes of its name
    # segments: warm-up and decay in each; constant: none, as LlamaGen trained
    lr_schedule: Literal["segments", "constant"] = "segments"
    reset_optimizer: Bool = False  # AdamW's state at each new segment: carried over, or begun again
    patch: Patch = "mean"  # how the tokens of a window become one, and are predicted (nppkit/patches.py)
    log_every: Count = 0  # steps; 0: once a schedule epoch
    heldout_every: Count = 0  # schedule epochs between two held-out likelihoods; 0: at the end of each segment
    compile: Bool = False
    recompute: Bool = False  # each block's activations in the backward pass: less memory, about a third more time

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates' arguments of `schedule.learning_rate`; a constant rate has neither warm-up nor decay."""
        shape = dict(warmup_epochs=self.warmup_epochs, decay_fraction=self.decay_fraction)
        if self.lr_schedule == "constant":
            shape = dict.fromkeys(shape, 0.0)
        return dict(base_lr=self.lr, end_lr=self.end_lr, **shape)
