"""Values that are right by their type and wrong for what is computed with them: refused by name, never a 500."""

from __future__ import annotations

from typing import Any

import pytest
from management_door import Manager

from llamaman.access import Scope

LONG = "a" * 6000
HUGE = 10**400  # a whole number of JSON that no float can hold


@pytest.mark.parametrize("value", [HUGE, -HUGE], ids=["huge", "-huge"])
@pytest.mark.parametrize(
    "field", ["global_speed_limit_mbps", "cleanup.downloads_max_age_hours", "retry_count_per_failed_download"]
)
def test_a_number_too_large_for_a_setting_is_refused(shared_manager: Manager, field: str, value: int) -> None:
    key = shared_manager.key(Scope.ADMIN)
    status, answer = shared_manager.call("POST", "/api/settings", {field: value}, key)
    assert (status, answer["field"]) == (400, field)


@pytest.mark.parametrize("value", [HUGE, -HUGE], ids=["huge", "-huge"])
@pytest.mark.parametrize(
    "field", ["idle_timeout_min", "proxy_sampling_temperature", "ctx_size", "n_gpu_layers", "port"]
)
def test_a_number_too_large_for_a_launch_is_refused(shared_manager: Manager, field: str, value: int) -> None:
    key = shared_manager.key(Scope.ADMIN)
    body: dict[str, Any] = {"model_path": str(shared_manager.model), field: value}
    status, answer = shared_manager.call("POST", "/api/instances", body, key)
    assert (status, answer["field"]) == (400, field)


@pytest.mark.parametrize(
    "moment",
    ["9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59-12:00", "9999-12-31T20:00:00-23:59", "99999-01-01"],
)
def test_a_key_that_ends_outside_the_calendar_is_refused_and_leaves_the_list_readable(
    shared_manager: Manager, moment: str
) -> None:
    key = shared_manager.key(Scope.ADMIN)
    status, answer = shared_manager.call("POST", "/api/api-keys", {"name": "x", "expires": moment}, key)
    assert status == 201 or (status, answer["field"]) == (400, "expires")
    status, keys = shared_manager.call("GET", "/api/api-keys", key=key)
    assert status == 200
    assert all(each["expires_at"] is None or each["expires_at"].endswith("Z") for each in keys)


@pytest.mark.parametrize(
    "path", ["a%00b", LONG, "%2e%2e/%2e%2e/etc/passwd", "a%0ab"], ids=["nul", "long", "up", "line"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_a_path_that_is_no_models_is_a_4xx_or_has_no_preset(
    shared_manager: Manager, method: str, path: str
) -> None:
    key = shared_manager.key(Scope.ADMIN)
    body = {} if method in ("PUT", "PATCH") else None
    status, answer = shared_manager.call(method, f"/api/presets/{path}", body, key)
    assert status in (400, 404) or (method, status) == ("DELETE", 200), answer
