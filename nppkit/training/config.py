"""The `training` section of a preset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """One run's training; the defaults are the paper's (Section 4.1). An epoch here is a schedule epoch."""

    epochs: int = 300
    steps_per_epoch: int = 4
    batch_size: int = 64
    lr: float = 1e-4
    end_lr: float = 1e-5
    warmup_epochs: float = 1.0
    decay_fraction: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    dropout: float = 0.1
    label_dropout: float = 0.1
    lr_schedule: str = "segments"  # segments: warm-up and decay in each; constant: none, as LlamaGen trained
    reset_optimizer: bool = False  # AdamW's state at each new segment: carried over, or begun again
    log_every: int = 0  # steps; 0: once a schedule epoch
    heldout_every: int = 0  # schedule epochs between two held-out likelihoods; 0: at the end of each segment
    compile: bool = False
    recompute: bool = False  # each block's activations in the backward pass: less memory, about a third more time

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates' arguments of `schedule.learning_rate`; a constant rate has neither warm-up nor decay."""
        shape = dict(warmup_epochs=self.warmup_epochs, decay_fraction=self.decay_fraction)
        if self.lr_schedule == "constant":
            shape = dict.fromkeys(shape, 0.0)
        return dict(base_lr=self.lr, end_lr=self.end_lr, **shape)
