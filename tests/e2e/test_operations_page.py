"""docs/operations.md, typed in as it stands: the way from nothing to a chat answer, and the reverse proxy.

What is replaced is said where it is done: port numbers, because other tests run beside this one, and where nginx's
files lie.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest
import typed_pages
from typed_pages import section

from llamaman.testing import processes
from llamaman.testing.manager import Manager

PAGE = typed_pages.page("operations.md")
TITLE = "From nothing to a chat answer, from the terminal"
MODEL = "smollm2-135m-instruct.q4_1"
PASSWORD = "correct horse battery staple"
CLIENT = "127.0.0.9"  # not the address of the proxy, which is trusted


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of a section in one language."""
    return typed_pages.blocks(section(PAGE, title), language)


# --- from nothing to a chat answer ------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Path:
    """A new account's home, with the model that the page speaks of."""
    folder = tmp_path / "home"
    (folder / "models").mkdir(parents=True)
    shutil.copy(tiny_model, folder / "models" / f"{MODEL}.gguf")
    typed_pages.add_program(folder / "bin")
    return folder


@pytest.fixture
def environment(home: Path) -> Iterator[dict[str, str]]:
    """What a login shell gives, and ports of our own."""
    ports = processes.free_ports(6)
    runtime = Path(tempfile.mkdtemp(prefix="llamaman-page-", dir="/tmp"))  # short, for the socket's address
    yield {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "XDG_RUNTIME_DIR": str(runtime),
        **{name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ},
        "LLAMAMAN_PORT": str(ports[0]),
        "LLAMAMAN_PROXY_PORT": str(ports[1]),
        "PORT_RANGE_START": str(ports[2]),
        "PORT_RANGE_END": str(ports[3]),
        "INTERNAL_PORT_RANGE_START": str(ports[4]),
        "INTERNAL_PORT_RANGE_END": str(ports[5]),
    }
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.mark.real("embedded engine, bash, curl")
@pytest.mark.usefixtures("embedded")
def test_the_page_leads_from_nothing_to_a_chat_answer(home: Path, environment: dict[str, str]) -> None:
    for program in ("bash", "curl"):
        if shutil.which(program, path=environment["PATH"]) is None:
            pytest.skip(f"install {program} to run this test")
    shown = blocks(TITLE, "sh")
    assert len(shown) >= 4
    # The ports are the only thing in which this is not what the page says.
    typed = [
        block.replace("localhost:5000", f"localhost:{environment['LLAMAMAN_PORT']}").replace(
            "localhost:42069", f"localhost:{environment['LLAMAMAN_PROXY_PORT']}"
        )
        for block in shown
    ]
    bash = typed_pages.start_typing(typed, home, environment)
    try:
        out, err = bash.communicate(timeout=300)
    finally:
        stop_serving(home)
    log = (home / "llamaman.log").read_text(errors="replace")
    assert bash.returncode == 0, f"{out}\n{err}\n{log}"
    parts = typed_pages.shown_by_block(out)
    assert json.loads(parts[0]) == {"status": "ok"}
    assert re.search(r"^admin +admin +active", parts[1], re.MULTILINE), parts[1]
    assert "inference" in parts[2]
    answer = json.loads(parts[-1][parts[-1].index("{") :])
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["model"] == MODEL
    password, key = (home / "llamaman-password"), re.search(r"llm-[\w-]{43}", out)
    assert password.stat().st_mode & 0o777 == 0o600
    assert key is None, "the key is in a variable, not on the screen"
    assert password.read_text().strip() not in log + out + err
    assert "Traceback" not in log


def stop_serving(home: Path) -> None:
    """End the manager that the page has put into the background, known by its home, and see it end its engines."""
    mine = [pid for pid in processes.pids() if processes.environ(pid).get("HOME") == str(home)]
    for pid in mine:
        line = Path(f"/proc/{pid}/cmdline")
        if line.exists() and b"serve" in line.read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while any(processes.environ(pid).get("HOME") == str(home) for pid in processes.pids()):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.05)


def test_the_readme_points_at_the_page() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "(docs/operations.md)" in readme
    for block in blocks(TITLE, "sh"):
        assert "5001" not in block


# --- the reverse proxy ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if found is None or shutil.which("openssl") is None:
        pytest.skip("install nginx and openssl to run this test")
    return found


def configured(folder: Path, public: int, *, manage: int, proxy: int) -> Path:
    """The page's configuration; ports and the certificate's place are ours."""
    (shown,) = blocks("Behind a reverse proxy with TLS", "nginx")
    kind = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=llamaman.example.org"
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "pem")]
    subprocess.run(["openssl", *kind.split(), *files], check=True, capture_output=True)
    for was, now in (
        ("listen 443 ssl", f"listen 127.0.0.1:{public} ssl"),
        ("127.0.0.1:5000", f"127.0.0.1:{manage}"),
        ("127.0.0.1:42069", f"127.0.0.1:{proxy}"),
        ("/etc/ssl/llamaman.pem", str(folder / "pem")),
        ("/etc/ssl/llamaman.key", str(folder / "key")),
    ):
        assert was in shown
        shown = shown.replace(was, now)
    user = "user root;\n" if os.geteuid() == 0 else ""
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = (
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{shown}\n}}\n"
    )
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


def test_nginx_accepts_the_pages_configuration(nginx: str, tmp_path: Path) -> None:
    path = configured(tmp_path, *processes.free_ports(1), manage=5000, proxy=42069)
    done = subprocess.run([nginx, "-t", "-c", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


@pytest.fixture
def behind_nginx(nginx: str, tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Manager, int]]:
    """A manager set up as the page says, and the port of nginx before it."""
    (exported,) = blocks("Behind a reverse proxy with TLS", "shell")
    said = dict(re.findall(r"^export (\w+)=(\S+)", exported, re.MULTILINE))
    assert set(said) == {
        "LLAMAMAN_HOST",
        "LLAMAMAN_TRUSTED_PROXIES",
        "LLAMAMAN_PUBLIC_URL",
        "LLAMAMAN_ALLOWED_HOSTS",
    }
    (public,) = processes.free_ports(1)
    said["LLAMAMAN_PUBLIC_URL"] += f":{public}"  # 443 is not ours to take
    with Manager(tmp_path / "m", env={**said, "LLAMAMAN_ADMIN_PASSWORD": PASSWORD}) as manager:
        shutil.copy(tiny_model, manager.models / "tiny.gguf")
        manager.manage("POST", "/api/models/rescan")
        folder = tmp_path / "nginx"
        folder.mkdir()
        path = configured(folder, public, manage=manager.port, proxy=manager.proxy_port)
        process = subprocess.Popen([nginx, "-c", str(path)], stderr=subprocess.DEVNULL)
        try:
            processes.wait_until(lambda: processes.accepts(public), "nginx", process, folder / "error.log")
            yield manager, public
        finally:
            processes.stop(process)


def over_tls(port: int, host: str) -> HTTPSConnection:
    """A connection to nginx that says which of its servers it wants."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE

    class Named(HTTPSConnection):
        def connect(self) -> None:
            line = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(CLIENT, 0))
            self.sock = trusting.wrap_socket(line, server_hostname=host)

    return Named(host, port)


def test_behind_nginx_a_login_is_bound_to_tls_and_a_key_asks_models(
    behind_nginx: tuple[Manager, int],
) -> None:
    manager, port = behind_nginx
    host = f"llamaman.example.org:{port}"
    with closing(over_tls(port, "llamaman.example.org")) as line:
        line.request("GET", "/", headers={"Accept": "text/html", "Host": host})
        sent = line.getresponse()
        sent.read()
        assert (sent.status, sent.headers["Location"]) == (302, "/login")
        line.request("GET", "/login", headers={"Host": host})
        page = line.getresponse()
        token = re.search(r'name="csrf_token"\s+value="([^"]*)"', page.read().decode())
        assert token is not None
        pre = page.headers["Set-Cookie"].partition(";")[0]
        headers = {
            "Host": host,
            "Origin": f"https://{host}",
            "Cookie": pre,
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Forwarded-For": "198.51.100.1",  # a client's own words
        }
        body = urlencode({"csrf_token": token[1], "username": "admin", "password": PASSWORD})
        line.request("POST", "/login", body, headers)
        answer = line.getresponse()
        answer.read()
        assert answer.status == 303
        cookies = answer.headers.get_all("Set-Cookie", [])
        (cookie,) = (each for each in cookies if "_pre=" not in each)
        assert cookie.startswith("__Host-llamaman_")
        assert "; Secure" in cookie
        line.request("GET", "/api/me", headers={"Host": host, "Cookie": cookie.partition(";")[0]})
        me = line.getresponse()
        assert json.loads(me.read())["name"] == "admin"
    assert {each["address"] for each in manager.manage("GET", "/api/sessions")} == {CLIENT}
    with closing(over_tls(port, "models.example.org")) as line:
        headers = {"Authorization": f"Bearer {manager.inference_key}", "Content-Type": "application/json"}
        chat = {
            "model": "tiny",
            "max_tokens": 8,
            "stream": True,
            "messages": [{"role": "user", "content": "hello"}],
        }
        line.request("POST", "/v1/chat/completions", json.dumps(chat), headers)
        answer = line.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        assert text.rstrip().endswith("data: [DONE]")
