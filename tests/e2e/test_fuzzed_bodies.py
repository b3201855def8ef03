"""A thousand bodies that no client would send: each is answered or refused, and no engine minds."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

from fuzzed_bodies import RIGHT, fuzzed

from llamaman.testing.manager import Manager
from llamaman.testing.wire import Answer, call

BODIES = 1000
SEED = 20
#: Where a model for embeddings answers.
EMBEDS = ("/v1/embeddings", "/api/embed", "/api/embeddings")
#: What says in a stream that has begun that something went wrong, and whose fault it was.
OURS = (b'"engine_died"', b'"upstream_failed"', b'"plugin_failed"', b'"internal_error"', b"internal error")


def test_a_thousand_odd_bodies_get_an_answer_or_a_refusal_and_end_no_engine(
    plain_manager: Manager, at_once: ThreadPoolExecutor
) -> None:
    manager = plain_manager
    shutil.copy(manager.models / "tiny.gguf", manager.models / "embed.gguf")
    manager.manage("POST", "/api/models/rescan")
    small = {"ctx_size": 256, "parallel": 1}
    instances = [manager.launch("tiny", **small), manager.launch("embed", embedding_model=True, **small)]
    served = {
        route["path"]
        for route in manager.manage("GET", "/api/routes")
        if route["method"] == "POST" and route["surface"] == "proxy"
    }
    paths = sorted(RIGHT)
    assert set(paths) <= served, "every API is there"

    def send(number: int) -> tuple[str, bytes, Answer]:
        chance = random.Random(SEED * BODIES + number)
        path = paths[number % len(paths)]
        body = fuzzed(path, "embed" if path in EMBEDS else "tiny", chance)
        return (
            path,
            body,
            call(manager.proxy_port, "POST", path, key=manager.inference_key, body=body, seconds=60),
        )

    wrong = [
        f"{path} {answer.status} {body[:2000]!r}: {answer.body[:300]!r}"
        for path, body, answer in at_once.map(send, range(BODIES))
        if not 200 <= answer.status < 500 or any(text in answer.body for text in OURS)
    ]
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:20])
    for each in instances:
        seen = manager.instance(each["id"])
        assert (seen["status"], seen["pid"]) == ("healthy", each["pid"])
