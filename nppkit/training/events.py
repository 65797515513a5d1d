"""A run's history as TensorBoard's event files, for readers who follow their runs there."""

import math
from pathlib import Path

from nppkit.errors import NppkitError


class Events:
    """Rows of a history in event files in `folder`; a resumed run writes a file more, which hides what it makes again.

    NppkitError where the package tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise NppkitError("options: tensorboard=true needs a package: pip install tensorboard") from None
        self.folder, self.writer, self.open = folder, None, SummaryWriter

    def write(self, row: dict[str, float]) -> None:
        """Each number of the row that there is, at the row's step, on disk at once."""
        if self.writer is None:
            self.writer = self.open(self.folder, purge_step=row["step"])
        for name, value in row.items():
            if name != "step" and not math.isnan(value):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()
