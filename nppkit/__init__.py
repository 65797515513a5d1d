"""nppkit: Next Patch Prediction (NPP, arXiv 2412.15321), its method and a study of it.

An autoregressive image generator reads an image as a grid of codes. NPP trains it first on patches: the mean of the
embeddings of p x p codes goes in, one prediction is scored against all of them, coarse patches first, single codes last.

The method, for a model of your own:

    patches = group_embeddings(embeddings, p)                  # (B, N, C) -> (B, N / p**2, C), Eq. 1
    loss = patch_loss(logits, group_targets(codes, p))         # Eq. 2; p = 1 is next-token prediction
    segments = multi_scale_segments(epochs=300, levels=2, lam="1/2")   # p = 2 for 150 epochs, then p = 1

The study, from a script:

    results = all_results(load_preset("study"))                # a row a run: FID, likelihood, cost ...
    table = make_table(load_preset("study"), 2)                # Table 2, the paper's values beside ours

Rooms of the package: machine (devices, processes, options); then, in the order of the data, data (images to codes),
training, scoring (samples to metrics), study (presets, runs, tables), jobs (how work is started) and show (what a reader
looks at). Every error for bad input is a
NppkitError of one line. `nppkit --help` lists the commands.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "errors": "NppkitError",
    "grouping": "group group_embeddings group_targets patch_grid",
    "patches": "make_windows",
    "loss": "patch_loss npp_loss",
    "schedule": "Segment ntp_segments single_scale_segments multi_scale_segments drawn_segments segment_at "
    "patch_size_at learning_rate cost_ratio ideal_cost_ratio",
    "model": "GPT GPTConfig MODELS",
    "tokenizer": "VQModel",
    "tokenizer_config": "VQConfig TOKENIZERS",
    "sample": "SamplingConfig sample_codes sample_labels",
    "data.codes": "CodeStore",
    "study.presets": "Preset load_preset preset_names",
    "study.runs": "Run preset_runs",
    "study.results": "all_results",
    "study.tables": "make_table",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: `import nppkit` alone takes no time."""
    if name not in _HOME:
        raise AttributeError(f"module 'nppkit' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"nppkit.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
