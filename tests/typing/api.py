"""
How a typed application uses the package: checked by mypy, never run.

Lines that must not pass carry the error they must give; with warn_unused_ignores
a line that passes after all is an error, too.
"""

from __future__ import annotations

from collections.abc import Awaitable

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from fcmxmpp.interfaces import IDownstreamSender, IUpstreamHandler, settled
from fcmxmpp.messages import Ack, DownstreamMessage, UpstreamMessage


@implementer(IUpstreamHandler)
class Plain:
    def messageReceived(self, message: UpstreamMessage) -> None:
        print(message.from_, message.message_id, message.data)  # noqa: T201


@implementer(IUpstreamHandler)
class WithDeferred:
    def messageReceived(self, message: UpstreamMessage) -> Deferred[None]:
        return succeed(None)


@implementer(IUpstreamHandler)
class Async:
    def __init__(self, sender: IDownstreamSender) -> None:
        self.sender = sender

    async def messageReceived(self, message: UpstreamMessage) -> None:
        answer = DownstreamMessage(to=message.from_, data={"op": "pong"})
        ack: Ack = await settled(self.sender.send(answer))
        assert ack.registration_id is None
        wrong: Ack = await self.sender.send(answer)  # type: ignore[assignment]  # with a store it is Stored
        assert wrong


@implementer(IUpstreamHandler)
class Nothing:  # type: ignore[misc]  # the method is missing
    pass


def use(message: UpstreamMessage) -> Awaitable[object] | None:
    message.message_id = "frozen"  # type: ignore[misc]
    UpstreamMessage(message_id=1, from_="token")  # type: ignore[arg-type]
    handler: IUpstreamHandler = Plain()
    return handler.messageReceived(message)
