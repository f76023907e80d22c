"""Web services: what a real webhook and a real heartbeat address receive, and what failing is called."""

from __future__ import annotations

import time

import pytest

from datamanager.base.errors import NotSent, UsageError
from datamanager.base.units import Secret
from datamanager.notify.heartbeat import check_heartbeat, ping
from datamanager.notify.outbox import Report
from datamanager.notify.urls import check_url, send_to_url
from tests.notify.parts import WebService, closed_port, message, silent_server

# Apprise imports a module of the standard library that later Pythons lack, and has its own in its place then.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")


def test_a_webhook_receives_title_and_text(web: WebService) -> None:
    check_url(Secret(web.json_url))
    send_to_url(Secret(web.json_url), message("Größe", "One line.\nAnother & <one>.\n"), 5)
    send_to_url(Secret(web.json_url), message("Now", urgent=True), 5)
    assert [(one["title"], one["message"].rstrip(), one["type"]) for one in web.posted] == [
        ("Größe", "One line.\nAnother & <one>.", "info"),
        ("Now", "A text.", "failure"),
    ]


def test_a_service_that_refuses_is_named_by_its_answer_and_never_by_its_address(
    web: WebService, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    web.status = 403
    with pytest.raises(NotSent) as caught:
        send_to_url(Secret(web.json_url), message(), 5)
    assert caught.value.message == "send message: the service answered 403"
    assert "toktoktoken" not in f"{capfd.readouterr()}{caplog.text}{caught.value.__context__!r}"


@pytest.mark.parametrize("hangs", [True, False])
def test_a_service_that_is_dead_or_hangs_is_said_so_in_time(hangs: bool) -> None:
    with silent_server() as port:
        url = Secret(f"json://127.0.0.1:{port if hangs else closed_port()}/toktoktoken")
        begun = time.monotonic()
        with pytest.raises(NotSent, match="cannot be reached, or did not answer in time"):
            send_to_url(url, message(), 0.5)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "url", ["", "nothing", "nosuch://toktoktoken", "mailto://u:toktoktoken@example.org", "slack://x"]
)
def test_an_address_that_no_service_takes_is_refused_unrepeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(Secret(url))
    assert "toktoktoken" not in f"{caught.value.message}{caught.value.hint}"


def test_a_heartbeat_asks_for_the_address_and_for_fail_when_something_is_wrong(web: WebService) -> None:
    url = Secret(web.url + "?a=b")
    assert ping(url, well=True) == ping(url, well=False) == Report({"heartbeat": ()})
    assert web.asked == ["/ping/toktoktoken?a=b", "/ping/toktoktoken/fail?a=b"]


def test_a_heartbeat_that_nobody_hears_is_a_report() -> None:
    assert ping(Secret(f"http://127.0.0.1:{closed_port()}/toktoktoken"), well=True).trouble == (
        "the service cannot be reached: connection refused"
    )
    with silent_server() as port:
        assert ping(Secret(f"http://127.0.0.1:{port}/x"), well=True, seconds=0.3).trouble == "no answer within 0 s"
    assert "cannot be reached" in ping(Secret("http://no-such-host.invalid/"), well=True).trouble


def test_a_heartbeat_that_is_answered_with_an_error_is_a_report(web: WebService) -> None:
    web.status = 404
    assert ping(Secret(web.url), well=True) == Report(trouble="the service answered 404")


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "https://", "http://a b", "http://x:99999", "ftp://x/"])
def test_only_a_web_address_is_a_heartbeat(url: str) -> None:
    with pytest.raises(UsageError):
        check_heartbeat(url)
