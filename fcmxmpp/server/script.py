"""
What a connection server does on request that it would not do by itself: refuse
messages, be slow, say nothing, or close connections.  For tests of app
servers, and for trying out what an application makes of a bad day::

    server.script.nack("DEVICE_UNREGISTERED", to="tok-B")
    server.script.nack("SERVICE_UNAVAILABLE", times=2)
    server.script.delay(1.5)

The first rule that fits a message decides; what no rule fits is answered as
ever.
"""

from __future__ import annotations

from msgspec import Struct

from fcmxmpp.messages import DownstreamMessage


__all__ = ["Rule", "Script"]


class Rule(Struct, kw_only=True):
    """
    What to do with some messages.

    @ivar to: whose, by their C{to} or C{condition}; None for all.
    @ivar times: how many more; None for all.
    @ivar error: the code to refuse them with; None to accept them.
    @ivar registration_id: a newer token to answer with.
    @ivar delay: seconds until the answer; None for never.
    @ivar drain: seconds after which the connection that brings one of them is
        closed; until then it is drained, that message being the first that is
        refused.
    """

    to: str | None = None
    times: int | None = None
    error: str | None = None
    registration_id: str | None = None
    delay: float | None = 0.0
    drain: float | None = None

    def fits(self, message: DownstreamMessage) -> bool:
        """
        Whether this rule is for a message.
        """
        return self.times != 0 and self.to in (None, message.to or message.condition)


class Script:
    """
    The rules, in the order they were given.

    @ivar rules: those that are still in force, and those that are used up.
    """

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def nack(
        self,
        error: str,
        to: str | None = None,
        times: int | None = None,
        registration_id: str | None = None,
    ) -> None:
        """
        Refuse messages.

        @param error: the code, known or not.
        @param to: only those for this token, topic or condition.
        @param times: only so many.
        @param registration_id: a newer token to tell with it.
        """
        self.rules.append(Rule(to=to, times=times, error=error, registration_id=registration_id))

    def renew(self, to: str, registration_id: str) -> None:
        """
        Accept the messages for a token, and tell a newer one.
        """
        self.rules.append(Rule(to=to, registration_id=registration_id))

    def delay(self, seconds: float, to: str | None = None, times: int | None = None) -> None:
        """
        Accept messages, and answer late.
        """
        self.rules.append(Rule(to=to, times=times, delay=seconds))

    def ignore(self, to: str | None = None, times: int | None = None) -> None:
        """
        Take messages and never answer; the device does not get them either.
        """
        self.rules.append(Rule(to=to, times=times, delay=None))

    def drain(self, to: str | None = None, times: int | None = 1, grace: float = 10.0) -> None:
        """
        Drain the connection that brings a message.

        @param grace: seconds until that connection is closed.
        """
        self.rules.append(Rule(to=to, times=times, drain=grace))

    def clear(self) -> None:
        """
        Have no rules any more.
        """
        self.rules.clear()

    def ruleFor(self, message: DownstreamMessage) -> Rule | None:
        """
        What decides about a message, which counts as one of the rule's times.
        """
        for rule in self.rules:
            if rule.fits(message):
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return None
