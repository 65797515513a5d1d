"""Nobody gets in: what a stranger's file or word could do, and that it does nothing."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import test_releases
from conftest import write_store
from test_faults import wait_for
from test_reference import extractor as extractor
from test_reference import image_set

from nppkit.data import codes, llamagen, npz
from nppkit.errors import NppkitError
from nppkit.scoring import reference
from nppkit.study import graph, presets

ROOT = Path(__file__).parents[1]
NEVER = {
    r"allow_pickle(?!=False)": "NumPy unpickles only when told to",
    r"torch\.load\((?!.*weights_only=True)": "torch.load without its restricted unpickler",
    r"yaml\.(?!safe_|YAMLError|SafeLoader|\w*Node\b|compose\(text, yaml\.SafeLoader\))\w+": "YAML other than safe_load",
    r"(pickle|dill|joblib)\.(load|Unpick)|read_pickle": "a format that runs code when it is read",
    r"(import|from) (pickle|dill|joblib|shelve|marshal)\b": "a module of such a format",
    r"(?<![\w.])(eval|exec)\(": "text that becomes code",
    r"os\.system|os\.popen|shell=True": "words that a shell would read",
    r"extractall|unpack_archive|tarfile": "archive members that could be written anywhere",
}


def sources():
    """Path -> Python source, of the package, the benchmarks, the graph and the notebooks' code cells."""
    files = {path: path.read_text() for path in [*ROOT.glob("nppkit/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "Snakefile"]}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        files[path] = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    return files


@pytest.mark.parametrize("pattern", NEVER, ids=NEVER.values())
def test_dangerous_calls_occur_nowhere(pattern):
    """No source line of package, benchmarks, graph or notebooks holds a call that runs what it reads."""
    found = [(name, line) for name, text in sources().items() for line in text.splitlines() if re.search(pattern, line)]
    assert not found


@pytest.fixture
def evil(tmp_path):
    """An object array that creates a file when it is unpickled, and that file."""
    trace = tmp_path / "trace"
    array = np.empty(10, object)
    array[:] = [test_releases.Payload(trace)] * 10
    yield array
    assert not trace.exists()
    np.save(tmp_path / "evil.npy", array)
    np.load(tmp_path / "evil.npy", allow_pickle=True)
    assert trace.exists(), "the payload works, so its absence above means something"


@pytest.mark.parametrize("name", ["codes.npy", "labels.npy"])
def test_object_arrays_in_a_store_do_not_run(tmp_path, evil, name):
    """A store whose arrays are pickles is refused by name."""
    folder = write_store(tmp_path / "store")
    np.save(folder / name, evil)
    with pytest.raises(NppkitError, match=f"{name} cannot be opened"):
        codes.CodeStore(folder)


def test_object_arrays_in_an_npz_do_not_run(tmp_path, evil, extractor):
    """Nor in a file of images or of reference statistics."""
    np.savez(tmp_path / "images.npz", arr_0=evil)
    with pytest.raises(NppkitError, match=r"images\.npz cannot be read"):
        npz.read_npz(tmp_path / "images.npz")
    made = reference.reference_from_images(image_set(6), 32, extractor)
    np.savez(tmp_path / "reference.npz", **{**vars(made), "features": made.features.numpy(), "sigma": evil})
    with pytest.raises(NppkitError, match=r"reference\.npz cannot be read"):
        reference.load_reference(tmp_path / "reference.npz", extractor)


def test_object_arrays_in_llamagens_files_do_not_run(tmp_path, evil):
    """Nor in codes that are imported."""
    for folder in ("codes", "labels"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "0.npy", evil)
    with pytest.raises(NppkitError, match=r"0\.npy cannot be read"):
        llamagen.import_llamagen([tmp_path / "codes"], tmp_path / "labels", tmp_path / "out")


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "..", "a/b", "a\nb", "", "~", "$HOME"])
def test_a_preset_cannot_name_another_folder(tmp_path, name):
    """A preset's name becomes a folder of results: a name that leaves it is refused."""
    path = tmp_path / "mine.yaml"
    path.write_text((presets.FOLDER / "smoke.yaml").read_text() + f"\nname: {json.dumps(name)}\n")
    with pytest.raises(NppkitError, match="cannot name a folder"):
        presets.load_preset(str(path))


@pytest.mark.parametrize("report", ["../../x", "/tmp/x", "x; touch trace #", "$(touch trace)", "x\n", "", "train", 7])
def test_a_preset_cannot_name_another_notebook(tmp_path, report):
    """A preset's reports become paths of notebooks that are run, and words that a shell reads: only plain names pass."""
    path = tmp_path / "mine.yaml"
    path.write_text((presets.FOLDER / "smoke.yaml").read_text() + f"\nreports: [gain, {json.dumps(report)}]\n")
    with pytest.raises(NppkitError, match=r"mine\.yaml: reports"):
        presets.load_preset(str(path))


def test_words_of_the_command_line_stay_words(home, tmp_path):
    """A preset's path with quotes, spaces, braces and a semicolon is one word to the shell that Snakemake starts."""
    path = tmp_path / "it's {0}; touch trace .yaml"
    path.write_text((presets.FOLDER / "smoke.yaml").read_text() + "\nname: mine\n")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "tokenize",
        "--cores",
        "1",
        "--printshellcmds",
        "--quiet",
        "progress",
        "--config",
        f"preset={path}",
    ]
    env = {**os.environ, "NPPKIT_HOME": str(home)}
    result = subprocess.run([*command, "--dry-run"], cwd=ROOT, env=env, capture_output=True, text=True)
    (line,) = [line for line in result.stdout.splitlines() if "nppkit run" in line]
    assert {"NPPKIT_ATTEMPT=1", "exec"} <= {*shlex.split(line)}  # what a retry is told by
    assert shlex.split(line)[-2:] == [str(path), "tokenize"]


@pytest.mark.slow
def test_jupyterlab_asks_for_its_token(tmp_path):
    """`make lab` listens on loopback alone, and answers nothing without its token."""
    result = subprocess.run(["make", "-n", "lab", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True, check=True)
    words = next(line.split() for line in result.stdout.splitlines() if "jupyter" in line)
    env = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    root = ["--allow-root"] if os.geteuid() == 0 else []
    server = subprocess.Popen([*words, "--no-browser", "--port=0", *root], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(tmp_path.glob("jpserver-*.json")) and psutil.Process(server.pid).net_connections("inet"))
        about = json.loads(next(tmp_path.glob("jpserver-*.json")).read_text())
        listening = [c.laddr for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
        assert {address.ip for address in listening} <= {"127.0.0.1", "::1"} and len(about["token"]) >= 40
        contents = f"http://127.0.0.1:{listening[0].port}/api/contents"
        visit = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        assert visit(f"{contents}?token={about['token']}").status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            visit(contents)
    finally:
        server.terminate()
        server.wait()


def test_results_stay_in_their_home(home, smoke):
    """Every job of a preset writes below the results home."""
    assert all(job.folder.is_relative_to(home / "results") for job in graph.graph(smoke))
