"""Who may make the first user: whoever has the one-time code, or sits at this machine under our account.

Asked from other addresses of this machine, from another account of it, through what claims to be a proxy, and
by pages of other sites. Then what a manager does whose users are gone or unreadable: it shows no form.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from llamaman.testing import processes
from llamaman.testing.manager import Manager
from llamaman.testing.visitor import Visitor
from llamaman.testing.wire import Answer, lan_address

PASSWORD = "correct horse battery staple"
USER = {"username": "admin", "password": PASSWORD, "confirm": PASSWORD}

EXIT_CONFIG = 78

#: Becomes another account, sends the request that it reads and prints the answer.
RAW = """
import encodings.idna, os, pwd, socket, sys
os.setgroups([])
os.setgid(pwd.getpwnam("nobody").pw_gid)
os.setuid(pwd.getpwnam("nobody").pw_uid)
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as line:
    line.sendall(sys.stdin.buffer.read())
    while block := line.recv(65536):
        sys.stdout.buffer.write(block)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager on every address, without a user; each test leaves it so."""
    with Manager(tmp_path_factory.mktemp("fresh"), env={"LLAMAMAN_HOST": "0.0.0.0"}) as manager:
        yield manager
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[..., Manager]]:
    """Makes further managers, stopped."""
    with contextlib.ExitStack() as stack:

        def make(**env: str) -> Manager:
            manager = Manager(tmp_path / f"manager-{len(list(tmp_path.iterdir()))}", env=env)
            stack.callback(manager.close)
            return manager

        yield make


def no_users(manager: Manager) -> bool:
    return manager.manage("GET", "/api/users") == []


def code_of(manager: Manager) -> str:
    """The path behind which the form is open to whoever has it."""
    return urlsplit(manager.manage("GET", "/api/setup-link")["link"]).path


def set_up(visitor: Visitor, path: str = "/setup", **fields: str) -> Answer:
    """Fill in the form and send it."""
    return visitor.submit(path, **{**USER, **fields})


def asks_for_code(visitor: Visitor) -> bool:
    page = visitor.call("GET", "/setup")
    assert page.status == 200, page.text
    return 'name="code"' in page.text


def refused(fresh: Manager, answer: Answer) -> None:
    """403, the page says where the code is found, and nothing has been made."""
    assert answer.status == 403, answer.text
    assert "setup-link" in answer.text
    assert no_users(fresh)


def test_the_code_is_in_a_file_for_us_alone_and_in_one_line_of_the_log(fresh: Manager) -> None:
    kept = fresh.data / "setup_code"
    assert kept.stat().st_mode & 0o777 == 0o600
    path = code_of(fresh)
    assert path == f"/setup/{kept.read_text().strip()}"
    assert len(path) >= len("/setup/") + 22, "128 bits"
    assert sum(path in line for line in fresh.output().splitlines()) == 1


def test_our_own_account_at_this_machine_needs_no_code(another: Callable[..., Manager]) -> None:
    for address, host in (("127.0.0.1", "localhost"), ("127.0.0.2", "127.0.0.2")):
        manager = another(LLAMAMAN_HOST="0.0.0.0")
        manager.start()
        visitor = Visitor(manager.port, address=address, host=host)
        assert not asks_for_code(visitor)
        assert set_up(visitor).status == 303
        assert visitor.call("GET", "/api/me").json()["role"] == "admin"


def test_another_address_needs_the_code(fresh: Manager) -> None:
    address = lan_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    for host in (address, "localhost"):
        stranger = Visitor(fresh.port, address=address, host=host)
        assert asks_for_code(stranger)
        refused(fresh, set_up(stranger))
        refused(fresh, set_up(stranger, code="x" * 22))


def test_another_account_of_this_machine_needs_the_code(fresh: Manager) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can act as another account")
    visitor = Visitor(fresh.port)
    token = visitor.token("/setup")
    ((name, value),) = visitor.cookies.items()
    body = urlencode({"csrf_token": token, **USER})
    head = (
        f"POST /setup HTTP/1.1\r\nHost: 127.0.0.1:{fresh.port}\r\nOrigin: http://127.0.0.1:{fresh.port}\r\n"
        f"Cookie: {name}={value}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", RAW, str(fresh.port)],
        input=(head + body).encode(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"HTTP/1.1 403 "), done.stdout.decode()
    assert b"setup-link" in done.stdout
    assert no_users(fresh)


def test_the_code_opens_it_from_anywhere(another: Callable[..., Manager]) -> None:
    manager = another()
    manager.start()
    stranger = Visitor(manager.port, host="llamaman")
    assert set_up(stranger, code_of(manager)).status == 303
    assert stranger.call("GET", "/api/me").json()["role"] == "admin"
    assert not (manager.data / "setup_code").exists(), "the code dies with the first user"


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Via"]
)
def test_whatever_came_through_a_proxy_needs_the_code(fresh: Manager, name: str) -> None:
    visitor = Visitor(fresh.port)
    refused(fresh, visitor.submit("/setup", headers={name: "127.0.0.1"}, **USER))


@pytest.mark.parametrize("host", ["llamaman", "box.local", "192.0.2.7"])
def test_a_host_that_is_not_loopback_needs_the_code(fresh: Manager, host: str) -> None:
    visitor = Visitor(fresh.port, host=host)
    assert asks_for_code(visitor)
    refused(fresh, set_up(visitor))


def test_pages_of_other_sites_cannot_send_the_form(fresh: Manager) -> None:
    visitor = Visitor(fresh.port)
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": f"http://127.0.0.1:{fresh.port + 1}"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{fresh.port}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://127.0.0.1:{fresh.port}", "Sec-Fetch-Site": "same-site"},
    ):
        token = visitor.token("/setup")
        sent = visitor.post("/setup", {"csrf_token": token, **USER}, headers=headers)
        assert sent.status == 403, headers
    assert no_users(fresh)


def test_the_form_counts_only_with_the_token_that_came_with_it(fresh: Manager) -> None:
    assert Visitor(fresh.port).post("/setup", USER).status == 403
    visitor = Visitor(fresh.port)
    visitor.token("/setup")
    assert visitor.post("/setup", USER).status == 403
    other = Visitor(fresh.port).token("/setup")
    assert visitor.post("/setup", {"csrf_token": other, **USER}).status == 403
    assert no_users(fresh)


def test_a_name_that_was_rebound_to_us_gets_no_form(fresh: Manager) -> None:
    visitor = Visitor(fresh.port, host="evil.example")
    for path in ("/setup", code_of(fresh)):
        assert visitor.call("GET", path).status == 421
        assert visitor.post(path, USER).status == 421
    assert no_users(fresh)


def test_while_there_is_no_user_nothing_else_is_open(fresh: Manager) -> None:
    visitor = Visitor(fresh.port)
    for path in ("/api/users", "/api/setup-link", "/api/instances", "/api/me"):
        assert visitor.call("GET", path).status == 401, path
    for path in ("/", "/login"):
        page = visitor.call("GET", path, headers={"Accept": "text/html"})
        assert (page.status, page.headers["location"]) == (302, "/setup")


@pytest.mark.parametrize("password", ["tiny-one", "password123", "administrator"])
def test_a_weak_password_is_told_on_the_page(fresh: Manager, password: str) -> None:
    sent = set_up(Visitor(fresh.port), username="administrator", password=password, confirm=password)
    assert sent.status == 400
    assert 'name="password"' in sent.text
    assert no_users(fresh)


def test_ten_wrong_codes_are_enough(another: Callable[..., Manager]) -> None:
    manager = another()
    manager.start()
    visitor = Visitor(manager.port, host="llamaman")
    token = visitor.token("/setup")
    wrong = {"csrf_token": token, **USER, "code": "x" * 22}
    seen = [visitor.post("/setup", wrong) for _ in range(12)]
    assert [answer.status for answer in seen[:10]] == [403] * 10
    assert [answer.status for answer in seen[10:]] == [429] * 2
    right = {**wrong, "code": code_of(manager).rpartition("/")[2]}
    assert visitor.post("/setup", right).status == 429, "the code of this run is spent"
    assert no_users(manager)
    manager.restart()
    assert set_up(visitor, code_of(manager)).status == 303, "and the next run has another"


def test_fifty_at_once_make_one_user(another: Callable[..., Manager]) -> None:
    manager = another()
    manager.start()
    visitors = [Visitor(manager.port) for _ in range(50)]
    tokens = [visitor.token("/setup") for visitor in visitors]

    def send(number: int) -> tuple[int, str]:
        fields = {"csrf_token": tokens[number], **USER, "username": f"admin-{number}"}
        answer = visitors[number].post("/setup", fields)
        return answer.status, answer.headers.get("location", "")

    with ThreadPoolExecutor(50) as pool:
        seen = list(pool.map(send, range(50)))
    assert seen.count((303, "/")) == 1, seen
    assert set(seen) <= {(303, "/"), (303, "/login"), (429, "")}, seen
    (made,) = manager.manage("GET", "/api/users")
    assert (made["role"], made["sessions"]) == ("admin", 1)
    assert len(manager.manage("GET", "/api/sessions")) == 1


def refuses_to_start(manager: Manager) -> str:
    """It exits with 78; its last words."""
    manager.log.unlink(missing_ok=True)
    manager.spawn()
    assert manager.running.wait(60) == EXIT_CONFIG, manager.output()
    assert processes.listening([manager.port]) == set()
    return manager.output()


def harms(content: bytes) -> dict[str, bytes | None]:
    """What may have become of a file; None: it is gone."""
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    return {
        "truncated": content[: len(content) // 2],
        "emptied": b"",
        "zeroed": bytes(len(content)),
        "a bit flipped": bytes(flipped),
        "removed": None,
    }


def test_users_that_are_gone_or_unreadable_end_the_start_and_open_no_form(
    another: Callable[..., Manager],
) -> None:
    manager = another(LLAMAMAN_ADMIN_PASSWORD=PASSWORD)
    manager.start()
    manager.terminate()
    (kept,) = manager.data.rglob("users.json")
    content = kept.read_bytes()
    for harm, left in harms(content).items():
        if left is None:
            kept.unlink()
            refuses_to_start(manager)
            assert not kept.exists(), "and the next start sees what this one saw"
        else:
            kept.write_bytes(left)
        assert "users" in refuses_to_start(manager), harm
    kept.write_bytes(content)
    manager.start()
    assert Visitor(manager.port).log_in("admin", PASSWORD).status == 303


@pytest.mark.parametrize("password", ["tiny-one", "password123", "x" * 257])
def test_a_weak_password_from_the_environment_ends_the_start(
    another: Callable[..., Manager], password: str
) -> None:
    said = refuses_to_start(another(LLAMAMAN_ADMIN_PASSWORD=password))
    assert "LLAMAMAN_ADMIN_PASSWORD" in said
    assert password not in said


def test_the_environment_makes_the_first_user_and_never_another(another: Callable[..., Manager]) -> None:
    manager = another(LLAMAMAN_ADMIN_PASSWORD=PASSWORD, LLAMAMAN_ADMIN_USER="Alice")
    manager.start()
    assert manager.manage("GET", "/api/setup-link") == {"link": None}
    assert Visitor(manager.port).call("GET", "/setup").headers.get("location") == "/login"
    manager.env["LLAMAMAN_ADMIN_PASSWORD"] = "another horse, another staple"
    manager.env["LLAMAMAN_ADMIN_USER"] = "bob"
    manager.restart()
    assert [each["name"] for each in manager.manage("GET", "/api/users")] == ["Alice"]
    assert Visitor(manager.port).log_in("alice", PASSWORD).status == 303


@pytest.mark.real("embedded engine")
def test_no_child_is_given_what_made_the_first_user_and_the_first_key(
    another: Callable[..., Manager], tiny_model: Path
) -> None:
    manager = another(LLAMAMAN_ADMIN_PASSWORD=PASSWORD)
    manager.models.joinpath("tiny.gguf").write_bytes(tiny_model.read_bytes())
    manager.start()
    manager.launch("tiny")
    children = [pid for pid in processes.pids() if processes.parent(pid) == manager.running.pid]
    grandchildren = [pid for pid in processes.pids() if processes.parent(pid) in children]
    seen = {pid: processes.environ(pid) for pid in {*children, *grandchildren, *manager.engines()}}
    assert set(manager.engines()) <= set(seen)
    assert any(seen.values())
    for pid, environ in seen.items():
        kept = json.dumps(environ)
        assert PASSWORD not in kept, pid
        assert manager.inference_key not in kept, pid
        assert not {"LLAMAMAN_ADMIN_PASSWORD", "LLAMAMAN_BOOTSTRAP_API_KEY"} & set(environ), pid
    assert PASSWORD not in manager.output()
    assert manager.inference_key not in manager.output()
