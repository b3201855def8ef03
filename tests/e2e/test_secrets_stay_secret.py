"""Secrets are planted, everything a manager can do and refuse is driven, and then everything is searched for them.

What may hold a secret is the list below; nothing else may. Each line of the list must also be found to hold it, so that
a search that sees nothing fails too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from planted import Net, mark, unexpected, watching

from llamaman.testing.manager import CHAT, Manager
from llamaman.testing.visitor import Visitor
from llamaman.testing.wire import Answer

pytestmark = pytest.mark.real("embedded engine")

#: Secret -> the places that may hold it, and do: patterns of the whole name of a place.
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "setup code": (
        "file data/setup_code",
        "output of the manager",
        "answer to GET /api/setup-link",
        "output of llamaman setup-link",
        "answer to the form behind the link",
    ),
    "first session": ("answer to the first login",),
    "second session": ("answer to the second login",),
    "session after a new password": ("answer to a new password",),
    "csrf token": ("answer to GET /api/me", "answer to a form for a session"),
    **{
        f"key of scope {scope}": (
            f"answer that creates a key of scope {scope}",
            "answer to a key in the path",
        )
        for scope in ("view", "inference", "manage", "admin")
    },
    "key made by the command line": ("output of llamaman keys create",),
    "engine's own key": ("environ of engine",),
    # What somebody sends to the wrong place is told to them, and to nobody else.
    "password typed as a user name": ("answer to a login with the password as its name",),
    "password in a URL": ("answer to a launch by URL", "answer to why a URL"),
    "token of a hub": ("answer to a launch by URL", "answer to why a URL"),
}

CHAT_BODY = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


class Planted(dict[str, str]):
    """Name -> secret; one that is planted twice must be the same."""

    def plant(self, name: str, secret: str) -> str:
        assert len(secret) >= 16, f"{name} could occur by chance"
        assert self.setdefault(name, secret) == secret
        return secret


class Browser(Visitor):
    """A visitor whose every answer is kept."""

    def __init__(self, net: Net, port: int) -> None:
        super().__init__(port)
        self._net = net
        self.label = ""

    def call(self, method: str, path: str, body: object = None, **options: object) -> Answer:
        before = set(self.cookies.values())
        answer = super().call(method, path, body, **options)
        name = self.label or f"{method} {path.partition('?')[0]}"
        self._net.answer(name, answer)
        # Of several Set-Cookie an answer's mapping holds the last.
        self._net.keep(f"answer to {name}", "; ".join(set(self.cookies.values()) - before))
        return answer

    @contextlib.contextmanager
    def called(self, label: str):  # type: ignore[no-untyped-def]  # of a test
        self.label = label
        yield
        self.label = ""


def found_out(net: Net, planted: Mapping[str, str]) -> list[str]:
    """What is where it must not be, and what the list allows without need."""
    wrong = [
        f"{name} is in: {where}"
        for name in planted
        for where in unexpected(net, name, planted[name], ALLOWED)
    ]
    places = {name: net.where(planted[name]) for name in planted}
    wrong += [
        f"{name} is not in: {pattern}"
        for name in planted
        for pattern in ALLOWED.get(name, ())
        if pattern not in places[name]
    ]
    return wrong


def test_the_search_sees_a_secret_in_each_of_its_forms(tmp_path: Path) -> None:
    net = Net()
    secret = mark() + "/+="
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"\x00\xff" + secret.encode())
    net.files(tmp_path)
    net.keep("coded", b64encode(secret.encode()))
    net.keep("quoted", secret.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D"))
    net.keep("nothing", secret[:-1])
    assert net.where(secret) == ["coded", f"file {tmp_path.name}/deep/file", "quoted"]


# --- before there is a user -------------------------------------------------------------------------------


def test_the_code_of_the_first_user_is_where_its_finder_looks_and_nowhere_else(tmp_path: Path) -> None:
    net, planted = Net(), Planted()
    manager = Manager(tmp_path / "m", env={"LLAMAMAN_LOG_LEVEL": "debug", "LLAMAMAN_TRACE_PLUGINS": "1"})
    with manager:
        with watching(net, manager):
            code = planted.plant("setup code", (manager.data / "setup_code").read_text().strip())
            planted.plant("root secret", (manager.data / "root.secret").read_text().strip())
            net.files(manager.data, manager.logs)
            net.ask(manager.admin_socket, "GET", "/api/setup-link")
            net.cli(manager.env, "setup-link")
            visitor = Browser(net, manager.port)
            away = {"X-Forwarded-For": "203.0.113.1"}  # nobody who sits at this machine
            with visitor.called("the form behind the link"):
                visitor.call("GET", f"/setup/{code}", headers=away)
            wrong = planted.plant("wrong setup code", mark())
            first = planted.plant("first password", mark())
            fields = {"username": "admin", "password": first, "confirm": first}
            net.ask(manager.port, "GET", f"/setup/{wrong}", "GET /setup/...")
            with visitor.called("a wrong code"):
                assert visitor.submit("/setup", headers=away, **fields, code=wrong).status == 403
                other = {**fields, "confirm": planted.plant("other password", mark())}
                assert visitor.submit("/setup", headers=away, **other).status == 400
            with visitor.called("the form behind the link"):
                token = visitor.token(f"/setup/{code}")
            with visitor.called("the first user"):
                visitor.post(f"/setup/{code}", {**fields, "csrf_token": token}, headers=away)
            assert len(manager.manage("GET", "/api/users")) == 1
            net.ask(manager.port, "GET", f"/setup/{code}", "GET /setup/... afterwards")
            net.cli(manager.env, "audit")
            net.cli(manager.env, "events")
        manager.terminate()
        net.files(manager.data, manager.logs)
        net.keep("output of the manager", manager.output())
    allowed = {
        **ALLOWED,
        "root secret": ("file data/root.secret",),
        "wrong setup code": ("answer to a wrong code",),  # kept in the form for who typed it
    }
    wrong_places = [
        f"{name} is in: {where}"
        for name, secret in planted.items()
        for where in unexpected(net, name, secret, allowed)
    ]
    assert not wrong_places, "\n".join(wrong_places)
    for pattern in ALLOWED["setup code"]:
        assert pattern in net.where(code)
    assert not (manager.data / "setup_code").exists()


# --- everything else --------------------------------------------------------------------------------------


def test_secrets_are_found_only_where_the_list_allows(tmp_path: Path, tiny_model: Path) -> None:
    net, planted = Net(), Planted()
    env = {
        "SECRET_KEY": planted.plant("SECRET_KEY", mark()),
        "CLUSTER_SECRET": planted.plant("CLUSTER_SECRET", mark()),
        "LLAMAMAN_ADMIN_PASSWORD": planted.plant("password of the environment", mark()),
        "LLAMAMAN_BOOTSTRAP_API_KEY": planted.plant("key of the environment", mark("llm-")),
        "LLAMAMAN_LOG_LEVEL": "debug",
        "LLAMAMAN_TRACE_PLUGINS": "1",
        "HF_TOKEN": planted.plant("token of the shell", mark("hf_")),
        "MODEL_LOAD_TIMEOUT": "20",
    }
    manager = Manager(tmp_path / "m", env=env)
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    (manager.models / "broken.gguf").write_bytes(tiny_model.read_bytes()[:4000])
    with manager:
        with watching(net, manager):
            people(net, planted, manager)
            keys(net, planted, manager)
            instances(net, planted, manager)
            asking(net, planted, manager)
            hostile(net, planted, manager)
            from_the_terminal(net, planted, manager)
            reading(net, planted, manager)
        manager.kill()
        with watching(net, manager):
            manager.start()
            reading(net, planted, manager)
            manager.terminate()
        net.files(manager.data, manager.logs)
        net.keep("output of the manager", manager.output())
    assert "Traceback" not in manager.output()
    assert len(planted) >= 25
    wrong = found_out(net, planted)
    assert not wrong, "\n".join(wrong)


def people(net: Net, planted: Planted, manager: Manager) -> None:
    """Wrong and right logins, sudo, users, a new password."""
    password = planted["password of the environment"]
    browser = Browser(net, manager.port)
    browser.log_in("admin", planted.plant("wrong password", mark()))
    with browser.called("a login with the password as its name"):
        browser.log_in(planted.plant("password typed as a user name", mark()), "wrong password")
    with browser.called("the first login"):
        assert browser.log_in("admin", password).status == 303
    planted.plant("first session", session_of(browser))
    token = planted.plant("csrf token", browser.call("GET", "/api/me").json()["csrf_token"])
    with browser.called("a form for a session"):
        browser.call("GET", "/logout")
        browser.call("GET", "/")
    for guess in (planted.plant("wrong sudo password", mark()), password):
        browser.call("POST", "/api/me/sudo", {"password": guess}, headers={"X-CSRF-Token": token})
    browser.call(
        "POST",
        "/api/users",
        {"name": "eve", "role": "viewer", "password": planted.plant("password of a user", mark())},
        headers={"X-CSRF-Token": token},
    )
    browser.call(
        "PATCH",
        "/api/users/eve",
        {"password": planted.plant("changed password", mark()), "role": "nonsense"},
        headers={"X-CSRF-Token": token},
    )
    browser.call("PATCH", "/api/users/eve", {"password": mark()}, headers={"X-CSRF-Token": token})
    browser.call(
        "POST", "/api/settings", {"require_auth": "no", "password": password}, headers={"X-CSRF-Token": token}
    )
    browser.call(
        "DELETE", "/api/users/eve", headers={"X-CSRF-Token": planted.plant("wrong csrf token", mark())}
    )
    new = planted.plant("new password", mark())
    body = {"current": password, "new": new}
    with browser.called("a new password"):
        answer = browser.call("POST", "/api/me/password", body, headers={"X-CSRF-Token": token})
        assert answer.status == 200, answer.text
    planted.plant("session after a new password", session_of(browser))
    other = Browser(net, manager.port)
    with other.called("the second login"):
        assert other.log_in("admin", new).status == 303
    planted.plant("second session", session_of(other))
    stolen = {"Cookie": "; ".join(f"{name}={value}" for name, value in other.cookies.items())}
    net.ask(manager.proxy_port, "POST", CHAT, "a session on the wrong port", body=CHAT_BODY, headers=stolen)
    net.ask(manager.port, "DELETE", "/api/users/eve", "a session without a token", headers=stolen)
    two = {"Cookie": "; ".join(f"{n}={v}" for each in (browser, other) for n, v in each.cookies.items())}
    assert net.ask(manager.port, "GET", "/api/me", "two sessions", headers=two).status == 401


def session_of(browser: Visitor) -> str:
    (value,) = (value for name, value in browser.cookies.items() if not name.endswith("_pre"))
    return value


def keys(net: Net, planted: Planted, manager: Manager) -> None:
    """A key of each scope, used well and badly."""
    for scope in ("view", "inference", "manage", "admin"):
        body = {"name": f"key {scope}", "scope": scope}
        made = net.ask(manager.admin_socket, "POST", "/api/api-keys", f"create {scope}", body=body)
        net.caught[-1] = (f"answer that creates a key of scope {scope}", net.caught[-1][1])
        key = planted.plant(f"key of scope {scope}", made.json()["key"])
        for method, path in (("GET", "/api/instances"), ("GET", "/api/api-keys"), ("POST", "/api/users")):
            body = {} if method == "POST" else None
            net.ask(manager.port, method, path, f"{method} {path} with {scope}", key=key, body=body)
        net.ask(manager.port, "GET", f"/api/models?api_key={key}", "a key in the query")
        net.ask(manager.port, "GET", f"/api/{key}/x", "a key in the path", key=key)
    wrong = planted.plant("wrong key", mark("llm-"))
    for port in (manager.port, manager.proxy_port):
        net.ask(port, "GET", "/v1/models", "a wrong key", key=wrong)
        net.ask(port, "GET", "/v1/models", "two keys", key=wrong, headers={"X-Api-Key": mark("llm-")})


def instances(net: Net, planted: Planted, manager: Manager) -> None:
    """Launches that work, fail and crash, with tokens in every field that takes text."""
    token = planted.plant("token of a hub", mark("hf_"))
    socket_ = manager.admin_socket
    path = str(manager.models / "tiny.gguf")
    for extra in (
        f"--hf-token {token}",
        f"--api-key {planted.plant('key among extra arguments', mark('llm-'))}",
        f"--log-file /tmp/x?token={token}",
        f"--no-such-flag {token}",
    ):
        body = {"model_path": path, "threads": 1, "extra_args": extra}
        assert net.ask(socket_, "POST", "/api/instances", "a launch with a token", body=body).status == 400
        net.ask(socket_, "PUT", f"/api/presets{path}", "a preset with a token", body={"extra_args": extra})
    userinfo = planted.plant("password in a URL", mark())
    body = {"model_path": f"https://user:{userinfo}@hub.example/m.gguf?sig={token}"}
    net.ask(socket_, "POST", "/api/instances", "a launch by URL", body=body)
    net.ask(socket_, "GET", f"/api/presets/https://user:{userinfo}@hub.example/x", "a preset by URL")
    net.ask(socket_, "GET", f"/api/why?target=https://user:{userinfo}@hub.example/x?sig={token}", "why a URL")
    net.ask(socket_, "POST", "/api/instances", "a broken model", body={"model": "broken", "threads": 1})
    instance = manager.launch("tiny")
    (environ,) = manager.engines(instance["id"]).values()
    planted.plant("engine's own key", environ["LLAMA_API_KEY"])
    os.kill(instance["pid"], signal.SIGABRT)
    manager.until(lambda: manager.instance(instance["id"])["generation"] == 2, "the restart")
    manager.wait_status(instance["id"], "healthy")
    for each in manager.instances():
        net.ask(socket_, "GET", f"/api/instances/{each['id']}", "an instance")
        net.ask(socket_, "GET", f"/api/instances/{each['id']}/logs", "a log")
        net.ask(socket_, "GET", f"/api/why?target={each['id']}", "why an instance")


def asking(net: Net, planted: Planted, manager: Manager) -> None:
    """Inference that works and that does not, with secrets in prompts, headers and addresses."""
    key, token = planted["key of scope inference"], planted.plant("token in a prompt", mark("hf_"))
    basic = planted.plant("Authorization Basic", b64encode(f"user:{mark()}".encode()).decode())
    (port,) = {each["port"] for each in manager.instances() if each["status"] == "healthy"}
    secret_body = {**CHAT_BODY, "messages": [{"role": "user", "content": token}], "user": token}
    for where in (manager.port, manager.proxy_port, port):
        for stream in (False, True):
            answer = net.ask(
                where, "POST", f"{CHAT}?k={token}", key=key, body={**secret_body, "stream": stream}
            )
            assert answer.status == 200, answer.text
        for name, options in {
            "no model": {"key": key, "body": {**secret_body, "model": "absent"}},
            "no JSON": {"key": key, "body": f'{{"prompt": "{token}"'.encode()},
            "wrong type": {"key": key, "body": {**secret_body, "messages": token}},
            "basic": {"headers": {"Authorization": f"Basic {basic}"}, "body": secret_body},
            "cluster": {"headers": {"X-Cluster-Secret": planted["CLUSTER_SECRET"]}, "body": secret_body},
            "csrf": {"headers": {"X-CSRF-Token": planted["csrf token"]}, "body": secret_body},
        }.items():
            net.ask(where, "POST", f"{CHAT}?k={token}", name, **options)
    with (
        contextlib.suppress(OSError),
        contextlib.closing(manager.ask("tiny", prompt=token, stream=True, max_tokens=3000, key=key).sock),
    ):
        net.ask(manager.admin_socket, "GET", "/api/requests")


def hostile(net: Net, planted: Planted, manager: Manager) -> None:
    """Heads that are refused before anybody knows whose they are."""
    secret = planted.plant("secret in a bad head", mark("llm-"))
    for head in (
        f"GET /{secret} HTTP/1.1\r\nHost: a\r\nHost: {secret}\r\n\r\n",
        f"GET http://user:{secret}@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /api/{secret}/../x HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {secret}.example.org\r\nCookie: a={secret}\r\n\r\n",
        f"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\nOrigin: http://{secret}\r\n\r\n{secret[:7]}",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nAuthorization: Bearer b\r\n\r\n",
        f"{secret}\r\n\r\n",
    ):
        for port in (manager.port, manager.proxy_port):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
                line.sendall(head.encode())
                line.shutdown(socket.SHUT_WR)
                while line.recv(65536):
                    pass  # to the one who sent it, its own words


def from_the_terminal(net: Net, planted: Planted, manager: Manager) -> None:
    """Commands that work and that do not, from here and from elsewhere."""
    made = net.cli(manager.env, "keys", "create", "--name", "terminal")
    planted.plant("key made by the command line", made.stdout.strip())
    net.cli(
        manager.env,
        *("users", "create", "zoe", "--role", "viewer", "--password-stdin"),
        typed=planted.plant("typed password", mark()) + "\n",
    )
    net.cli(
        manager.env, "users", "create", "zoe", "--role", "viewer", "--password-stdin", typed=mark() + "\n"
    )
    away = {
        "PATH": manager.env["PATH"],
        "HOME": str(manager.folder),
        "LLAMAMAN_URL": f"http://127.0.0.1:{manager.port}",
        "LLAMAMAN_API_KEY": planted["key of scope view"],
    }
    net.cli(away, "users", "list")
    net.cli({**away, "LLAMAMAN_API_KEY": planted["wrong key"]}, "ps")
    broken = f"http://user:{planted['password in a URL']}@127.0.0.1:{manager.port}"
    net.cli({**away, "LLAMAMAN_URL": broken}, "ps")
    net.cli({**away, "LLAMAMAN_URL": f"{away['LLAMAMAN_URL']}?k={planted['password in a URL']}"}, "ps")
    net.cli({**away, "LLAMAMAN_API_KEY": planted["wrong key"] + " with blanks"}, "ps")
    net.cli(manager.env, "launch", "tiny", "-o", f"extra_args=--hf-token {mark('hf_')}")
    for arguments in (
        ("why", "tiny"),
        ("events",),
        ("sessions", "list"),
        ("audit", "--limit", "500", "--json"),
        ("keys", "list", "--json"),
        ("doctor", "--security", "--json"),
    ):
        assert net.cli(manager.env, *arguments).returncode in (0, 1), arguments


def reading(net: Net, planted: Planted, manager: Manager) -> None:
    """Everything that shows what happened."""
    assert planted
    for row in manager.manage("GET", "/api/routes"):
        if row["method"] == "GET" and row["surface"] == "manage" and "{" not in row["path"]:
            if row["path"].endswith("/stream"):
                with contextlib.closing(_stream(manager, row["path"])) as line:
                    line.settimeout(30)
                    net.keep(f"head of {row['path']}", line.recv(1))
                    line.settimeout(0.3)
                    with contextlib.suppress(TimeoutError):
                        while block := line.recv(65536):
                            net.keep(f"stream {row['path']}", block)
            elif row["path"] != "/api/me":
                net.ask(manager.admin_socket, "GET", row["path"])
    net.ask(manager.admin_socket, "GET", "/api/audit?limit=500")
    net.ask(manager.admin_socket, "GET", "/api/doctor?security=true")
    net.ask(manager.admin_socket, "GET", "/api/why?target=tiny")
    for each in manager.instances():
        net.ask(manager.admin_socket, "GET", f"/api/instances/{each['id']}/logs", "a log")
    net.files(manager.data, manager.logs)


def _stream(manager: Manager, path: str) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(manager.admin_socket))
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 0\r\n\r\n".encode())
    return line
