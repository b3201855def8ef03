"""Creates `.venv` with this checkout installed editable. Run by the Makefile; needs Python >= 3.11, no more.

Guarantees: works where Debian's python3-venv (ensurepip) is missing, a second call with nothing changed
returns at once, a changed pyproject installs again, and a failure ends with one sentence that says what to
do. Everything that pip printed is kept in `.venv/install.log`. Written so that a Python that is too old
can still parse it and say so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
sys.path.insert(0, str(SCRIPTS))  # the helpers beside this file; nothing is installed yet

import fetch_openmp  # noqa: E402 - found through the line above
from fetch_pip import FetchError, fetch_pip_wheel  # noqa: E402 - found through the line above

MINIMUM = (3, 11)
NEEDED_BYTES = 700 * 1024 * 1024  # a dev environment measured 0.5 GB, plus pip's downloads
SETUP_SCRIPTS = [SCRIPTS / f"{name}.py" for name in ("bootstrap_venv", "fetch_pip", "fetch_openmp")]
PROFILES = ("demo", "dev")  # each profile contains the ones before it


UNREACHABLE = "the package index cannot be reached: check the network and https_proxy, or set PIP_INDEX_URL"
FULL = "the disk or its quota is full: free about 1 GB and run the same command again"
CAUSES = (  # what pip and uv print, and what to do about it
    ("No space left on device", FULL),
    ("Disk quota exceeded", FULL),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the index's certificate is not trusted here: install ca-certificates, or set PIP_CERT",
    ),
    ("UnknownIssuer", "the index's certificate is not trusted here: set SSL_CERT_FILE"),
    ("name resolution", UNREACHABLE),
    ("NewConnectionError", UNREACHABLE),
    (
        "No matching distribution found",
        "a package has no build for this machine or this Python: see the lines above",
    ),
)


class SetupError(Exception):
    """The environment could not be made; the text says why and what to do."""


def say(text: str) -> None:
    """Print one progress line at once, also into a pipe."""
    print(f"[setup] {text}", flush=True)


def newest_python() -> str | None:
    """Another interpreter on PATH that is new enough, newest first; None when there is none."""
    for minor in range(19, MINIMUM[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    return None


def require_python() -> None:
    """Continue under a new enough interpreter, or stop with the way to get one."""
    if sys.version_info >= MINIMUM:
        return
    other = newest_python()
    if other:
        say(f"python3 is {sys.version.split()[0]}; continuing with {other}")
        os.execv(other, [other, *sys.argv])  # noqa: S606 - replaces this process by the same script
    raise SetupError(
        f"LlamaMan needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
        "Install one (Debian 12: apt-get install python3, Ubuntu 22.04: apt-get install python3.11) "
        "and run `make PYTHON=python3.11 ...`."
    )


def projects() -> list[Path]:
    """The root and every plugin folder that can be installed, in a fixed order."""
    return [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def fingerprint() -> str:
    """Changes when anything that decides what gets installed changes, or the checkout was moved."""
    digest = hashlib.sha256(f"{ROOT}\0{sys.version}".encode())
    for path in [*(project / "pyproject.toml" for project in projects()), *SETUP_SCRIPTS]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_done(venv: Path, profile: str, wanted: str) -> bool:
    """Whether `profile`, or one that contains it, was installed from what lies here now."""
    stamps = [venv / f"llamaman-{name}.stamp" for name in PROFILES[PROFILES.index(profile) :]]
    return any(stamp.is_file() and stamp.read_text() == wanted for stamp in stamps)


def works(python: Path) -> bool:
    """Whether the interpreter in the environment is new enough and still runs (system Pythons go away)."""
    if not python.exists():
        return False
    check = f"import sys; sys.exit(sys.version_info < {MINIMUM!r})"
    return subprocess.run([str(python), "-c", check], capture_output=True, check=False).returncode == 0


def create(venv: Path) -> None:
    """Make an empty environment without pip, which needs no ensurepip."""
    try:
        from venv import EnvBuilder
    except ImportError as error:
        raise SetupError(
            f"this Python has no venv module ({error}). Install the full python3 package "
            "(Debian: apt-get install python3 python3-venv)."
        ) from error
    say(f"creating {venv.name} with Python {sys.version.split()[0]}")
    EnvBuilder(clear=venv.exists(), symlinks=True, with_pip=False).create(venv)


def has_pip(python: Path) -> bool:
    """Whether `python -m pip` works in the environment."""
    return (
        subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode
        == 0
    )


def install_pip(python: Path, venv: Path) -> None:
    """Put pip into the environment: the copy that Python ships, else the pinned wheel from the index."""
    if has_pip(python):
        return
    ensured = subprocess.run([str(python), "-m", "ensurepip"], capture_output=True, check=False)
    if ensured.returncode == 0:
        return
    say("this Python ships no pip (python3-venv is not installed): fetching pip from the package index")
    wheel = fetch_pip_wheel(venv, say)
    try:
        command = [str(python), f"{wheel}/pip", "install", "--no-index", "--no-deps", "--quiet", str(wheel)]
        run_logged(command, venv, "installing pip")
    finally:
        wheel.unlink(missing_ok=True)


def requirements(profile: str) -> list[str]:
    """The requirement arguments of `profile`; plugin folders are named, so that all are editable."""
    import tomllib  # 3.11, which require_python has made sure of

    plugins = [argument for path in projects()[1:] for argument in ("-e", str(path))]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    if profile == "demo":  # gguf writes the demo's last resort, a tiny model, where none can be downloaded
        gguf = [name for name in groups["dev"] if name.startswith("gguf")]
        return ["-e", f"{ROOT}[embedded]", *plugins, *gguf]
    return ["-e", f"{ROOT}[all]", *plugins, *groups["dev"], *groups["clients"]]


def build_requirements() -> list[str]:
    """The build backend, installed once instead of into one throw-away environment per project."""
    import tomllib

    backend = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return [*backend, "editables"]  # hatchling asks for editables only when it builds an editable install


def run_logged(command: list[str], venv: Path, what: str) -> None:
    """Run `command` into install.log and show that it lives; SetupError with the last lines when it fails."""
    log = venv / "install.log"
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"\n$ {' '.join(command)}\n")
        sink.flush()
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=pip_environment(),
            cwd=ROOT,
        )
        try:
            wait_visibly(process, started, log)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        raise SetupError(diagnose(log.read_text(encoding="utf-8", errors="replace"), what, log))


def wait_visibly(process: subprocess.Popen[bytes], started: float, log: Path) -> None:
    """Wait for the end of `process`, printing its newest step now and then."""
    shown = ""
    next_line = started + 5
    while True:
        try:
            process.wait(timeout=0.25)
            return
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() < next_line:
            continue
        next_line += 5
        step = newest_step(log.read_text(encoding="utf-8", errors="replace"))
        if step and step != shown:
            shown = step
            say(f"  {time.monotonic() - started:.0f} s: {step}")


def newest_step(text: str) -> str:
    """The last line of pip's output that means something to a reader."""
    wanted = (
        "Collecting",
        "Downloading",
        "Building",
        "Installing",
        "Preparing",
        "Obtaining",
        "Resolved",
        "Prepared",
    )
    steps = [line.strip() for line in text.splitlines() if line.strip().startswith(wanted)]
    return steps[-1][:100] if steps else ""


def pip_environment() -> dict[str, str]:
    """The caller's environment (its index, proxies and certificates), less what would mislead pip."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment["PIP_ROOT_USER_ACTION"] = "ignore"  # it is a virtual environment; the warning would be wrong
    return environment


def diagnose(output: str, what: str, log: Path) -> str:
    """The likely cause of a failed installation, in words, with the last lines of the log."""
    tail = "\n".join(f"    {line}" for line in output.strip().splitlines()[-12:])
    cause = next((hint for sign, hint in CAUSES if sign in output), f"the whole output is in {log}")
    return f"{what} failed:\n{tail}\n{cause}."


def install_with_uv(uv: str, python: Path, venv: Path, arguments: list[str]) -> bool:
    """Install by uv; False when it did not work, so that pip (with its own settings) gets its turn."""
    environment_index = os.environ.get("PIP_INDEX_URL")
    command = [uv, "pip", "install", "--python", str(python), *arguments]
    if environment_index and "UV_DEFAULT_INDEX" not in os.environ:
        command += ["--default-index", environment_index]
    try:
        run_logged(command, venv, "uv")
    except SetupError:
        say("uv could not install it; trying pip")
        return False
    return True


def install(profile: str, venv: Path) -> None:
    """Bring `venv` to `profile`."""
    python = venv / "bin" / "python"
    if not works(python):
        create(venv)
    (venv / "install.log").write_text("", encoding="utf-8")
    arguments = requirements(profile)
    plugins = len(projects()) - 1
    say(
        f"installing LlamaMan and {plugins} plugins, editable ({profile}); details in {venv.name}/install.log"
    )
    install_pip(python, venv)
    uv = shutil.which("uv")
    if not (uv and install_with_uv(uv, python, venv, arguments)):
        pip = [str(python), "-m", "pip", "install"]
        run_logged([*pip, *build_requirements()], venv, "installing the build backend")
        run_logged([*pip, "--no-build-isolation", *arguments], venv, "installing the packages")
    provide_openmp(python, venv)


def provide_openmp(python: Path, venv: Path) -> None:
    """Make the embedded engine loadable; a llama-server binary works without it, so failing only warns."""
    if not fetch_openmp.is_needed(python, venv):
        return
    say("libgomp is not installed here: fetching a copy for the embedded engine")
    try:
        fetch_openmp.fetch(python, venv, lambda command, what: run_logged(command, venv, what))
    except (SetupError, OSError, LookupError, StopIteration) as error:
        say(f"warning: the embedded engine needs libgomp (Debian: apt-get install libgomp1): {error}")


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Create .venv and install this checkout into it, editable.")
    parser.add_argument(
        "--profile", choices=PROFILES, default="dev", help="demo: what runs it; dev: tests and lint too"
    )
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv in the checkout)"
    )
    options = parser.parse_args()
    try:
        require_python()
        wanted = fingerprint()
        venv: Path = options.venv.absolute()
        if is_done(venv, options.profile, wanted) and works(venv / "bin" / "python"):
            return 0
        started = time.monotonic()
        free = shutil.disk_usage(venv.parent).free
        if free < NEEDED_BYTES:
            say(f"warning: only {free // 1024**2} MB are free here; a full installation takes about 600 MB")
        install(options.profile, venv)
        (venv / f"llamaman-{options.profile}.stamp").write_text(wanted)
        say(f"ready in {time.monotonic() - started:.0f} s")
    except (SetupError, FetchError) as error:
        print(f"[setup] FAILED: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"[setup] FAILED: {error}. Check free space (df -h .) and that you may write here.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\n[setup] stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
