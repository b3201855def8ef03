"""The hook specifications say the same things in the same form, and the table matches what they say."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pluggy
import pytest

import llamaman
from llamaman import hookspecs
from llamaman.core.facade import PluginCollection, PluginKernel
from llamaman.hookspecs import HOOKS, HookInfo

CLOSING = ("Policy", "Thread", "Budget", "On error", "Implemented by")

#: The plan's hooks. A new one needs a first-party implementer and a test before it is added here.
EXPECTED = {
    "gpu_probe": ("collect", ("context",)),
    "container_spec": ("merge", ("request", "spec")),
    "storage": ("first", ("config",)),
    "route_register": ("collect", ("kernel",)),
    "admit": ("fold", ("call",)),
    "pre_forward": ("fold", ("call",)),
    "post_forward": ("notify", ("record",)),
    "instance_event": ("notify", ("event",)),
    "candidates": ("collect", ("call",)),
    "runtime_register": ("collect", ()),
    "setting_declare": ("collect", ()),
    "collection_declare": ("collect", ()),
    "panel_declare": ("collect", ()),
    "job_declare": ("collect", ()),
    "command_declare": ("collect", ()),
    "startup": ("notify", ("kernel",)),
    "shutdown": ("notify", ("kernel",)),
}

INFOS = [pytest.param(info, id=name) for name, info in HOOKS.items()]


def closing_of(info: HookInfo) -> dict[str, str]:
    text = inspect.getdoc(getattr(hookspecs, info.name)) or ""
    lines = text.split("\n\n")[-1].splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_the_hooks_are_those_of_the_plan() -> None:
    assert {name: (info.policy, info.arguments) for name, info in HOOKS.items()} == EXPECTED


def test_the_table_holds_exactly_what_pluggy_finds() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = {
        name: tuple(caller.spec.argnames)
        for name, caller in vars(manager.hook).items()
        if getattr(caller, "spec", None) is not None
    }
    assert found == {name: info.arguments for name, info in HOOKS.items()}


@pytest.mark.parametrize("info", INFOS)
def test_every_hook_ends_with_the_same_lines(info: HookInfo) -> None:
    assert tuple(closing_of(info)) == CLOSING


@pytest.mark.parametrize("info", INFOS)
def test_the_table_says_what_the_docstring_says(info: HookInfo) -> None:
    closing = closing_of(info)
    assert closing["Policy"] == info.policy
    number = re.match(r"(\d+(?:\.\d+)?) (ms|s)\b", closing["Budget"])
    documented = float(number[1]) / (1000 if number[2] == "ms" else 1) if number else None
    assert documented == info.budget_s


@pytest.mark.parametrize("info", INFOS)
def test_the_first_sentence_says_when_it_is_called(info: HookInfo) -> None:
    first = (inspect.getdoc(getattr(hookspecs, info.name)) or "").split("\n\n")[0]
    assert first.startswith("Called ")
    assert first.endswith(".")


@pytest.mark.parametrize("info", INFOS)
def test_every_argument_and_result_is_typed(info: HookInfo) -> None:
    annotations = inspect.get_annotations(getattr(hookspecs, info.name))
    assert set(annotations) == {*info.arguments, "return"}


def test_hookspecs_hold_no_logic() -> None:
    for name in HOOKS:
        code = getattr(hookspecs, name).__code__
        assert code.co_names == (), f"{name} does something"


def test_what_plugins_may_ask_of_the_kernel_is_frozen() -> None:
    """Widening this is a decision: the object given to plugins must stay narrow."""
    assert public(PluginKernel) == {
        "collection", "instances", "models", "node", "publish", "setting", "version",
    }  # fmt: skip
    assert public(PluginCollection) == {"batch", "delete", "get", "list", "put", "watch"}


def public(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_the_public_api_is_light() -> None:
    """Plugins and the command line import it; nothing heavy may come along."""
    heavy = {"flask", "uvloop", "click", "requests", "stevedore", "waitress"}
    code = f"import llamaman, sys; print(*sorted(set(sys.modules) & {heavy}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_every_public_name_is_importable_and_listed_once() -> None:
    assert len(set(llamaman.__all__)) == len(llamaman.__all__)
    assert [name for name in llamaman.__all__ if not hasattr(llamaman, name)] == []
