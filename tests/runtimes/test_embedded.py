"""What the embedded engine can express, and that it says so when it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamaman.errors import LaunchError
from llamaman.records import Engine, LaunchPlan
from llamaman.runtimes import embedded, embedded_child
from llamaman.runtimes.openmp import engine_environment

from .conftest import Lab

ENGINE = Engine("embedded", "embedded", "", None, embedded.FLAGS)


def plan(*flags: str) -> LaunchPlan:
    return LaunchPlan(
        "i",
        "n",
        "x",
        1,
        ENGINE,
        Path("/m.gguf"),
        "m",
        {},
        flags,
        {},
        "127.0.0.1",
        1,
        Path("/l"),
        "",
        "secret",
    )


def assigned(*flags: str) -> dict[str, Any]:
    return dict(json.loads(embedded.parameters(plan(*flags))))


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--n-gpu-layers all", "n_gpu_layers", -2),
        ("--n-gpu-layers auto", "n_gpu_layers", -1),
        ("-ngl 0", "n_gpu_layers", 0),
        ("--ctx-size 4096", "n_ctx", 4096),
        ("--threads 3", "cpuparams.n_threads", 3),
        ("--kv-unified", "kv_unified", True),
        (
            "--flash-attn off",
            "flash_attn_type",
            {"enum": ["llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_DISABLED"]},
        ),
        ("--cache-type-v q8_0", "cache_type_v", {"enum": ["ggml_type", "GGML_TYPE_Q8_0"]}),
        ("--load-mode mmap+mlock", "load_mode", {"enum": ["llama_load_mode", "LLAMA_LOAD_MODE_MMAP_MLOCK"]}),
        ("--tensor-split 3,1", "tensor_split", {"padded": [3.0, 1.0]}),
        ("--mmproj /p.gguf", "mmproj.path", "/p.gguf"),
        ("--spec-draft-n-max 2", "speculative.draft.n_max", 2),
        ("--spec-type draft-mtp", "load_mtp", True),
        ("--embeddings --ubatch-size 1024", "n_batch", 1024),
        ("--rope-scale 4", "rope_freq_scale", 0.25),
        ('--chat-template-kwargs {"a":true}', "default_template_kwargs", {"a": "true"}),
    ],
)
def test_a_flag_becomes_a_parameter(flags: str, path: str, value: object) -> None:
    assert assigned(*flags.split())[path] == value


def test_the_experts_of_the_first_layers_stay_in_host_memory() -> None:
    patterns = assigned("--n-cpu-moe", "2")["tensor_buft_overrides"].split(",")
    assert [pattern.partition(r"\.ffn")[0] for pattern in patterns] == [r"blk\.0", r"blk\.1"]
    assert all(pattern.endswith("=CPU") for pattern in patterns)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--rpc host:1", "--rpc"),
        ("--ctx-size 1 --override-kv a=int:1 --threads 1", "--override-kv"),
        ("--spec-type ngram-mod", "--spec-type"),
        ("--cache-type-k q9_9", "--cache-type-k"),
        ("--flash-attn maybe", "--flash-attn"),
        ("--threads", "--threads"),
        ("--threads many", "--threads"),
    ],
)
def test_a_flag_without_a_parameter_is_refused_by_name(flags: str, word: str) -> None:
    refused = embedded.refusals(plan(*flags.split()))
    assert len(refused) == 1
    assert word in refused[0]


def test_nothing_is_refused_that_can_be_expressed() -> None:
    assert embedded.refusals(plan("--ctx-size", "4096", "--temp", "-1", "--keep", "-1", "--jinja")) == []


def test_the_parameters_hold_no_secret() -> None:
    assert "secret" not in embedded.parameters(plan("--jinja"))


def test_a_refused_plan_starts_no_process(lab: Lab) -> None:
    with pytest.raises(LaunchError, match="cannot express '--rpc'"):
        lab.runtime.start(lab.plan(ENGINE, flags=("--rpc", "host:1")))
    assert not (lab.folder / "logs").exists()


@pytest.mark.real("embedded engine")
def test_every_flag_in_the_table_sets_a_parameter_that_the_package_has() -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="install xllamacpp to run this test")
    params = xllamacpp.CommonParams()
    values = {
        "--flash-attn": "on", "--split-mode": "row", "--load-mode": "dio", "--fit": "off", "--pooling": "mean",
        "--rope-scaling": "yarn", "--reasoning-format": "deepseek-legacy", "--spec-type": "draft-mtp",
        "--chat-template-kwargs": "{}", "--cache-type-k": "q4_0", "--cache-type-v": "iq4_nl", "--tensor-split": "1,1",
    }  # fmt: skip
    for spellings in (*embedded._WITH_VALUE, *embedded._SWITCHES):
        flag = spellings.split()[-1] if spellings.split()[-1] in values else spellings.split()[0]
        long_form = next((name for name in spellings.split() if name in values), None)
        takes_value = spellings in embedded._WITH_VALUE
        tokens = [flag, values.get(long_form or "", "1")] if takes_value else [flag]
        for path, value in json.loads(embedded.parameters(plan(*tokens))):
            embedded_child.assign(xllamacpp, params, path, value)


@pytest.mark.real("embedded engine")
def test_a_parameter_that_the_package_lacks_ends_the_child_with_64_and_its_name() -> None:
    pytest.importorskip("xllamacpp", reason="install xllamacpp to run this test")
    for assignment in (
        ["no_such_parameter", 1],
        ["n_ctx", "many"],
        ["split_mode", {"enum": ["llama_split_mode", "X"]}],
    ):
        ended = subprocess.run(
            [sys.executable, "-I", str(embedded.CHILD)],
            env={embedded.VARIABLE: json.dumps([assignment]), **engine_environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 64
        assert ended.stderr.startswith(f"error: embedded engine cannot express '{assignment[0]}'")


def test_a_listener_that_is_gone_is_noticed() -> None:
    open_before = os.listdir("/proc/self/fd")
    before = embedded_child.listening_sockets()
    assert os.listdir("/proc/self/fd") == open_before
    server = socket.create_server(("127.0.0.1", 0))
    plain = socket.socket()
    (found,) = embedded_child.listening_sockets() - before
    assert found == server.fileno()
    server.close()
    plain.close()
    assert not embedded_child.listens(found)


def test_the_manager_never_loads_the_engine_library() -> None:
    code = (
        "import sys\n"
        "from llamaman.runtimes import embedded, process, engines\n"
        "engines.embedded_version()\n"
        "print(sorted(name for name in sys.modules if name.startswith(('xllamacpp', 'numpy', 'gguf'))))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert ended.stdout.strip() == "[]"
