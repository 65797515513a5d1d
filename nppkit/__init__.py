"""nppkit: a reproducible research compendium for Next Patch Prediction (arXiv 2412.15321).

The files follow the data: images -> tokenizer -> codes -> grouping, model, loss, schedule -> train
-> sample -> evaluate -> tables, plots.
"""

__version__ = "0.1.0"
