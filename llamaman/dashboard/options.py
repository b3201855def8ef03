"""Launch options out of a body, checked by the launch table under this installation's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaman.core import launch
from llamaman.dashboard.services import Services


def check_options(kernel: Services, given: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """The given options, normalised; see :func:`llamaman.core.launch.validate`.

    :raises InvalidField: naming the field.
    """
    allow_unlisted = bool(kernel.settings.get("launch.allow_unlisted_args"))
    return launch.validate(
        given, partial=partial, allow_unlisted=allow_unlisted, model_file=kernel.library.model_file
    )
