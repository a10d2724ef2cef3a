"""
The app server as one Twisted service: links, delivery and sender put together.

This is what C{twistd fcm-xmpp} runs, and what an application of its own adds
to its service tree::

    server = AppServer(endpoint, Credentials("123456789", key), handler, clock=reactor)
    server.setServiceParent(application)

With a store, or with a connection server in the same process, they have to stop
one after the other: see L{fcmxmpp.services}.
"""

from __future__ import annotations

import itertools
import random as _random
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from msgspec import structs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fcmxmpp import __version__
from fcmxmpp.client import FCMClientProtocol
from fcmxmpp.connection import Credentials, Link
from fcmxmpp.delivery import MAX_HANDLED, Policy, UpstreamDelivery
from fcmxmpp.downstream import DownstreamSender
from fcmxmpp.errors import Stopped
from fcmxmpp.inbox import InboxDelivery
from fcmxmpp.interfaces import (
    AppServerEvent,
    IDownstreamSender,
    IOutcomeHandler,
    IResponsible,
    ISessionObserver,
    IStore,
    IUpstreamHandler,
    LinkReady,
    Stored,
)
from fcmxmpp.messages import WINDOW, Ack, DownstreamMessage
from fcmxmpp.outbox import StoredSender


__all__ = ["AppServer"]

_log = Logger()
_T = TypeVar("_T")


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
        store: IStore | None = None,
        grace: float = 10.0,
        random: Callable[[], float] = _random.random,
        observer: ISessionObserver | None = None,
        server: str = "the connection server",
    ) -> None:
        """
        @param endpoint: where the connection server is, TLS included.
        @param handler: the application's; or a callable that is given this
            object, to send by, and returns the handler.
        @param clock: the reactor.
        @param connections: how many links to keep open.
        @param policy: how messages are handled.
        @param store: the durable inbox and outbox, a service of its own: it
            has to be started before this one and stopped after it, which is
            what L{InOrder<fcmxmpp.services.InOrder>} is for.
        @param grace: seconds that the handlers that run, and the answers to what was
            sent, get at the stop.
        @param random: gives a number from 0 to 1, for jitter.
        @param server: what the log calls the connection server, such as
            C{"push.example.org:5235"}; never with a secret in it.
        @raise ValueError: if there is to be no link at all, or no store for
            the policy C{"stored"}.
        """
        if connections < 1:
            raise ValueError("an AppServer needs at least one connection")
        policy = policy or Policy()
        if policy.ack is None:
            policy = structs.replace(policy, ack="handled" if store is None else "stored")
        if policy.ack == "stored" and store is None:
            raise ValueError("to acknowledge what is stored takes a store")
        self._store = store
        self._senderID = credentials.senderID
        self._server = server
        self._ack = policy.ack
        self._clock = clock
        self._grace = grace
        self._started = False
        self._ending: Deferred[None] | None = None
        self._observer = None if observer is None else _guarded(observer)
        observe = self._observer
        self._sender: DownstreamSender | StoredSender | None = None
        self._outbox: StoredSender | None = None
        links = DownstreamSender(_identifiers(), clock, random, observe)
        if store is None:
            self._sender = links
        if not IUpstreamHandler.providedBy(handler) and callable(handler):
            handler = handler(self)
        verifyObject(IUpstreamHandler, handler)
        if IOutcomeHandler.providedBy(handler):
            verifyObject(IOutcomeHandler, handler)
        if store is not None:
            self._sender = self._outbox = StoredSender(
                store.outbox,
                links,
                IOutcomeHandler(handler, None),
                clock,
                random,
                policy.handlerTimeout,
                policy.handlerTries,
            )
        self.delivery = UpstreamDelivery(
            IUpstreamHandler(handler),
            policy,
            clock,
            random,
            observe,
            # Room for those whose connections have broken meanwhile.
            max(MAX_HANDLED, 2 * WINDOW * connections),
            None if store is None else store.inbox,
        )
        self._inbox = None if store is None else InboxDelivery(store.inbox, self.delivery, clock)
        responsible: IResponsible = self.delivery
        if self._inbox is not None and policy.ack == "stored":
            responsible = self._inbox

        def makeHandler(number: int) -> Callable[[Callable[[], None]], FCMClientProtocol]:
            return lambda drained: FCMClientProtocol(responsible, links, clock, observe, drained, number)

        self.links = [
            Link(
                endpoint,
                credentials,
                makeHandler(number),
                clock,
                random,
                self._linkTold,
                number,
                server,
            )
            for number in range(1, connections + 1)
        ]

    def send(self, message: DownstreamMessage) -> Deferred[Ack | Stored]:
        """
        See L{IDownstreamSender.send}.
        """
        if self._sender is None:
            return fail(Stopped("with a store nothing can be sent before the start"))
        sent: Deferred[Any] = self._sender.send(message)
        return sent

    def startService(self) -> None:
        """
        Connect, and stay connected.

        @raise RuntimeError: if it has been started before: make a new one.  Or
            if it has a store, and that has not been started.
        """
        if self._started:
            raise RuntimeError("an AppServer can be started once; make another one")
        if self._store is not None and not self._store.running:
            raise RuntimeError(
                "the store of an AppServer has to be started first: "
                "add both to one fcmxmpp.services.InOrder, the store before the AppServer"
            )
        self._started = True
        super().startService()
        _log.info(
            "fcmxmpp {version}: sender {senderID}, {links} to {server}, messages are acknowledged when {ack}",
            version=__version__,
            senderID=self._senderID,
            links="1 link" if len(self.links) == 1 else f"{len(self.links)} links",
            server=self._server,
            ack=self._ack,
        )
        if self._inbox is not None:
            self._inbox.start()
        if self._outbox is not None:
            self._outbox.start()
        self.links[0].start()

    def _linkTold(self, event: AppServerEvent) -> None:
        """
        Something happened to a link.
        """
        if self._observer is not None:
            self._observer(event)
        if isinstance(event, LinkReady) and (event.link, event.generation) == (1, 1) and self.running:
            # Not before: a wrong key is tried once and not by all at once.
            for link in self.links[1:]:
                link.start()

    def stopService(self) -> Deferred[None]:
        """
        Stop in order: nothing new, one grace period for the handlers that run
        and for the answers to what was sent, the handlers' ACKs, the end of
        the streams.

        @return: fires when nothing is left open, however often this is called.
            Cancelling it only ends the waiting.
        """
        super().stopService()
        if self._ending is None:
            self._ending = Deferred.fromCoroutine(self._stop())
        ended: Deferred[None] = Deferred()
        self._ending.addBoth(_tell, ended)
        return ended

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        deadline = self._clock.seconds() + self._grace
        if self._inbox is not None:
            self._inbox.stop()
        await self.delivery.stop(self._grace)
        # Until here handlers may send.
        assert self._sender is not None
        await self._sender.stop(max(0.0, deadline - self._clock.seconds()))
        await gatherResults([link.stop() for link in self.links])
        if self._store is not None and not self._store.running:
            _log.error(
                "the store was stopped before the app server: what was handled meanwhile is not recorded and "
                "will be handled again; add both to one fcmxmpp.services.InOrder, the store first"
            )
        _log.info(
            "stopped; upstream: {handled} handled, {deadLetters} dead letters, {malformed} malformed; "
            "downstream: {accepted} accepted, {failed} not",
            handled=self.delivery.handled,
            deadLetters=self.delivery.deadLetters,
            malformed=self.delivery.malformed,
            accepted=self._sender.successes,
            failed=self._sender.failures,
        )


def _tell(result: _T, waiting: Deferred[_T]) -> _T:
    """
    Tell one of those who wait for the same.
    """
    waiting.callback(result)
    return result


def _identifiers() -> Callable[[], str]:
    """
    Make what makes the C{message_id} of messages that have none.

    @return: never gives the same twice.  To ask the system for randomness each
        time would take longer than all checks of a message.
    """
    prefix, count = uuid4().hex, itertools.count(1)
    return lambda: f"{prefix}-{next(count)}"


def _guarded(observer: ISessionObserver) -> Callable[[AppServerEvent], None]:
    """
    An observer that must not raise, and cannot: those who tell it are in the
    midst of something.
    """

    def observe(event: AppServerEvent) -> None:
        try:
            observer.observed(event)
        except Exception:
            # Whatever a bug of the application raises: what it was told of has
            # happened, and its consequences must not be left out for that.
            _log.failure("the observer failed on {event}", event=type(event).__name__)

    return observe
