"""Who may do what, and what a key is: found by digest, shown once, never more than its maker holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaman.access import OPENS, Access, Scope
from llamaman.core.auth import Keys, allows_model, authorise, presented_key
from llamaman.errors import ConfigError, Forbidden, InvalidField, InvalidRequest, NotFound, Unauthorized
from llamaman.records import NOBODY, Identity
from llamaman_store_json import JsonStore

ADMIN = Identity("local", "uid:0", Scope.ADMIN)
STRONG = "llm-" + "Ab3_-" * 8


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JsonStore]:
    store = JsonStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(store: JsonStore, clock: Clock) -> Keys:
    return Keys(store, clock=clock)


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


# --- the decision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("require_auth", [True, False])
@pytest.mark.parametrize("level", list(Access))
def test_nobody_passes_public_routes_and_with_require_auth_off_inference_and_nothing_else(
    level: Access, require_auth: bool
) -> None:
    opened = {Access.PUBLIC} if require_auth else {Access.PUBLIC, Access.INFERENCE}
    if level in opened:
        authorise(NOBODY, level, require_auth=require_auth)
    else:
        with pytest.raises(Unauthorized, match="API key required"):
            authorise(NOBODY, level, require_auth=require_auth)


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("level", [Access.INFERENCE, Access.VIEW, Access.MANAGE, Access.ADMIN])
def test_a_scope_opens_its_levels_and_a_refusal_names_the_scope_needed(scope: Scope, level: Access) -> None:
    identity = Identity("key", "k", scope, "id")
    if level in OPENS[scope]:
        authorise(identity, level, require_auth=True)
    else:
        with pytest.raises(Forbidden, match=f"'{level.value}'"):
            authorise(identity, level, require_auth=True)


def test_only_nodes_pass_node_routes() -> None:
    authorise(Identity("node", "n2"), Access.NODE, require_auth=True)
    with pytest.raises(Forbidden):
        authorise(ADMIN, Access.NODE, require_auth=True)


def test_a_node_passes_nothing_but_node_routes() -> None:
    with pytest.raises(Forbidden):
        authorise(Identity("node", "n2"), Access.VIEW, require_auth=True)


def test_a_model_list_is_compared_without_regard_to_case() -> None:
    limited = Identity("key", "k", Scope.INFERENCE, "id", frozenset({"tiny"}))
    assert allows_model(limited, "Tiny")
    assert not allows_model(limited, "tiny-2")
    assert allows_model(NOBODY, "anything")


# --- where a key may stand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"authorization", b"Bearer llm-x")], "llm-x"),
        ([(b"authorization", b"bearer llm-x")], "llm-x"),
        ([(b"x-api-key", b"llm-x")], "llm-x"),
        ([(b"authorization", b"Bearer llm-x"), (b"x-api-key", b"llm-x")], "llm-x"),
        ([(b"authorization", b"Basic dXNlcjpwdw==")], None),
        ([(b"authorization", b"Basic dXNlcjpwdw=="), (b"x-api-key", b"llm-x")], "llm-x"),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"cookie", b"key=llm-x")], None),
    ],
)
def test_a_key_stands_in_one_of_two_headers_and_nowhere_else(
    headers: list[tuple[bytes, bytes]], expected: str | None
) -> None:
    assert presented_key(headers) == expected


def test_two_different_keys_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        presented_key([(b"authorization", b"Bearer llm-x"), (b"x-api-key", b"llm-y")])


# --- keys ----------------------------------------------------------------------------------------------


def test_a_key_has_256_random_bits_and_is_stored_as_its_digest_only(keys: Keys, tmp_path: Path) -> None:
    record, key = keys.create("ci", by=ADMIN)
    assert re.fullmatch(r"llm-[A-Za-z0-9_-]{43}", key)
    assert record.prefix == key[:8]
    stored = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert key not in stored
    assert hashlib.sha256(key.encode()).hexdigest() in stored


def test_a_key_made_without_a_scope_manages(keys: Keys) -> None:
    record, key = keys.create("old client", by=ADMIN)
    assert record.scope is Scope.MANAGE
    assert keys.authenticate(bearer(key)).scope is Scope.MANAGE


def test_a_key_is_known_after_a_restart(keys: Keys, store: JsonStore) -> None:
    _, key = keys.create("ci", Scope.INFERENCE, ["Tiny"], by=ADMIN)
    identity = Keys(store).authenticate(bearer(key))
    assert (identity.kind, identity.name, identity.scope) == ("key", "ci", Scope.INFERENCE)
    assert identity.models == frozenset({"tiny"})


def test_no_key_is_nobody_and_an_unknown_key_is_refused(keys: Keys) -> None:
    assert keys.authenticate([]) is NOBODY
    with pytest.raises(Unauthorized, match=r"^Invalid API key$"):
        keys.authenticate(bearer("llm-guess"))


def test_bytes_that_are_no_text_are_refused_like_any_other_wrong_key(keys: Keys) -> None:
    with pytest.raises(Unauthorized):
        keys.authenticate([(b"x-api-key", b"\xff\xfe\x80")])


def test_an_expired_key_is_refused(keys: Keys, clock: Clock) -> None:
    _, key = keys.create("short", expires="2030-03-17T17:46:50Z", by=ADMIN)
    keys.authenticate(bearer(key))
    clock.now += 60
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(key))


def test_an_expiry_without_an_offset_is_utc(keys: Keys) -> None:
    record, _ = keys.create("k", expires="2031-01-31T12:00:00", by=ADMIN)
    assert record.expires == 1927627200.0


def test_a_revoked_key_is_refused_at_once_and_subscribers_hear_of_it(keys: Keys, store: JsonStore) -> None:
    heard: list[str] = []

    def deaf(key_id: str) -> None:
        raise RuntimeError("deaf")

    keys.on_revoke(deaf)
    keys.on_revoke(heard.append)
    record, key = keys.create("k", by=ADMIN)
    keys.revoke(record.id, by=ADMIN)
    assert heard == [record.id]
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(key))
    with pytest.raises(Unauthorized):
        Keys(store).authenticate(bearer(key))


def test_an_unsubscribed_callback_is_not_called(keys: Keys) -> None:
    heard: list[str] = []
    keys.on_revoke(heard.append)()
    record, _ = keys.create("k", by=ADMIN)
    keys.revoke(record.id, by=ADMIN)
    assert heard == []


def test_revoking_what_does_not_exist_is_an_error(keys: Keys) -> None:
    with pytest.raises(NotFound, match="0000"):
        keys.revoke("0000", by=ADMIN)


def test_a_key_revoked_elsewhere_ends_with_the_next_refresh(keys: Keys, store: JsonStore) -> None:
    record, key = keys.create("k", by=ADMIN)
    heard: list[str] = []
    keys.on_revoke(heard.append)
    Keys(store).revoke(record.id, by=ADMIN)
    keys.refresh()
    assert heard == [record.id]
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(key))


def test_last_use_is_known_and_never_stored(keys: Keys, clock: Clock, tmp_path: Path) -> None:
    record, key = keys.create("k", by=ADMIN)
    assert keys.last_used(record.id) is None
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    clock.now += 5
    keys.authenticate(bearer(key))
    assert keys.last_used(record.id) == clock.now
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("holder", list(Scope))
@pytest.mark.parametrize("wanted", list(Scope))
def test_nobody_grants_more_than_they_hold(keys: Keys, holder: Scope, wanted: Scope) -> None:
    by = Identity("local", "x", holder)
    if OPENS[wanted] <= OPENS[holder]:
        assert keys.create("k", wanted, by=by)[0].scope is wanted
    else:
        with pytest.raises(Forbidden, match=wanted.value):
            keys.create("k", wanted, by=by)
        assert keys.list() == ()


def test_a_limited_key_makes_keys_with_its_limits_only(keys: Keys) -> None:
    maker, key = keys.create("maker", Scope.ADMIN, ["a", "b"], "2031-01-01T00:00:00Z", by=ADMIN)
    by = keys.authenticate(bearer(key))
    with pytest.raises(Forbidden, match="a, b"):
        keys.create("all models", Scope.VIEW, None, "2030-12-31T00:00:00Z", by=by)
    with pytest.raises(Forbidden, match="a, b"):
        keys.create("another model", Scope.VIEW, ["c"], "2030-12-31T00:00:00Z", by=by)
    with pytest.raises(Forbidden, match="expires"):
        keys.create("for ever", Scope.VIEW, ["a"], by=by)
    keys.create("within", Scope.VIEW, ["a"], "2030-12-31T00:00:00Z", by=by)
    assert {record.name for record in keys.list()} == {maker.name, "within"}


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 129}),
        ("name", {"name": "a\x1b[31m"}),
        ("name", {"name": "a\u202eb"}),
        ("scope", {"scope": "root"}),
        ("models", {"models": []}),
        ("models", {"models": "tiny"}),
        ("models", {"models": [""]}),
        ("models", {"models": ["m"] * 257}),
        ("expires", {"expires": "tomorrow"}),
        ("expires", {"expires": "2001-01-01T00:00:00Z"}),
        ("expires", {"expires": "9999999999-01-01"}),
        ("expires", {"expires": float("nan")}),
        ("expires", {"expires": 1e300}),
    ],
)
def test_a_wrong_field_is_named_and_no_key_is_made(
    keys: Keys, field: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(InvalidField) as caught:
        keys.create(**{"name": "k", **arguments}, by=ADMIN)  # type: ignore[arg-type] # wrong on purpose
    assert caught.value.field == field
    assert keys.list() == ()


# --- the bootstrap key ---------------------------------------------------------------------------------


def test_a_bootstrap_key_infers_and_is_taken_while_no_key_exists(keys: Keys) -> None:
    keys.ensure_bootstrap(STRONG)
    assert keys.authenticate(bearer(STRONG)).scope is Scope.INFERENCE


def test_a_bootstrap_key_is_not_taken_when_a_key_exists(keys: Keys) -> None:
    keys.create("k", by=ADMIN)
    keys.ensure_bootstrap(STRONG)
    with pytest.raises(Unauthorized):
        keys.authenticate(bearer(STRONG))


@pytest.mark.parametrize(
    "weak", ["hunter2", "llm-short", "llm-" + "x" * 31, "sk-" + "x" * 40, "llm-" + "x y" * 16]
)
def test_a_weak_bootstrap_key_stops_the_boot_and_is_not_repeated(keys: Keys, weak: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys.ensure_bootstrap(weak)
    assert weak not in caught.value.message
    assert caught.value.exit_status == 78


def test_a_revoked_bootstrap_key_stays_revoked_at_the_next_boot(keys: Keys, store: JsonStore) -> None:
    keys.ensure_bootstrap(STRONG)
    keys.revoke(keys.list()[0].id, by=ADMIN)
    again = Keys(store)
    again.ensure_bootstrap(STRONG)
    assert again.list() == ()
    with pytest.raises(Unauthorized):
        again.authenticate(bearer(STRONG))


def test_two_managers_that_boot_at_once_make_one_bootstrap_key(store: JsonStore) -> None:
    first, second = Keys(store), Keys(store)
    first.ensure_bootstrap(STRONG)
    second.ensure_bootstrap(STRONG)
    assert [record.id for record in first.list()] == [record.id for record in second.list()]
    assert second.authenticate(bearer(STRONG)).name == "bootstrap"


def test_records_never_hold_a_key(keys: Keys) -> None:
    record, key = keys.create("k", by=ADMIN)
    assert key not in repr(record)
    assert key not in json.dumps({name: str(getattr(record, name)) for name in record.__slots__})
