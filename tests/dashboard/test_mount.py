"""A plugin's routes are mounted whole and sealed, or not at all; nobody else's routes are touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, jsonify, request, stream_with_context
from flask.views import MethodView

from llamaman.access import Access, Scope, access
from llamaman.dashboard.app import _bare_app, app_routes
from llamaman.dashboard.mount import Seal, mount
from llamaman.errors import PluginError
from llamaman.gateway.caller import HEADER, Caller, new_secret, seal
from llamaman.records import NOBODY, Identity, RouteSet

SECRET = new_secret()
MANAGER = Identity("key", "m", Scope.MANAGE, "1")


class Site:
    """A bare app with one good plugin mounted."""

    def __init__(self) -> None:
        self.seal = Seal()
        self.app = self.bare()
        self.app.extensions["llamaman.seal"] = self.seal
        good = Blueprint("good", __name__)
        good.add_url_rule("/-/good", "index", lambda: jsonify({"good": True}))
        self.mount("good", good)

    def bare(self) -> Flask:
        return _bare_app(SECRET, self.seal, lambda: True, lambda identity: None, lambda identity: True)

    def mount(self, owner: str, *blueprints: Blueprint, level: Access = Access.MANAGE) -> None:
        mount(self.app, self.seal, owner, [RouteSet(each, level) for each in blueprints], self.bare)

    def get(self, path: str, identity: Identity = MANAGER, method: str = "GET") -> Any:
        header = seal(Caller(identity, "manage"), SECRET).decode()
        return self.app.test_client().open(path, method=method, headers={HEADER: header})


@pytest.fixture
def site() -> Site:
    return Site()


def with_route(name: str = "bad") -> Blueprint:
    blueprint = Blueprint(name, __name__)
    blueprint.add_url_rule(f"/-/{name}", "index", lambda: jsonify({}))
    return blueprint


def test_a_view_without_a_mark_has_its_route_sets_level_and_manage_by_default(site: Site) -> None:
    site.mount("viewers", with_route("viewers"), level=Access.VIEW)
    levels = {row["path"]: (row["level"], row["plugin"]) for row in app_routes(site.app)}
    assert levels == {"/-/good": ("manage", "good"), "/-/viewers": ("view", "viewers")}


def test_a_mark_on_a_view_wins_over_its_route_sets_level(site: Site) -> None:
    blueprint = with_route("plugin")

    @blueprint.get("/-/plugin/secret")
    @access(Access.ADMIN)
    def hidden() -> Response:
        return jsonify({})

    site.mount("plugin", blueprint, level=Access.VIEW)
    assert site.get("/-/plugin").status_code == 200
    assert site.get("/-/plugin/secret").status_code == 403


def test_without_the_boots_secret_nothing_is_served(site: Site) -> None:
    client = site.app.test_client()
    forged = seal(Caller(Identity("local", "x", Scope.ADMIN), "admin"), new_secret()).decode()
    payload = seal(Caller(MANAGER, "manage"), SECRET).decode().partition(".")[2]
    for headers in ({}, {HEADER: ""}, {HEADER: "x"}, {HEADER: forged}, {HEADER: f".{payload}"}):
        for path in ("/-/good", "/nowhere"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 403
            assert set(answer.json) == {"error"}


def test_a_caller_crosses_the_hop_unchanged() -> None:
    from llamaman.gateway.caller import unseal

    caller = Caller(Identity("key", "näme", Scope.VIEW, "id", frozenset({"b", "a"})), "manage", "::1")
    assert unseal(seal(caller, SECRET).decode(), SECRET) == caller
    assert unseal(seal(Caller(NOBODY, "manage"), SECRET).decode(), SECRET) == Caller(NOBODY, "manage")


def _before_app_request(blueprint: Blueprint) -> None:
    blueprint.before_app_request(lambda: "taken over")


def _after_app_request(blueprint: Blueprint) -> None:
    blueprint.after_app_request(lambda response: response)


def _app_errorhandler(blueprint: Blueprint) -> None:
    blueprint.app_errorhandler(401)(lambda error: ("fine", 200))


def _app_errorhandler_for_everything(blueprint: Blueprint) -> None:
    blueprint.app_errorhandler(Exception)(lambda error: ("fine", 200))


def _context_processor(blueprint: Blueprint) -> None:
    blueprint.app_context_processor(lambda: {"x": 1})


def _url_value_preprocessor(blueprint: Blueprint) -> None:
    blueprint.app_url_value_preprocessor(lambda endpoint, values: None)


def _template_filter(blueprint: Blueprint) -> None:
    blueprint.app_template_filter("nice")(str)


def _clears_the_gate(blueprint: Blueprint) -> None:
    blueprint.record(lambda state: state.app.before_request_funcs.clear())


def _replaces_the_wsgi_app(blueprint: Blueprint) -> None:
    blueprint.record(lambda state: setattr(state.app, "wsgi_app", lambda environ, start: [b""]))


def _changes_the_config(blueprint: Blueprint) -> None:
    blueprint.record(lambda state: state.app.config.update(MAX_CONTENT_LENGTH=None))


def _raises(blueprint: Blueprint) -> None:
    blueprint.record(lambda state: 1 / 0)


def _exits(blueprint: Blueprint) -> None:
    blueprint.record(lambda state: exit(3))


def _asks_to_be_public(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/-/open", "open", access(Access.PUBLIC)(lambda: "open"))


def _asks_for_inference(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/-/infer", "infer", access(Access.INFERENCE)(lambda: "open"))


def _takes_a_served_rule(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/-/good", "mine", lambda: "mine")


def _serves_a_rule_twice(blueprint: Blueprint) -> None:
    blueprint.add_url_rule("/-/x/<a>", "one", lambda a: a)
    blueprint.add_url_rule("/-/x/<int:b>", "two", lambda b: f"{b}")


def _streams(blueprint: Blueprint) -> None:
    def view() -> Iterator[str]:
        yield "a"

    blueprint.add_url_rule("/-/stream", "stream", view)


def _streams_with_context(blueprint: Blueprint) -> None:
    def view() -> Response:
        return Response(stream_with_context(letter for letter in "abc"))

    blueprint.add_url_rule("/-/stream", "stream", view)


def _marks_a_method_of_a_class(blueprint: Blueprint) -> None:
    class View(MethodView):
        @access(Access.ADMIN)
        def get(self) -> str:
            return "secret"

    blueprint.add_url_rule("/-/view", view_func=View.as_view("view"))


@pytest.mark.parametrize(
    "spoil",
    [
        _before_app_request,
        _after_app_request,
        _app_errorhandler,
        _app_errorhandler_for_everything,
        _context_processor,
        _url_value_preprocessor,
        _template_filter,
        _clears_the_gate,
        _replaces_the_wsgi_app,
        _changes_the_config,
        _raises,
        _exits,
        _asks_to_be_public,
        _asks_for_inference,
        _takes_a_served_rule,
        _serves_a_rule_twice,
        _streams,
        _streams_with_context,
        _marks_a_method_of_a_class,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_blueprint_that_reaches_too_far_is_refused_with_all_its_plugins_routes(
    site: Site, spoil: Callable[[Blueprint], None]
) -> None:
    fine, bad = with_route("fine"), with_route("bad")
    spoil(bad)
    before = app_routes(site.app)
    with pytest.raises(PluginError) as caught:
        site.mount("spoiler", fine, bad)
    assert caught.value.plugin == "spoiler"
    assert app_routes(site.app) == before
    assert site.get("/-/fine").status_code == 404
    assert site.get("/-/good").json == {"good": True}
    assert site.get("/-/good", NOBODY).status_code == 401


def test_a_taken_blueprint_name_is_refused(site: Site) -> None:
    other = Blueprint("good", __name__)
    other.add_url_rule("/-/other", "index", lambda: "other")
    with pytest.raises(PluginError, match="'good' is taken"):
        site.mount("other", other)
    assert site.get("/-/other").status_code == 404


def test_a_stream_that_was_not_seen_at_mount_answers_500_and_says_so_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    blueprint = with_route("sly")
    blueprint.add_url_rule("/-/sly/stream", "stream", lambda: Response(letter for letter in "abc"))
    site.mount("sly", blueprint)
    answer = site.get("/-/sly/stream")
    assert answer.status_code == 500
    assert answer.json["id"] in caplog.text
    assert "StreamRoute" in caplog.text


def test_an_unexpected_error_is_an_id_in_the_answer_and_a_traceback_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    blueprint = with_route("buggy")

    def boom() -> str:
        raise ValueError("the secret is 42")

    blueprint.add_url_rule("/-/buggy/boom", "boom", boom)
    site.mount("buggy", blueprint)
    answer = site.get("/-/buggy/boom")
    assert answer.status_code == 500
    assert answer.json == {"error": "internal error", "id": answer.json["id"]}
    assert answer.json["id"] in caplog.text
    assert "the secret is 42" in caplog.text


def test_a_blueprints_own_error_handler_cannot_turn_a_refusal_into_a_success(site: Site) -> None:
    blueprint = with_route("eager")
    for status in (401, 403):
        blueprint.errorhandler(status)(lambda error: ("fine", 200))
    site.mount("eager", blueprint)
    assert site.get("/-/eager", NOBODY).status_code == 401
    assert site.get("/-/eager", Identity("key", "v", Scope.VIEW)).status_code == 403


def test_options_is_not_answered_by_itself(site: Site) -> None:
    assert site.get("/-/good", method="OPTIONS").status_code == 405


def test_the_answer_of_the_gate_comes_before_any_hook_of_the_blueprint(site: Site) -> None:
    seen: list[str] = []
    blueprint = with_route("watcher")
    blueprint.before_request(lambda: seen.append(request.path))
    site.mount("watcher", blueprint)
    site.get("/-/watcher", NOBODY)
    assert seen == []
    site.get("/-/watcher")
    assert seen == ["/-/watcher"]
