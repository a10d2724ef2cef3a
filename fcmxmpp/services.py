"""
What an application needs to put our services into a service tree of its own.
"""

from __future__ import annotations

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger


__all__ = ["InOrder"]

_log = Logger()


class InOrder(MultiService):
    """
    Services that need each other: they start in the order in which they were
    added, and stop in the opposite order, each once the one before it has
    stopped.

    A L{MultiService<twisted.application.service.MultiService>}, and so an
    application, begins to stop all of its services at once.  An L{AppServer
    <fcmxmpp.appserver.AppServer>} needs its store, and the connection server if
    that is in the same process, until its last message is handled, recorded and
    acknowledged::

        services = InOrder()
        services.setServiceParent(application)
        store.setServiceParent(services)
        AppServer(endpoint, credentials, handler, clock=reactor, store=store).setServiceParent(services)
    """

    def stopService(self) -> Deferred[None]:
        """
        Stop them, the last one first.

        @return: fires when all have stopped.  One that fails does not keep the
            others from being stopped; its failure is logged.
        """
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """
        See L{stopService}.
        """
        for service in reversed(list(self)):
            try:
                await maybeDeferred(service.stopService)
            except Exception:
                _log.failure("stopping {service} failed", service=type(service).__name__)
