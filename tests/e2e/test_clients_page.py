"""docs/clients.md, typed in as it stands, blocks of Python included; port numbers are other ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typed_pages

from llamaman.testing.manager import Manager

PAGE = typed_pages.page("clients.md")
MODEL = "smollm2-135m-instruct.q4_1"

pytestmark = [pytest.mark.real("embedded engine, bash, curl"), pytest.mark.usefixtures("embedded")]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Manager]:
    with Manager(tmp_path_factory.mktemp("page"), env={"LLAMAMAN_MAX_MODELS": "1"}) as manager:
        shutil.copy(tiny_model, manager.models / f"{MODEL}.gguf")
        shutil.copy(tiny_model, manager.models / "other.gguf")
        manager.manage("POST", "/api/models/rescan")
        yield manager


@pytest.fixture(scope="module")
def shown(manager: Manager) -> dict[str, str]:
    """What each block of the page printed, by its first line."""
    for program in ("bash", "curl"):
        if shutil.which(program, path="/usr/bin:/bin") is None:
            pytest.skip(f"install {program} to run this test")
    typed = [
        block if language == "sh" else f"{sys.executable} - <<'END'\n{block}END\n"
        for language, block in typed_pages.all_blocks(PAGE)
        if language in ("sh", "python")
    ]
    ports = {"localhost:42069": manager.proxy_port, "localhost:5000": manager.port}
    ports |= {"localhost:8000": manager.public_ports[0]}
    for was, now in ports.items():
        assert any(was in block for block in typed)
        typed = [block.replace(was, f"localhost:{now}") for block in typed]
    typed_pages.add_program(manager.folder / "bin")
    environment = {
        **{name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH") if name in os.environ},
        **{name: manager.env[name] for name in ("XDG_RUNTIME_DIR", "LLAMAMAN_NODE_NAME", "DATA_DIR")},
        "HOME": str(manager.folder),
        "PATH": f"{manager.folder / 'bin'}:/usr/bin:/bin",
    }
    bash = typed_pages.start_typing(typed, manager.folder, environment)
    try:
        out, err = bash.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        bash.kill()
        raise
    assert bash.returncode == 0, f"{out}\n{err}\n{manager.output()}"
    return dict(zip((block.split("\n")[0] for block in typed), typed_pages.shown_by_block(out), strict=True))


def block(shown: dict[str, str], part: str) -> str:
    """What the one block printed whose first line holds this."""
    (found,) = (out for first, out in shown.items() if part in first)
    return found


def answers(text: str) -> list[dict[str, Any]]:
    """JSON objects one after the other, with or without lines between them."""
    decoder, found = json.JSONDecoder(), list[dict[str, Any]]()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def test_each_api_answers_with_the_key_of_the_page(shown: dict[str, str]) -> None:
    (listed,) = answers(block(shown, "keys create --name clients"))
    assert MODEL in str(listed)
    openai, anthropic, ollama = answers(block(shown, f"MODEL={MODEL}"))
    assert openai["choices"]
    assert anthropic["content"]
    assert ollama["message"]
    assert block(shown, "<<'END'").count("\n") >= 3, "one line of each client"


def test_an_alias_is_answered_under_the_name_that_was_asked(shown: dict[str, str]) -> None:
    (answer,) = answers(block(shown, "aliases="))
    assert answer["model"] == "GPT-4o-mini"


def test_keep_alive_keeps_and_unloads(shown: dict[str, str]) -> None:
    loaded, listed, unloaded = answers(block(shown, "idle_timeout_min=").partition(f"{MODEL} ")[0])
    assert (loaded["done_reason"], unloaded["done_reason"]) == ("load", "unload")
    assert MODEL in str(listed)


def test_an_engine_is_asked_by_its_models_name_and_on_its_own_port(shown: dict[str, str]) -> None:
    tokens, answer = answers(block(shown, "/upstream/"))
    assert tokens["tokens"]
    assert answer["model"] == MODEL


def test_prometheus_reads_metrics_with_a_key_that_may_only_look(shown: dict[str, str]) -> None:
    counted = block(shown, "keys create --name prometheus")
    for dialect in ("openai", "anthropic", "ollama", "llama.cpp"):
        assert re.search(rf'llamaman_requests_total{{dialect="{re.escape(dialect)}",model="{MODEL}"', counted)


@pytest.mark.usefixtures("shown")
def test_who_has_to_leave_is_as_the_table_says(manager: Manager) -> None:
    refused = manager.chat("other")
    assert refused.status == 503
    assert "does not evict" in refused.text
    manager.setting(allow_openai_api_evict_managed=True)
    assert manager.chat("other").status == 200
    assert [each["model"] for each in manager.instances() if each["status"] == "healthy"] == ["other"]


def test_every_setting_and_option_that_the_page_names_exists() -> None:
    from llamaman.core.launch_options import OPTIONS
    from llamaman.core.settings_table import CORE_SETTINGS

    known = {option.name for option in OPTIONS} | {setting.name for setting in CORE_SETTINGS}
    of_clients = {"keep_alive", "api_key", "options.num_ctx"}
    named = set(re.findall(r"`([a-z]+(?:[._][a-z]+)+)`", PAGE))
    assert len(named) > 8
    assert named - known - of_clients == set()
