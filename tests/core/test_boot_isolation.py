"""One plugin's mistake at boot costs that plugin and nobody else; with LLAMAMAN_STRICT it ends the start.

Each mistake is a plugin of its own, installed the way pip leaves plugins behind, in a real manager.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaman.gateway.surfaces import MANAGEMENT
from llamaman.testing.engines import available_engines
from llamaman.testing.manager import Manager

COMMON = """
    from __future__ import annotations
    import os
    from pathlib import Path
    from llamaman import *
    from llamaman import hookimpl

    async def nothing():
        return
        yield b""

    class Dialect:
        def __init__(self, name, *routes):
            self.name, self.routes = name, routes
        def open(self, request):
            return Reply(200, ((b"content-type", b"text/plain"),), b"hello from " + self.name.encode())
        def check(self, intent, model):
            pass
        def serve(self, intent, model, lease):
            yield from ()
        def error(self, error, *, started):
            return Reply(error.status, (), error.message.encode())
        def waiting(self, phase, seconds):
            return None
"""


@dataclass(frozen=True, slots=True)
class Mistake:
    """What a plugin does wrong, and what its reason must say."""

    code: str
    reason: str
    ends_all: bool = False  # nothing of it is called any more, not only what was wrong


def settings(*each: str) -> str:
    return f"@hookimpl\ndef setting_declare():\n    return [{', '.join(each)}]"


def job(name: str, every_s: object) -> str:
    return f"@hookimpl\ndef job_declare():\n    return [Job({name!r}, {every_s}, lambda: None)]"


def collection(name: str) -> str:
    return f"@hookimpl\ndef collection_declare():\n    return [Collection({name!r})]"


def serves(*each: str) -> str:
    return f"@hookimpl\ndef route_register(kernel):\n    return [{', '.join(each)}]"


def dialect(routes: str) -> str:
    return serves(f"Dialect('d', InferenceRoute('POST', '/own'), {routes})")


def stream(method: str, pattern: str, access: str) -> str:
    return serves(f"StreamRoute({method!r}, {pattern!r}, {access}, lambda identity, values: nothing())")


MISTAKES: Mapping[str, Mistake] = {
    "wrong_default": Mistake(
        settings("Setting('depth', 'int', 99, 'Depth.', maximum=9)"),
        "wrong_default.depth must be at most 9",
        ends_all=True,
    ),
    "default_of_another_type": Mistake(
        settings("Setting('depth', 'int', 'deep', 'Depth.')"), "must be an integer", ends_all=True
    ),
    "setting_twice": Mistake(
        settings("Setting('mode', 'bool', True, 'A.')", "Setting('mode', 'bool', True, 'B.')"),
        "collides with 'setting_twice.mode'",
        ends_all=True,
    ),
    "job_without_period": Mistake(job("none", 0), "every_s must be above 0"),
    "job_before_now": Mistake(job("before", -5), "every_s must be above 0"),
    "job_never": Mistake(job("never", "float('nan')"), "every_s must be above 0"),
    "job_of_the_kernel": Mistake(job("rotate-logs", 60), "declared by both llamaman and job_of_the_kernel"),
    "job_of_another": Mistake(job("good.job", 60), "declared by both good and job_of_another"),
    "keeps_settings": Mistake(collection("settings"), "'settings' belongs to 'llamaman'", ends_all=True),
    "keeps_keys": Mistake(collection("api_keys"), "'api_keys' belongs to 'llamaman'", ends_all=True),
    "keeps_users": Mistake(collection("users"), "'users' belongs to 'llamaman'", ends_all=True),
    "keeps_instances": Mistake(collection("instances"), "'instances' belongs to 'llamaman'", ends_all=True),
    "keeps_anothers": Mistake(collection("good.notes"), "'good.notes' belongs to 'good'", ends_all=True),
    "public_route": Mistake(
        dialect("InferenceRoute('GET', '/open', Access.PUBLIC, body='none')"), "/open is PUBLIC"
    ),
    "route_of_text": Mistake(dialect("'/v1/text'"), "declares str, not an InferenceRoute"),
    "routes_of_nothing": Mistake(
        serves("type('Odd', (Dialect,), {'routes': None, '__init__': lambda self: None, 'name': 'odd'})()"),
        "routes",
    ),
    "taken_route": Mistake(
        dialect("InferenceRoute('POST', '/v1/chat/completions')"), "is already served by 'api_openai'"
    ),
    "route_of_the_kernel": Mistake(
        dialect("InferenceRoute('GET', '/health', body='none')"), "is already served by 'llamaman'"
    ),
    "route_of_management": Mistake(
        dialect("InferenceRoute('GET', '/api/instances', body='none')"), "management"
    ),
    "route_over_management": Mistake(
        dialect("InferenceRoute('GET', '/api/{anything}', body='none')"), "management"
    ),
    "one_shape_twice": Mistake(
        dialect("InferenceRoute('POST', '/a/{x}'), InferenceRoute('POST', '/a/{y}')"), "declared twice"
    ),
    "level_of_text": Mistake(dialect("InferenceRoute('POST', '/level', 'inference')"), "access level"),
    "crooked_pattern": Mistake(dialect("InferenceRoute('POST', 'no-slash')"), "no-slash"),
    "open_brace": Mistake(dialect("InferenceRoute('POST', '/a/{b')"), "/a/{b"),
    "pattern_of_nothing": Mistake(dialect("InferenceRoute('POST', None)"), "None"),
    "public_stream": Mistake(stream("GET", "/api/feed", "Access.PUBLIC"), "/api/feed is PUBLIC"),
    "stream_for_anybody": Mistake(stream("GET", "/api/any", "Access.INFERENCE"), "/api/any"),
    "taken_stream": Mistake(
        stream("GET", "/api/instances/{id}/logs/stream", "Access.VIEW"), "is already served by 'llamaman'"
    ),
}
GOOD = """
@hookimpl
def setting_declare():
    return [Setting("words", "text", "as declared", "Words."), Setting("of.depth", "int", 1, "Depth.")]

@hookimpl
def collection_declare():
    return [Collection("good.notes")]

@hookimpl
def route_register(kernel):
    return [
        Dialect("good", InferenceRoute("GET", "/good", body="none")),
        StreamRoute("GET", "/api/good/feed", Access.VIEW, lambda identity, values: nothing()),
    ]

@hookimpl
def job_declare():
    return [Job("good.job", 60, lambda: None)]
"""
TELLS = """
@hookimpl
def admit(call):
    note("admit")

@hookimpl
def startup(kernel):
    note("startup")

def note(what):
    with Path(os.environ["CALLED"]).open("a") as file:
        file.write(f"{Path(__file__).stem} {what}\\n")
"""


def install(site: Path, name: str, code: str) -> None:
    """Put a plugin where a manager with ``PYTHONPATH=site`` finds it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[llamaman.plugins]\n{name} = {name}\n", encoding="utf-8")
    (site / f"{name}.py").write_text(f"{textwrap.dedent(COMMON)}\n{code}\n", encoding="utf-8")


def plugins(manager: Manager) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in manager.manage("GET", "/api/plugins")}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Manager]:
    """One manager with every mistake at once, and a plugin beside them that does all of it right."""
    (engine,) = (each for each in available_engines() if each.name == "embedded")
    if engine.missing:
        pytest.skip(engine.missing)
    folder = tmp_path_factory.mktemp("crowd")
    site = folder / "site"
    for name, mistake in MISTAKES.items():
        install(site, name, mistake.code + TELLS)
    install(site, "good", GOOD + TELLS)
    env = {
        "PYTHONPATH": str(site),
        "CALLED": str(folder / "called"),
        "LLAMAMAN_GOOD_WORDS": "from outside",
        "LLAMAMAN_GOOD_OF_DEPTH": "7",
        "LLAMAMAN_GOOD_WORD": "misspelt",
    }
    manager = Manager(folder / "m", env=env)
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    with manager:
        yield manager


def called(manager: Manager) -> set[str]:
    path = Path(manager.env["CALLED"])
    return set(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.real("embedded engine")
@pytest.mark.parametrize("name", MISTAKES)
def test_the_plugin_that_made_the_mistake_is_broken_with_its_reason(crowd: Manager, name: str) -> None:
    record = plugins(crowd)[name]
    assert record["state"] == "broken"
    assert MISTAKES[name].reason in str(record["reason"])
    assert f"'{name}'" in crowd.output(), "and the log says so too"


@pytest.mark.real("embedded engine")
def test_all_other_plugins_are_active(crowd: Manager) -> None:
    others = {name: each["state"] for name, each in plugins(crowd).items() if name not in MISTAKES}
    assert {"api_openai", "good", "store_json"} <= set(others)
    assert set(others.values()) == {"active"}
    assert crowd.http("GET", "/good", key=crowd.inference_key).text == "hello from good"


@pytest.mark.real("embedded engine")
def test_the_manager_serves_and_no_request_meets_a_plugin_without_its_settings_or_collections(
    crowd: Manager,
) -> None:
    crowd.preset("tiny")
    answer = crowd.chat("tiny")
    assert answer.status == 200, answer.text
    dropped = {name for name, mistake in MISTAKES.items() if mistake.ends_all}
    for hook in ("admit", "startup"):
        met = {line.split()[0] for line in called(crowd) if line.endswith(hook)}
        assert met == {"good", *MISTAKES} - dropped


@pytest.mark.real("embedded engine")
def test_a_refused_dialect_serves_nothing_and_what_it_wanted_stays_with_its_owner(crowd: Manager) -> None:
    for path in ("/own", "/open", "/a/1"):
        assert crowd.http("POST", path, {}, key=crowd.inference_key).status == 404
    assert crowd.http("GET", "/open").status == 401, "a path that nobody has says nothing to strangers"
    assert crowd.http("GET", "/health").json() == {"status": "ok"}
    assert crowd.http("GET", "/api/instances", key=crowd.inference_key).status == 403
    owners = {(row["method"], row["path"]): row["plugin"] for row in crowd.manage("GET", "/api/routes")}
    assert owners["POST", "/v1/chat/completions"] == "api_openai"
    assert owners["GET", "/api/instances/{id}/logs/stream"] == "llamaman"
    assert not set(owners.values()) & set(MISTAKES)


@pytest.mark.real("embedded engine")
def test_a_refused_stream_is_served_to_nobody(crowd: Manager) -> None:
    for path in ("/api/feed", "/api/any"):
        assert crowd.http("GET", path).status == 401
        assert crowd.admin("GET", path).status == 404


@pytest.mark.real("embedded engine")
def test_a_plugins_setting_takes_its_value_from_its_own_variable(crowd: Manager) -> None:
    assert crowd.manage("GET", "/api/settings")["good"] == {"words": "from outside", "of": {"depth": 7}}


@pytest.mark.real("embedded engine")
def test_a_plugins_variable_is_not_said_to_have_no_effect_and_a_misspelt_one_is(crowd: Manager) -> None:
    lines = [line for line in crowd.output().splitlines() if "has no effect" in line]
    assert [line.split("LLAMAMAN_")[1].split()[0] for line in lines] == ["GOOD_WORD"], lines


@pytest.mark.real("embedded engine")
def test_what_plugins_may_not_hide_is_all_of_management(crowd: Manager) -> None:
    own = {row["path"] for row in crowd.manage("GET", "/api/routes") if row["plugin"] == "llamaman"}
    below_api = {path.split("/")[2] for path in own if path.startswith("/api/")}
    assert below_api == MANAGEMENT | {"version"}, "the version is served by the tables themselves"


def test_a_plugins_variable_with_a_value_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    install(tmp_path / "site", "good", GOOD)
    env = {"PYTHONPATH": str(tmp_path / "site"), "LLAMAMAN_GOOD_OF_DEPTH": "deep"}
    with Manager(tmp_path / "m", env=env) as manager:
        record = plugins(manager)["good"]
        assert record["state"] == "broken"
        assert "LLAMAMAN_GOOD_OF_DEPTH" in str(record["reason"])


STRICT = [
    "wrong_default",
    "setting_twice",
    "job_without_period",
    "job_of_the_kernel",
    "keeps_settings",
    "public_route",
    "route_of_text",
    "taken_route",
    "public_stream",
    "route_of_flask",
    "fails_at_startup",
]
MORE = {
    "route_of_flask": serves("RouteSet(blueprint())")
    + textwrap.dedent("""
        def blueprint():
            from flask import Blueprint
            made = Blueprint("b", __name__)
            made.get("/api/settings")(access(Access.VIEW)(lambda: "mine"))
            return made
    """),
    "fails_at_startup": "@hookimpl\ndef startup(kernel):\n    raise ValueError('not today')",
}


@pytest.mark.parametrize("name", STRICT)
def test_a_strict_start_ends_with_one_sentence_about_the_plugin(name: str, tmp_path: Path) -> None:
    install(tmp_path / "site", name, MORE.get(name) or MISTAKES[name].code)
    manager = Manager(tmp_path / "m", env={"PYTHONPATH": str(tmp_path / "site"), "LLAMAMAN_STRICT": "1"})
    try:
        manager.spawn()
        assert manager.running.wait(60) == 1
        *before, last = manager.output().strip().splitlines()
        assert last.startswith(f"llamaman: plugin '{name}': ")
        raised = ["Traceback (most recent call last):"] if name == "fails_at_startup" else []
        assert [line for line in before if "Traceback" in line] == raised, "the plugin's own, for its author"
    finally:
        manager.close()


# --- what runs is not ended by what fails ----------------------------------------------------------------

LATE = {
    "startup": "@hookimpl\ndef startup(kernel):\n    raise ValueError('not today')",
    "job": job("late", 0),
}


@pytest.mark.real("embedded engine")
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
@pytest.mark.parametrize("what", LATE)
def test_a_failure_after_the_adoption_leaves_the_engines_alone(
    what: str, strict: bool, tmp_path: Path, tiny_model: Path
) -> None:
    (engine,) = (each for each in available_engines() if each.name == "embedded")
    if engine.missing:
        pytest.skip(engine.missing)
    manager = Manager(tmp_path / "m")
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    with ExitStack() as stack:
        stack.enter_context(manager)
        instance = manager.launch("tiny")
        manager.kill()
        engines = set(manager.engines())
        assert engines == {instance["pid"]}
        install(tmp_path / "site", "late", LATE[what])
        manager.env |= {"PYTHONPATH": str(tmp_path / "site"), "LLAMAMAN_STRICT": str(int(strict))}
        if strict:
            manager.spawn()
            assert manager.running.wait(60) == 1
            assert set(manager.engines()) == engines
            manager.env["LLAMAMAN_STRICT"] = "0"
        manager.start()
        assert plugins(manager)["late"]["state"] == "broken"
        assert manager.wait_status(instance["id"], "healthy")["pid"] == instance["pid"]
        assert set(manager.engines()) == engines
        assert json.loads(manager.chat("tiny").body)["usage"]["completion_tokens"] > 0
