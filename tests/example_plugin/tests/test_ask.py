"""The example's own tests, as its author would write them; run here with everybody's."""

from __future__ import annotations

import pytest
from llamaman_ask.dialect import Ask

from llamaman import Dialect, InvalidField
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman.testing.dialect_script import request_for


class TestAsk(DialectContract):
    """Everything that every dialect must do."""

    examples = (Example("/ask", {"model": "alpha", "question": "What is a llama?"}),)

    def make_dialect(self) -> Dialect:
        return Ask(lambda: 64)


@pytest.mark.parametrize("body", [{}, {"question": 1}, {"question": "?", "model": []}])
def test_what_is_no_question_is_refused_by_field(body: dict[str, object]) -> None:
    dialect = Ask(lambda: 64)
    with pytest.raises(InvalidField):
        dialect.open(request_for(dialect.routes[0], body))
