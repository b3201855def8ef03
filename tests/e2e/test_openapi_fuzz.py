"""Thousands of requests made from the API's own description: none is answered by a defect, strangers get nothing.

schemathesis makes them, in a process of its own; ``openapi_hooks.py`` lends it ids, models and bodies that exist.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing.manager import Manager

HOOKS = Path(__file__).with_name("openapi_hooks.py")
WANTED = 5_000
PROCESSES = 3
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: Left out, and why: their answers end only when the client leaves. Who may have them is tested with the streams.
ENDLESS = r"/stream$"

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path_factory.mktemp("fuzz"), env={"LLAMAMAN_MAX_MODELS": "2"})
    for name in ("tiny", "other"):
        shutil.copy(tiny_model, manager.models / f"{name}.gguf")
    with manager:
        yield manager


def run(manager: Manager, folder: Path, *options: str, key: str = "", **plan: Any) -> list[Answer]:
    """Let schemathesis work through the API; every answer that it got."""
    document = manager.manage("GET", "/api/openapi.json")
    plan = {"key": key, "keep": [], "chat": "tiny", "path": str(manager.models / "other.gguf"), **plan}
    plan["url"] = f"http://127.0.0.1:{manager.port}"
    plan["answers"] = str(folder / "answers.jsonl")
    paths = sorted(document["paths"])
    at_work = [
        _schemathesis(document, paths[part::PROCESSES], folder / f"part-{part}", options, plan)
        for part in range(PROCESSES)
    ]
    told = [process.communicate(timeout=300)[0] for process in at_work]
    found = [json.loads(line) for line in Path(plan["answers"]).read_text().splitlines()]
    print(f"{len(found)} requests:", dict(sorted(Counter(each["status"] for each in found).items())))
    bad = [each for each in found if each["status"] >= 500 or each["status"] == 0]
    assert not bad, Counter((each["method"], each["path"], each["status"]) for each in bad)
    for process, text in zip(at_work, told, strict=True):
        assert process.returncode == 0, text[-8000:]
    return found


def _schemathesis(
    document: Answer, paths: Sequence[str], folder: Path, options: Sequence[str], plan: Answer
) -> subprocess.Popen[str]:
    """Start it on some of the paths. Threads of one process would share one interpreter, so it has one worker."""
    folder.mkdir()
    part = folder / "openapi.json"
    part.write_text(json.dumps({**document, "paths": {path: document["paths"][path] for path in paths}}))
    credential = ["-H", f"Authorization: Bearer {plan['key']}"] if plan["key"] else []
    return subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", str(part), "--url", plan["url"]),
            *("--exclude-path-regex", ENDLESS, "--workers", "1", "--request-timeout", "30", "--no-color"),
            *("--continue-on-failure", "--no-shrink", "--seed", "20", "--warnings", "off"),
            *credential,
            *options,
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "LLAMAMAN_FUZZ": json.dumps(plan)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.usefixtures("embedded")
def test_thousands_of_generated_requests_meet_no_defect(fuzzed: Manager, tmp_path: Path) -> None:
    kept = fuzzed.launch("tiny", pinned=True, ctx_size=256)
    key = fuzzed.key("admin")
    found = run(
        fuzzed,
        tmp_path,
        *("--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "20"),
        key=key.secret,
        keep=[kept["id"], key.id],
    )
    assert len(found) >= WANTED
    reached = {(each["method"], each["path"]) for each in found if each["status"] < 300}
    assert len(reached) >= 25, "real ids, models and bodies got past the checks of most routes"
    assert "Traceback" not in fuzzed.output(), fuzzed.output()[-8000:]
    assert fuzzed.instance(kept["id"])["status"] == "healthy"


def test_strangers_get_nothing_but_what_is_public(fuzzed: Manager, tmp_path: Path) -> None:
    fuzzed.setting(require_auth=True)
    found = run(fuzzed, tmp_path, "--checks", "not_a_server_error", "--phases", "coverage")
    assert len(found) >= 500
    for each in found:
        assert each["level"] == "public" or each["status"] not in range(200, 300), each
    assert "Traceback" not in fuzzed.output(), fuzzed.output()[-8000:]
