"""Files: digests, where a study's lie, JSON and npz, written whole or not at all and read without unpickling."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError

from nppkit.errors import NppkitError


def check_space(folder: Path, needed: int, what: str) -> None:
    """NppkitError if fewer than `needed` bytes are free where the folder is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NppkitError(f"{folder} has {free / 1e9:.1f} GB free and {what} need {needed / 1e9:.1f} GB: make room first")


def home() -> Path:
    """The folder of results/, figures/ and checkpoints/: NPPKIT_HOME, else the repository (or, installed, this folder).

    NppkitError in another clone than the one whose package this is: it would run that one's code, and write there.
    """
    return _home(os.environ.get("NPPKIT_HOME", ""), Path.cwd())


@functools.lru_cache(maxsize=16)
def _home(asked: str, cwd: Path) -> Path:
    repository = Path(__file__).parents[1]
    if not (repository / "pyproject.toml").is_file():
        return Path(asked or cwd).resolve()
    here = next((folder for folder in (cwd, *cwd.parents) if (folder / "nppkit/files.py").is_file()), repository)
    if not here.samefile(repository):
        raise NppkitError(f"{here} is one clone, and Python takes nppkit from another, {repository}: run `make env` in {here}")
    return Path(asked or repository).resolve()


def located(path: str) -> Path:
    """A path of a preset: a relative one starts at `home()`, an empty one stays empty."""
    return home() / os.path.expanduser(path) if path else Path()


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any, default: Callable | None = None) -> str:
    """sha256 of what JSON can hold, its keys in any order; what it cannot hold, `default` turns into something that it can."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=default).encode()).hexdigest()


def remedy(error: Exception) -> str:
    """What a user can do where a file could not be written."""
    code = getattr(error, "errno", None)
    full = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter", "unexpected pos")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write, or ask for permission"
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(words in str(error) for words in full):
        return "free some space"
    return "mend that, and the same command goes on"


def first_line(error: Exception) -> str:
    """What an error says in its first line, or, where it says nothing, its kind."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def sync(path: Path) -> None:
    """Return once what was written to a file, or the names in a folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block: either the old or the new file, also after a power cut. Its
    folder is made if it is not there.

    NppkitError says why it could not be written, e.g. a full disk; nothing half written is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        share(temporary, mode)
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's
        raise NppkitError(f"{path} could not be written ({' '.join(str(error).split())}): {remedy(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def share(path: Path, mode: int) -> None:
    """Let those read a file who may by umask, whose `mode` another new file has; safetensors leaves it to the owner alone."""
    if path.stat().st_mode != mode:  # file systems without modes refuse to be asked
        path.chmod(mode)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, errors="surrogateescape")  # a path need not be UTF-8


def noted(path: Path) -> dict:
    """What a JSON file says; nothing where it is missing, damaged or of another kind."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _npz(path: str | Path, read: Callable) -> Any:
    """What `read` takes from an npz file. NppkitError names a missing or damaged one."""
    try:
        with np.load(path) as file:  # never unpickles: NumPy's default
            return read(file)
    except Exception as error:  # a damaged file raises nearly anything
        raise NppkitError(f"{path} cannot be read as npz ({' '.join(str(error).split())})") from None


def npz_keys(path: str | Path) -> list[str]:
    """Names of the arrays in an npz file. NppkitError names a missing or damaged file."""
    return _npz(path, lambda file: list(file.files))


def npz_length(path: str | Path, key: str) -> int:
    """How many rows an array of an npz file has, from its header alone. NppkitError as of read_arrays."""

    def header(file: np.lib.npyio.NpzFile) -> int:
        with file.zip.open(f"{key}.npy") as array:
            version = np.lib.format.read_magic(array)
            of = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return of(array)[0][0]

    return _npz(path, header)


def read_arrays(path: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The named arrays of an npz file. NppkitError names a missing or damaged file, and a missing key."""
    present = npz_keys(path)
    if missing := [key for key in keys if key not in present]:
        raise NppkitError(f"{path} has no {', '.join(missing)}: it holds {', '.join(present) or 'nothing'}")
    return _npz(path, lambda file: {key: file[key] for key in keys})


def save_arrays(path: Path, write: Callable = np.savez, **arrays: np.ndarray | str) -> None:
    """Write an npz file whole or not at all; `write` may be savez_lzma, or np.save of one array `arr`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file, **arrays)


def savez_lzma(file: IO[bytes], **arrays: np.ndarray) -> None:
    """np.savez with LZMA: codes take a quarter to a half less than behind np.savez_compressed, and np.load reads them."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as packed:
        for name, array in arrays.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.save(entry, array)


def read_json(path: Path) -> dict:
    """A JSON file. NppkitError names it when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise NppkitError(f"{path} cannot be read ({error}): run its job again") from None
