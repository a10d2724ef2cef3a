"""
The app server as one Twisted service: links, delivery and sender put together.

This is what C{twistd fcm-xmpp} runs, and what an application of its own adds
to its service tree::

    AppServer(endpoint, Credentials("123456789", key), handler).setServiceParent(application)
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp.client import FCMClientProtocol
from fcmxmpp.connection import Credentials, Link
from fcmxmpp.delivery import Policy, UpstreamDelivery
from fcmxmpp.downstream import DownstreamSender
from fcmxmpp.interfaces import AppServerEvent, IDownstreamSender, ISessionObserver, IUpstreamHandler
from fcmxmpp.messages import Ack, DownstreamMessage


__all__ = ["AppServer"]

_log = Logger()


@implementer(IDownstreamSender)
class AppServer(Service):
    """
    An app server.

    @ivar delivery: where what devices send goes, and what it counted.
    @ivar links: the links; the first logs in before the others try.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        credentials: Credentials,
        handler: IUpstreamHandler | Callable[[IDownstreamSender], IUpstreamHandler],
        *,
        clock: IReactorTime,
        connections: int = 1,
        policy: Policy | None = None,
        grace: float = 10.0,
        random: Callable[[], float] = _random.random,
        observer: ISessionObserver | None = None,
    ) -> None:
        """
        @param endpoint: where the connection server is, TLS included.
        @param handler: the application's; or a callable that is given this
            object, to send by, and returns the handler.
        @param clock: the reactor.
        @param connections: how many links to keep open.
        @param grace: seconds that handlers get to end at the stop.
        @param random: gives a number from 0 to 1, for jitter.
        """
        self._sender = DownstreamSender(lambda: str(uuid4()))
        self._grace = grace
        self._started = False
        observe = None if observer is None else _guarded(observer)
        if not IUpstreamHandler.providedBy(handler) and callable(handler):
            handler = handler(self)
        verifyObject(IUpstreamHandler, handler)
        self.delivery = UpstreamDelivery(
            IUpstreamHandler(handler), policy or Policy(), clock, random, observe
        )
        self.links = [
            Link(
                endpoint,
                credentials,
                lambda: FCMClientProtocol(self.delivery, self._sender, clock, observe),
                clock,
                random,
                observe,
            )
            for _ in range(connections)
        ]

    def send(self, message: DownstreamMessage) -> Deferred[Ack]:
        """
        See L{IDownstreamSender.send}.
        """
        return self._sender.send(message)

    def startService(self) -> None:
        """
        Connect, and stay connected.

        @raise RuntimeError: if it has been started before: make a new one.
        """
        if self._started:
            raise RuntimeError("an AppServer can be started once; make another one")
        self._started = True
        super().startService()
        for link in self.links:
            link.start()

    def stopService(self) -> Deferred[None]:
        """
        Stop in order: nothing new, a grace period for the handlers that run,
        their ACKs, the end of the stream.

        @return: fires when nothing is left open.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        await self.delivery.stop(self._grace)
        self._sender.stop()
        await gatherResults([link.stop() for link in self.links])


def _guarded(observer: ISessionObserver) -> Callable[[AppServerEvent], None]:
    """
    An observer that must not raise, and cannot: those who tell it are in the
    midst of something.
    """

    def observe(event: AppServerEvent) -> None:
        try:
            observer.observed(event)
        except Exception:
            _log.failure("the observer failed on {event}", event=type(event).__name__)

    return observe
