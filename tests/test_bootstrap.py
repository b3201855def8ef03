"""scripts/: the environment is made by the standard library alone, from what the user configured."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when a script runs; nothing of pip's real configuration is seen."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    yield
    for name in ("bootstrap_venv", "fetch_pip", "fetch_openmp"):
        sys.modules.pop(name, None)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A package index of our own: its URL, and the folder where its one page says that pip's wheel lies."""
    import fetch_pip

    page = tmp_path / "index" / "simple" / "pip"
    page.mkdir(parents=True)
    files = tmp_path / "index" / "files"
    files.mkdir()
    link = f'<a href="../../files/{fetch_pip.WHEEL}#sha256=0">pip</a>'
    (page / "index.html").write_text(f'<a href="pip-1.0.tar.gz">old</a>{link}', encoding="utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple", files
        server.shutdown()


def test_pip_comes_from_the_index_that_is_configured(
    index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fetch_pip

    url, files = index
    (files / fetch_pip.WHEEL).write_bytes(b"a wheel")
    monkeypatch.setattr(fetch_pip, "SHA256", hashlib.sha256(b"a wheel").hexdigest())
    monkeypatch.setenv("PIP_INDEX_URL", url)
    wheel = fetch_pip.fetch_pip_wheel(tmp_path, print)
    assert wheel == tmp_path / fetch_pip.WHEEL
    assert wheel.read_bytes() == b"a wheel"


def test_a_pip_with_another_hash_is_not_kept(
    index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fetch_pip

    url, files = index
    (files / fetch_pip.WHEEL).write_bytes(b"something else")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(fetch_pip.FetchError, match="nothing was run"):
        fetch_pip.fetch_pip_wheel(tmp_path, print)
    assert not (tmp_path / fetch_pip.WHEEL).exists()


def test_an_index_without_that_pip_says_what_to_do(
    index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fetch_pip

    monkeypatch.setenv("PIP_INDEX_URL", index[0])
    monkeypatch.setattr(fetch_pip, "WHEEL", "pip-999-py3-none-any.whl")
    with pytest.raises(fetch_pip.FetchError, match="apt-get install python3-venv"):
        fetch_pip.fetch_pip_wheel(tmp_path, print)


def test_an_unreachable_index_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fetch_pip

    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(fetch_pip.FetchError) as failure:
        fetch_pip.fetch_pip_wheel(tmp_path, print)
    assert "http://127.0.0.1:9/simple/pip/" in str(failure.value)
    assert "secret" not in str(failure.value)


def test_pips_configuration_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fetch_pip

    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple/\n", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert fetch_pip.index_url(fetch_pip.pip_settings()) == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert fetch_pip.index_url(fetch_pip.pip_settings()) == "https://other.example/simple"


def test_a_changed_pyproject_installs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bootstrap_venv

    monkeypatch.setattr(bootstrap_venv, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("one", encoding="utf-8")
    before = bootstrap_venv.fingerprint()
    assert bootstrap_venv.fingerprint() == before
    plugin = tmp_path / "plugins" / "new"
    plugin.mkdir(parents=True)
    (plugin / "pyproject.toml").write_text("two", encoding="utf-8")
    assert bootstrap_venv.fingerprint() != before


def test_tests_need_more_than_the_demo_and_contain_it(tmp_path: Path) -> None:
    import bootstrap_venv

    (tmp_path / "llamaman-demo.stamp").write_text("now", encoding="utf-8")
    assert bootstrap_venv.is_done(tmp_path, "demo", "now")
    assert not bootstrap_venv.is_done(tmp_path, "dev", "now")
    (tmp_path / "llamaman-demo.stamp").unlink()
    (tmp_path / "llamaman-dev.stamp").write_text("now", encoding="utf-8")
    assert bootstrap_venv.is_done(tmp_path, "demo", "now")
    assert not bootstrap_venv.is_done(tmp_path, "demo", "later")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "free about 1 GB"),
        ("NewConnectionError('... Temporary failure in name resolution')", "cannot be reached"),
        ("ERROR: No matching distribution found for xllamacpp", "no build for this machine"),
        ("something new", "the whole output is in"),
    ],
)
def test_a_failed_installation_says_what_to_do(output: str, words: str, tmp_path: Path) -> None:
    import bootstrap_venv

    text = bootstrap_venv.diagnose(output, "installing", tmp_path / "install.log")
    assert output in text
    assert words in text


def test_every_plugin_is_installed_editable() -> None:
    import bootstrap_venv

    for profile in bootstrap_venv.PROFILES:
        arguments = bootstrap_venv.requirements(profile)
        for folder in bootstrap_venv.projects()[1:]:
            assert arguments[arguments.index(str(folder)) - 1] == "-e"


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", str(SCRIPTS.parent)], capture_output=True, text=True, check=True)
    for target in ("venv", "demo", "test", "lint", "bench", "clean"):
        assert f"make {target} " in done.stdout
