"""What goes with the code where others find it: container, metadata, badges."""

import csv
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import pytest
import yaml

import nppkit
from nppkit.errors import NppkitError
from nppkit.show import pretrained
from nppkit.study.presets import load_preset, preset_names
from nppkit.study.runs import preset_runs

ROOT = Path(__file__).parents[1]
DOCKER = (ROOT / "Dockerfile").read_text()


def script(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_short():
    """What, one figure, the verdicts, the commands, where to go on: at most 100 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_dockerfile_fits_the_repository():
    """It copies what exists and what .dockerignore lets through, has pyproject's Python, and installs under the constraints."""
    copied = [name for line in re.findall(r"^COPY (.*)$", DOCKER, re.M) for name in line.split()[1:-1]]
    assert len(copied) >= 9 and all((ROOT / name).exists() for name in copied)
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let == set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"^FROM python:([\d.]+)-", DOCKER, re.M)
    assert project["requires-python"].split(",")[0] == f">={version}"
    (pip,) = re.findall(r"pip install [^&]*", DOCKER)
    assert "--constraint constraints.txt" in pip and "pip check" in DOCKER
    assert project["readme"] in copied and "NPPKIT_HOME=/study" in DOCKER


def test_dockerfile_is_linted():
    """hadolint has nothing to say."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("hadolint is not installed: make env installs it")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_codemeta_says_what_the_citation_says():
    """Two files for two kinds of catalogues: one version, one licence, the same authors, the same paper."""
    cited, code = yaml.safe_load((ROOT / "CITATION.cff").read_text()), json.loads((ROOT / "codemeta.json").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == code["version"] == nppkit.__version__
    assert code["license"].endswith(f"/{cited['license']}") and cited["license"] == project["license"]
    names = [author["name"] for author in cited["authors"]]
    assert names == [author["name"] for author in code["author"]] == [author["name"] for author in project["authors"]]
    assert code["referencePublication"]["url"] == cited["references"][0]["url"]
    assert code["dateModified"] == str(cited["date-released"]) and code["description"] == project["description"]
    assert code["programmingLanguage"]["version"] == project["requires-python"]


RECORDS = subprocess.check_output(["git", "ls-files", "results/*/runs/*/*.record.json"], cwd=ROOT, text=True).split()
CRATES = sorted({path.split("/")[1] for path in RECORDS})


@pytest.mark.parametrize("preset", CRATES)
def test_the_crate_is_todays(preset):
    """The metadata of the committed results is that of today, below 300 kB; pictures and codes have the licence of their data."""
    pytest.importorskip("rocrate", reason="rocrate is not installed: make env installs it")
    crate = script("crate")
    path = ROOT / "results" / preset / crate.NAME
    written, made = (json.loads(text) for text in (path.read_text(), json.dumps(crate.crate_of(preset))))
    assert written == made, "make crate writes it again"
    assert path.stat().st_size < 300_000
    entities = {entity["@id"]: entity for entity in written["@graph"]}
    assert entities["./"]["license"] == {"@id": crate.MIT}
    licences = {name: entity.get("license", {}).get("@id", crate.MIT) for name, entity in entities.items()}
    data = f"https://spdx.org/licenses/{crate.DATA[load_preset(preset).data.source][2]}"
    of_the_data = {name for name, entity in entities.items() if entity["@type"] == "File" and licences[name] == data}
    assert of_the_data == {name for name in entities if name.endswith((".png", ".npz", ".npy"))}
    runs = [entity["description"] for name, entity in entities.items() if name.startswith("runs/") and name.endswith("/")]
    assert runs and all("commit" in words for words in runs)


def test_the_crate_of_the_study_names_what_it_holds():
    """Tables, tokenizer, each run with the digest of its records; `make crate` finds all results that are committed."""
    named = {
        entity["@id"]: entity for entity in json.loads((ROOT / "results/study/ro-crate-metadata.json").read_text())["@graph"]
    }
    assert {"table1_main.csv", "tokenizer/tokenizer.safetensors", "runs/GPT-B_ntp_seed0/samples.png"} <= named.keys()
    run = ROOT / "results/study/runs/GPT-B_ntp_seed0"
    records = (run / "evaluate.record.json").read_bytes() + (run / "train.record.json").read_bytes()
    assert named["runs/GPT-B_ntp_seed0/"]["identifier"] == f"sha256:{hashlib.sha256(records).hexdigest()}"
    pytest.importorskip("rocrate", reason="rocrate is not installed: make env installs it")
    assert script("crate").kept() == CRATES


def test_older_runs_are_those_whose_records_name_no_commit():
    """A run either says in its records how it was made, or stands with its commit in results/older_runs.csv."""
    with (ROOT / "results/older_runs.csv").open() as rows:
        older = {(row["preset"], row["run"]) for row in csv.DictReader(rows) if re.fullmatch("[0-9a-f]{40}", row["commit"])}
    records = [path for preset in CRATES for path in (ROOT / "results" / preset / "runs").glob("*/*.record.json")]
    assert older == {(p.parts[-4], p.parts[-2]) for p in records if "made" not in json.loads(p.read_text())}


def test_who_runs_the_container_needs_no_name():
    """`docker run --user` gives a number that the image does not know; Snakemake asks getpass for a name, which USER answers."""
    (environment,) = re.findall(r"^ENV (.*)$", DOCKER, re.MULTILINE)
    assert "USER=nppkit" in environment.split()
    said = "import getpass, os, pwd; pwd.getpwuid = {}.__getitem__; print(getpass.getuser())"
    done = subprocess.run([sys.executable, "-c", said], env={"USER": "nppkit"}, capture_output=True, text=True)
    assert done.stdout.strip() == "nppkit"


def test_binder_installs_the_pins():
    """Its own folder, because it would start the Dockerfile otherwise, with the same pins; the site's button names no branch."""
    lines = (ROOT / ".binder/requirements.txt").read_text().splitlines()
    assert {"--constraint ../constraints.txt", "--editable ."} <= set(lines)
    version = (ROOT / ".binder/runtime.txt").read_text().strip().removeprefix("python-")
    assert DOCKER.splitlines()[1].startswith(f"FROM python:{version}-") and "g++" in (ROOT / ".binder/apt.txt").read_text()
    assert '"repository_branch": "HEAD"' in (ROOT / "docs/conf.py").read_text()


def test_help_lists_every_target():
    """That has a word of its own behind ##, also where a line makes several."""
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    explained = re.findall(r"^([a-z][a-z0-9 -]*):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(explained) > 15 and all(any(line.startswith(names) for line in listed.splitlines()) for names in explained)
    assert "table5" in listed


def test_badges(tmp_path):
    """The host's address stands in the badges and in the first cell of Colab's notebook; a second call replaces it."""
    badges = script("badges")
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "notebooks/start_here.ipynb"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for owner in ("someone", "another"):
        badges.write(tmp_path, f"{owner}/nppkit")
    readme = (tmp_path / "README.md").read_text()
    assert readme.count("another/nppkit") == 2 and "someone" not in readme
    assert [line for line in readme.splitlines() if "badge" not in line and line][1] == (
        ROOT / "README.md"
    ).read_text().splitlines()[2]
    notebook = nbformat.read(tmp_path / badges.COPY, as_version=4)
    nbformat.validate(notebook)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith("%pip install") and first.source.endswith("github.com/another/nppkit")
    with pytest.raises(NppkitError, match="owner/name"):
        badges.write(tmp_path, "https://example.org/x")


def test_the_pages_workflow_publishes_what_make_site_builds():
    """It calls the Makefile's target and uploads the folder that the target writes."""
    steps = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())["jobs"]["build"]["steps"]
    (folder,) = [step["with"]["path"] for step in steps if "upload" in step.get("uses", "")]
    assert any(step.get("run", "").startswith("make site") for step in steps)
    assert re.search(rf"^site:.*\n\t.*sphinx .* {re.escape(folder)}$", (ROOT / "Makefile").read_text(), re.M)


def test_the_model_card_has_the_pairs_numbers():
    """Each number of the card's table is what the pair's own files say."""
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs/model_card.md").read_text().splitlines() if line.startswith("|")]
    card = {row[0].strip(): [cell.strip().strip("`") for cell in row[1:]] for row in rows}
    for column, run in enumerate(card["run"]):
        folder = pretrained.HOME / "results" / pretrained.PRESET / "runs" / run
        cost, metrics = (json.loads((folder / name).read_text()) for name in ("train_metrics.json", "metrics.json"))
        common = metrics["contract"]["common_guidance"]
        (at,) = [row for row in metrics["guidance"] if row["cfg_scale"] == common]
        said = {name: values[column] for name, values in card.items()}
        assert common == 2 and said["weights"] == f"{cost['parameters']:,}"
        assert said["training, TFLOP"] == f"{cost['flops'] / 1e12:.2f}"
        assert said["held-out likelihood, nats a token"] == f"{metrics['heldout_nll']:.3f}"
        assert said["FID (digit features) at guidance 2"] == f"{at['fid']:.2f}"
        assert said["drawn digits that a classifier names as asked, at guidance 2"] == f"{at['agreement']:.3f}"
    ntp, npp = (float(value) for value in card["FID (digit features) at guidance 2"])
    assert f"(size L: FID {npp:.1f} with it, {ntp:.1f} without)" in (ROOT / "README.md").read_text()


def test_the_report_is_its_notebook():
    """docs/report.md has what the committed notebook says up to its supplement, docs/supplement.md the rest: no page is older."""
    cells = nbformat.read(ROOT / "notebooks/report.ipynb", nbformat.NO_CONVERT).cells
    for page, other in (("report", "supplement"), ("supplement", "article")):
        text = (ROOT / f"docs/{page}.md").read_text()
        its, others = [], []
        for cell in cells:
            outputs = [out.get("data", {}).get("text/markdown", "") for out in cell.get("outputs", ())]
            said = [*filter(None, outputs), *[cell.source] * (cell.cell_type == "markdown")]
            (others if other in cell.metadata.get("tags", []) else its).extend(part.strip() for part in said)
        assert len(its) > 15 and [part for part in its if part not in text] == []
        assert len(others) > 15 and [part for part in others if part in text] == []


def test_the_report_is_short():
    """What a reader reads, without the tables' rules and the links' addresses: about four printed pages beside a figure."""
    text = re.sub(r"\]\([^)]*\)|\||---", " ", (ROOT / "docs/report.md").read_text())
    assert 1500 < len(text.split()) <= 2700


def test_what_pages_read_is_kept():
    """Runs of every preset that a page reads are not ignored; tokenizers of photographs are, which hold pictures."""
    read = {"study", "text", "video", "names", "patches"}
    for name in preset_names():
        p = load_preset(name)
        read |= {*p.domains, *p.tokens, *filter(None, (p.confirmatory, p.coarse, p.beside, p.pilot, p.rate_trial))}
    paths = [f"results/{name}/runs/GPT-B_ntp_seed0/metrics.json" for name in sorted(read)]
    weights = [
        f"results/{name}/tokenizer/tokenizer.safetensors"
        for name in ("solar", "photographs", "photographs_pilot", "tokens_solar_8x8_8")
    ]
    command = ["git", "check-ignore", "--no-index", *paths, *weights]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split() == weights


def test_data_cards_cover_the_presets():
    """Every preset that brings or names a data set of its own stands in a column of the data cards."""
    cards = (ROOT / "docs/data_cards.md").read_text()
    own = {"own-images", "cifar10", "imagenet256-eval"}  # one's own, torchvision's, and statistics alone
    named = re.findall("`([^`]+)`", next(line for line in cards.splitlines() if line.startswith("| presets |")))
    assert [name for name in preset_names() if name not in own and not any(fnmatch(name, n) for n in named)] == []


def test_the_settings_for_your_own_pictures_are_a_preset(tmp_path):
    """The file that docs/your_images.md says to copy is a preset under another name, too, and reads a folder."""
    source = re.search(r"^cp (\S+) mine\.yaml$", (ROOT / "docs/your_images.md").read_text(), re.M)[1]
    (tmp_path / "mine.yaml").write_text((ROOT / source).read_text())
    mine = load_preset(str(tmp_path / "mine.yaml"))
    assert mine.data.source == "folder" and {run.lam is None for run in preset_runs(mine)} == {True, False}


@pytest.mark.parametrize("path", sorted((ROOT / "results/study").glob("table*.[mt][de]*")), ids=lambda path: path.name)
def test_committed_tables_say_what_made_their_runs(path):
    """Their Markdown in a line below, their LaTeX in a comment above."""
    assert re.search(r"^(% )?Runs: made by \d+ trainings and evaluations; ", path.read_text(), re.M)
