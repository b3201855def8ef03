"""A browser without a screen: cookies, form tokens and an ``Origin``, over :mod:`llamaman.testing.wire`.

For tests of the pages and of what a logged-in user may call. Guarantees that nothing is followed and that
nothing is sent that a browser on the same origin would not send; what a hostile page would send differently,
a test passes in ``headers``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from llamaman.testing.wire import Answer, Request, is_overloaded

_TOKEN = re.compile(r'name="csrf_token"\s+value="([^"]*)"')


class NoForm(Exception):
    """A page was to hold a form and does not; the text shows what came instead."""


class Visitor:
    """One browser profile on one address of a manager.

    :ivar cookies: name -> value, as the answers set them.
    :param address: where to connect to.
    :param host: what to call the manager in ``Host`` and ``Origin``, without its port; the address by default.
    """

    def __init__(self, port: int, *, address: str = "127.0.0.1", host: str | None = None) -> None:
        self.where = (address, port)
        self.host = f"{host or address}:{port}"
        self.cookies: dict[str, str] = {}

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = 180,
    ) -> Request:
        """Send a request and return before its answer; its cookies are not taken over."""
        lines = {"Host": self.host}
        if self.cookies:
            lines["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if method not in ("GET", "HEAD"):
            lines["Origin"] = f"http://{self.host}"
        return Request(
            self.where, method, path, body=body, headers={**lines, **(headers or {})}, seconds=seconds
        )

    def call(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """One request, its whole answer, and its cookies kept; options as for :meth:`send`."""
        request = self.send(method, path, body, **options)
        for line in request.begun.headers.get_all("set-cookie", []):
            name, _, rest = line.partition("=")
            value = rest.partition(";")[0]
            self.cookies.pop(name, None)
            if value and "max-age=0" not in line.lower():
                self.cookies[name] = value
        return request.answer()

    def token(self, path: str) -> str:
        """The token in the form of a page.

        :raises NoForm: there is none.
        """
        page = self.call("GET", path)
        found = _TOKEN.search(page.text)
        if found is None:
            raise NoForm(f"GET {path} answered {page.status}: {page.text[:500]}")
        return found[1]

    def submit(self, path: str, *, headers: Mapping[str, str] | None = None, **fields: str) -> Answer:
        """Open the form of a page, fill it in and send it.

        :raises NoForm: the page shows none.
        """
        return self.post(path, {"csrf_token": self.token(path), **fields}, headers=headers)

    def post(
        self, path: str, fields: Mapping[str, str], *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send fields as a form does, without having opened it."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.call("POST", path, urlencode(fields).encode(), headers={**kind, **(headers or {})})

    def log_in(self, name: str, password: str) -> Answer:
        """Log in by the form; the answer is a redirect where that was right. Tried twice on an overloaded machine."""
        answer = self.submit("/login", username=name, password=password)
        if is_overloaded(answer):
            answer = self.submit("/login", username=name, password=password)
        return answer

    def manage(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One call of the management API as our own pages make it: with the session's token."""
        token = self.call("GET", "/api/me").json()["csrf_token"]
        return self.call(method, path, body, headers={"X-CSRF-Token": token, **(headers or {})})
