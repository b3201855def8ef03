"""Logging in to a real manager: what slows a guesser down, whose address counts, what a login leaves in a browser.

Every test comes from addresses of its own, so that none feels the failures of another.
"""

from __future__ import annotations

import http.client
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from llamaman.testing.manager import Manager
from llamaman.testing.visitor import Visitor

PASSWORD = "correct horse battery staple"
WRONG = "correct horse battery stable"
FREE = 5  # failures of one name from one address, before a pause
LONG_S = 3
HASH_S = 0.05  # of a processor; one hash takes two to five times that, everything else a tenth
_addresses = count(1)


def new_address() -> str:
    """An address of this machine's loopback that nobody has used."""
    number = next(_addresses)
    return f"127.7.{number // 250}.{number % 250 + 1}"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager that believes no proxy."""
    with Manager(tmp_path_factory.mktemp("logins"), env={"LLAMAMAN_ADMIN_PASSWORD": PASSWORD}) as manager:
        yield manager
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture(scope="module")
def behind_proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager behind 127.8.0.0/16, which is behind 10.0.0.0/8."""
    env = {
        "LLAMAMAN_ADMIN_PASSWORD": PASSWORD,
        "LLAMAMAN_TRUSTED_PROXIES": "127.8.0.0/16, 10.0.0.0/8",
    }
    with Manager(tmp_path_factory.mktemp("proxies"), env=env) as manager:
        yield manager
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a login was told, how long that took and what it cost."""

    status: int
    retry_after: int | None
    cookies: tuple[str, ...]
    seconds: float
    processor: float


def used(manager: Manager) -> float:
    """Seconds of processor that the manager and its ended children have taken."""
    cells = Path(f"/proc/{manager.running.pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, cells[11:15])) / os.sysconf("SC_CLK_TCK")


def log_in(
    manager: Manager,
    password: str,
    *,
    name: str = "admin",
    source: str,
    headers: Mapping[str, str] | None = None,
    spoof: Callable[[], Mapping[str, str]] | None = None,
    cookie: str | None = None,
) -> Answer:
    """Fill in the form from one address; ``spoof`` gives each login other headers."""
    headers = spoof() if spoof else headers
    line = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=180, source_address=(source, 0))
    with closing(line):
        given = {**(headers or {}), **({"Cookie": cookie} if cookie else {})}
        line.request("GET", "/login", headers=given)
        page = line.getresponse()
        token = re.search(r'name="csrf_token"\s+value="([^"]*)"', page.read().decode())
        assert token is not None, page.status
        kept = [each.partition(";")[0] for each in page.headers.get_all("Set-Cookie", [])]
        scheme = "https" if given.get("X-Forwarded-Proto") == "https" else "http"
        form = {
            **given,
            "Cookie": "; ".join([*([cookie] if cookie else []), *kept]),
            "Origin": f"{scheme}://127.0.0.1:{manager.port}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode({"csrf_token": token[1], "username": name, "password": password})
        before, begun = used(manager), time.monotonic()
        line.request("POST", "/login", body, form)
        answer = line.getresponse()
        answer.read()
        seconds = time.monotonic() - begun
        wait = answer.headers.get("Retry-After")
        cookies = tuple(answer.headers.get_all("Set-Cookie", []))
        return Answer(answer.status, int(wait) if wait else None, cookies, seconds, used(manager) - before)


def fail(manager: Manager, times: int, **who: Any) -> None:
    """Type a wrong password so often."""
    for _ in range(times):
        assert log_in(manager, WRONG, **who).status == 401


def fail_until_paused(manager: Manager, **who: Any) -> Answer:
    """Type wrong passwords until the pause is long enough to look at it; the last refusal."""
    failures = 0
    while True:
        answer = log_in(manager, WRONG, **who)
        failures += answer.status == 401
        assert failures <= FREE + 5, "no pause"
        if answer.status == 429:
            assert failures >= FREE
            assert answer.retry_after is not None
            assert 1 <= answer.retry_after <= 60
            if answer.retry_after >= LONG_S:
                return answer
            time.sleep(answer.retry_after)


# --- what slows a guesser down ----------------------------------------------------------------------------


def test_after_some_failures_a_name_pauses_for_one_address_at_once_and_is_never_locked(
    manager: Manager,
) -> None:
    source, elsewhere = new_address(), new_address()
    refused = fail_until_paused(manager, source=source)
    for name, password in (("admin", WRONG), ("admin", PASSWORD), ("ADMIN", PASSWORD)):
        answer = log_in(manager, password, name=name, source=source)
        assert answer.status == 429, "as names are compared"
        assert answer.processor < HASH_S, "no password was hashed"
        assert not any(re.match(r"llamaman_[0-9a-f]{8}=[^;]", each) for each in answer.cookies)
    assert log_in(manager, PASSWORD, source=elsewhere).status == 303
    assert log_in(manager, WRONG, source=source, name="somebody").status == 401
    assert refused.retry_after is not None
    deadline = time.monotonic() + refused.retry_after + 5
    while (answer := log_in(manager, PASSWORD, source=source)).status == 429:
        assert time.monotonic() < deadline, "being refused must not make it longer"
        time.sleep(0.1)
    assert answer.status == 303
    fail(manager, FREE - 1, source=source)
    assert log_in(manager, PASSWORD, source=source).status == 303, "a success begins anew"


@pytest.mark.parametrize("name", ["admin", "nobody-of-that-name", "", "x" * 128])
def test_an_unknown_name_costs_the_same_work_as_a_wrong_password(manager: Manager, name: str) -> None:
    answer = log_in(manager, WRONG, source=new_address(), name=name)
    assert answer.status == 401
    assert answer.processor >= HASH_S, "a password was hashed"


# --- whose address counts ---------------------------------------------------------------------------------


def test_what_an_untrusted_peer_says_of_others_changes_nothing(manager: Manager) -> None:
    source = new_address()
    spoofed = ({"X-Forwarded-For": f"203.0.113.{number}"} for number in count(1))
    fail_until_paused(manager, source=source, spoof=lambda: next(spoofed))
    names = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X_Forwarded_For", "X-Client-IP")
    for headers in ({}, next(spoofed), *({name: "203.0.113.99"} for name in names)):
        assert log_in(manager, PASSWORD, source=source, headers=headers).status == 429, headers
    victim = new_address()
    fail(manager, FREE, source=new_address(), headers={"X-Forwarded-For": victim})
    assert log_in(manager, PASSWORD, source=victim).status == 303, "nobody is locked out by another's headers"


def chain(*addresses: str) -> dict[str, str]:
    return {"X-Forwarded-For": ", ".join(addresses)}


def test_behind_three_proxies_the_client_counts_whatever_it_adds_itself(behind_proxies: Manager) -> None:
    manager, proxy = behind_proxies, "127.8.0.1"
    client, two_hops = "203.0.113.7", ("10.0.0.5", "10.0.0.6")
    words = (f"198.51.100.{number}" for number in count(1))  # what the client says of itself
    fail_until_paused(manager, source=proxy, spoof=lambda: chain(next(words), "10.0.0.9", client, *two_hops))
    assert log_in(manager, PASSWORD, source=proxy, headers=chain(client, *two_hops)).status == 429
    assert log_in(manager, PASSWORD, source="127.8.0.2", headers=chain(client)).status == 429, (
        "by another way"
    )
    assert log_in(manager, PASSWORD, source=proxy, headers=chain("203.0.113.8", *two_hops)).status == 303
    direct = new_address()  # no proxy of ours, so its header counts for nothing
    assert log_in(manager, PASSWORD, source=direct, headers=chain(client)).status == 303


def test_the_address_that_counts_is_the_one_that_is_shown(behind_proxies: Manager) -> None:
    headers = chain("198.51.100.200", "203.0.113.44", "10.1.2.3")
    assert log_in(behind_proxies, PASSWORD, source="127.8.0.1", headers=headers).status == 303
    sessions = behind_proxies.manage("GET", "/api/sessions")
    assert "203.0.113.44" in [each["address"] for each in sessions]
    assert "198.51.100.200" not in str(sessions)
    entries = behind_proxies.manage("GET", "/api/audit")["entries"]
    assert "203.0.113.44" in [each["address"] for each in entries]


# --- what a login leaves in a browser ---------------------------------------------------------------------


def test_a_plain_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(manager: Manager) -> None:
    answer = log_in(manager, PASSWORD, source=new_address())
    (cookie,) = (each for each in answer.cookies if "_pre=" not in each)
    assert re.match(r"llamaman_[0-9a-f]{8}=[A-Za-z0-9_-]{43}; ", cookie), (
        "32 random bytes, named after the installation"
    )
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= parts
    assert not any(part.startswith("domain") for part in parts)
    assert "secure" not in parts, "a browser would not send it back over plain HTTP"


@pytest.mark.parametrize(
    ("source", "secure"), [("127.8.0.1", True), ("127.9.0.1", False)], ids=["trusted", "not"]
)
def test_over_tls_of_a_trusted_proxy_the_cookie_is_bound_to_host_and_tls(
    behind_proxies: Manager, source: str, secure: bool
) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.60"}
    if not secure:  # who is not trusted has said nothing, so that its Origin is of another scheme
        headers["Referer"] = "http://127.0.0.1"
        headers.pop("X-Forwarded-Proto")
    answer = log_in(behind_proxies, PASSWORD, source=source, headers=headers)
    assert answer.status == 303
    (cookie,) = (each for each in answer.cookies if "_pre=" not in each)
    assert cookie.startswith("__Host-llamaman_") is secure
    assert ("secure" in cookie.lower().replace(" ", "").split(";")[1:]) is secure


def test_a_session_that_an_attacker_has_chosen_is_not_taken_over(manager: Manager) -> None:
    first = log_in(manager, PASSWORD, source=new_address())
    name = next(each for each in first.cookies if "_pre=" not in each).partition("=")[0]
    chosen = "A" * 43
    answer = log_in(manager, PASSWORD, source=new_address(), cookie=f"{name}={chosen}; {name}_pre={chosen}")
    assert answer.status == 303
    given = next(each for each in answer.cookies if each.startswith(f"{name}="))
    assert chosen not in given
    for value in (chosen, "A" * 42, ""):
        visitor = Visitor(manager.port)
        visitor.cookies[name] = value
        assert visitor.call("GET", "/api/me").status == 401
        visitor.cookies = {f"{name}_pre": chosen}
        assert visitor.call("GET", "/api/me").status == 401


def test_logging_in_again_ends_the_session_that_the_browser_had(manager: Manager) -> None:
    visitor, thief = Visitor(manager.port), Visitor(manager.port)
    assert visitor.log_in("admin", PASSWORD).status == 303
    thief.cookies = dict(visitor.cookies)
    assert thief.call("GET", "/api/me").status == 200
    assert visitor.log_in("admin", PASSWORD).status == 303
    assert visitor.call("GET", "/api/me").status == 200
    assert thief.call("GET", "/api/me").status == 401
