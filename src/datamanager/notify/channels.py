"""The ways to tell people, as the configuration names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamanager.base.errors import NotSent
from datamanager.base.units import Secret
from datamanager.config.model import ChannelConfig, ChannelKind
from datamanager.notify import urls
from datamanager.notify.outbox import Report, Waiting
from datamanager.notify.smtp import SmtpOptions, send_mail


@dataclass(frozen=True, slots=True)
class Channel:
    """A way to tell people, with its secret in hand: the password of the mail account, or the address of a service."""

    name: str
    config: ChannelConfig
    secret: Secret | None = None

    def send(self, waiting: Sequence[Waiting]) -> Report:
        """Try messages in turn until one is not taken. Nothing is raised but what a library gets wrong."""
        taken: dict[str, tuple[str, ...]] = {}
        for one in waiting:
            try:
                refused = self._send(one)
            except NotSent as error:
                return Report(taken, _trouble(error))
            taken[one.message.id] = tuple(refused)
            if refused:
                return Report(taken, "; ".join(f"{address}: {reason}" for address, reason in refused.items()))
        return Report(taken)

    def _send(self, one: Waiting) -> dict[str, str]:
        """Returns: recipients that were refused. Raises: NotSent."""
        if self.config.kind is ChannelKind.SMTP:
            return send_mail(self._smtp(), one.message, one.left)
        if self.secret is None:
            raise NotSent("send message: the address of the service is missing")
        urls.send_to_url(self.secret, one.message, self._seconds())
        return {}

    def _smtp(self) -> SmtpOptions:
        config = self.config
        return SmtpOptions(
            host=config.host or "",
            port=config.smtp_port,
            security=config.security,
            sender=config.sender or "",
            recipients=config.recipients,
            user=config.user,
            password=self.secret,
            ca_file=config.ca_file,
            allow_plain=config.allow_plain,
            seconds=self._seconds(),
        )

    def _seconds(self) -> float:
        """For one answer; the whole attempt has the channel's own limit."""
        return min(10.0, float(self.config.timeout_seconds))


def _trouble(error: NotSent) -> str:
    """``no computer is known as mail.example.org``, and what to do about it where that is known."""
    cause = error.message.partition(": ")[2]
    hint = "" if error.hint == NotSent.default_hint else f". {error.hint}"
    return f"{cause}{hint}"
