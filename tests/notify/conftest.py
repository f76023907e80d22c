"""Servers and certificates for tests of notifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notify.parts import Certificates, MailServer, WebService, mail_server, make_certificates, web_service


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def mail(certificates: Certificates) -> Iterator[MailServer]:
    """A mail server that wants STARTTLS and a user."""
    with mail_server(certificates, wants_user=True) as server:
        yield server


@pytest.fixture
def web() -> Iterator[WebService]:
    with web_service() as service:
        yield service
