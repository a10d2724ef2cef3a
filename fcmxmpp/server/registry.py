"""
Who may log in, and which devices there are.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from hashlib import sha256

from zope.interface import Interface

from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.ratelimit import networkOf
from fcmxmpp.server.senders import HashedKey


__all__ = ["Device", "IDeviceCallbacks", "LoginGuard", "Registry"]


class IDeviceCallbacks(Interface):
    """
    What the app on a device is told.
    """

    def messageStored(message_id: str) -> None:
        """
        The connection server has taken a message over: the device may forget
        it.  Never told of a message with a C{time_to_live} of 0, if the
        connection server has a store: such a one is never in it.
        """

    def messageDelivered(message_id: str) -> None:
        """
        The app server has acknowledged a message.
        """

    def messageFailed(message_id: str, error: str) -> None:
        """
        A message will not be delivered.

        @param error: C{"INVALID_PARAMETERS"}, C{"SIZE"}, C{"TTL_EXCEEDED"},
            C{"TOO_MANY_MESSAGES"} or C{"SERVICE_NOT_AVAILABLE"}.  The last two
            are of messages that were not taken over, and pass: the device
            keeps the message, and may send it again after a while.
        """

    def messageReceived(message: DownstreamMessage) -> None:
        """
        The app server has sent a message.
        """


class Device:
    """
    One app on one device.

    @ivar token: its registration token.
    @ivar senderID: whose app server it belongs to.
    @ivar category: the app's package name.
    @ivar callbacks: what to tell it.
    """

    __slots__ = ("callbacks", "category", "senderID", "token")

    def __init__(self, token: str, senderID: str, category: str, callbacks: IDeviceCallbacks) -> None:
        self.token = token
        self.senderID = senderID
        self.category = category
        self.callbacks = callbacks


class Registry:
    """
    The senders and their keys, and the devices within this process.  In memory.
    """

    def __init__(self, senders: Mapping[str, str | Sequence[HashedKey]]) -> None:
        """
        @param senders: the server key of each sender ID, or what is kept of
            each of its keys.
        """
        self._devices: dict[str, Device] = {}
        self._keys: dict[str, tuple[HashedKey, ...]] = {}
        self.replace(senders)

    def replace(self, senders: Mapping[str, str | Sequence[HashedKey]]) -> list[str]:
        """
        Have other senders from now on.

        @return: those that have lost a key, or are no more.  Which of its keys
            a stream has logged in with is not kept, so that all streams of
            these are to be closed: whose key is still good logs in again.
        """
        before, self._keys = (
            self._keys,
            {
                senderID: (_unsalted(keys),) if isinstance(keys, str) else tuple(keys)
                for senderID, keys in senders.items()
            },
        )
        # Every login looks at as many keys as any sender has.
        self._most = max(map(len, self._keys.values()), default=1)
        return sorted(
            senderID
            for senderID, keys in before.items()
            if not set(keys).issubset(self._keys.get(senderID, ()))
        )

    def mayLogIn(self, senderID: str, key: str) -> bool:
        """
        Whether this is one of the sender's keys.  An unknown sender takes the
        same time as a wrong key.
        """
        known = self._keys.get(senderID, ())
        encoded = key.encode("utf-8", "surrogatepass")
        matches = False
        for number in range(self._most):
            # No key at all stands in for one that is not there.
            kept = known[number] if number < len(known) else _NO_KEY
            matches |= hmac.compare_digest(kept.digest, kept.digestOf(encoded)) and kept is not _NO_KEY
        return matches

    def sendersWith(self, key: str) -> list[str]:
        """
        Whose key this is: one sender's, unless several have the same.
        """
        return [senderID for senderID in self._keys if self.mayLogIn(senderID, key)]

    def knows(self, senderID: str) -> bool:
        """
        Whether there is such a sender.
        """
        return senderID in self._keys

    def add(self, device: Device) -> None:
        """
        Register a device, or register it anew.
        """
        self._devices[device.token] = device

    def remove(self, token: str) -> None:
        """
        Unregister a device.
        """
        self._devices.pop(token, None)

    def device(self, token: str) -> Device | None:
        """
        The device with this token.
        """
        return self._devices.get(token)


def _unsalted(key: str) -> HashedKey:
    """
    What is kept of a key that is in memory anyway: keys are compared by their
    digests, which all have one length.
    """
    return HashedKey(b"", sha256(key.encode("utf-8", "surrogatepass")).digest())


_NO_KEY = HashedKey(bytes(16), bytes(32))


class _Refusals:
    """
    What was refused to one address.

    @ivar count: how many logins.
    @ivar last: when the last of them came.
    @ivar due: when the newest of them are told.  Whoever hangs up before that
        gains nothing by it.
    """

    __slots__ = ("count", "due", "last")

    def __init__(self, pending: int) -> None:
        self.count = 0
        self.last = 0.0
        self.due: deque[float] = deque(maxlen=pending)


class LoginGuard:
    """
    Slows down whoever tries keys: each refusal to one address comes later than
    the one before, and while many are still to come no other try is looked at.

    It knows only addresses, never senders, so that the delay does not tell
    whether a sender exists.
    """

    #: Seconds of delay for the first refusal, and at most.
    FIRST, MOST = 0.25, 10.0
    #: Seconds after which an address has a clean slate.
    FORGIVEN = 600.0
    #: Refusals to one address that may be pending.
    PENDING = 16
    #: Addresses that are remembered.
    ADDRESSES = 10_000

    def __init__(self) -> None:
        self._refusals: OrderedDict[str, _Refusals] = OrderedDict()

    def isBusy(self, address: str, now: float) -> bool:
        """
        Whether so many logins from this address are being refused that the
        next is not to be looked at, be its key right or wrong: otherwise tries
        made side by side would be as good as tries without a delay.
        """
        refusals = self._refusals.get(networkOf(address))
        return refusals is not None and sum(due > now for due in refusals.due) >= self.PENDING

    def refuse(self, address: str, now: float) -> float:
        """
        A login from this address is being refused.

        @return: how many seconds to wait before saying so.
        """
        # Who has one IPv6 address has very many.
        address = networkOf(address)
        refusals = self._refusals.pop(address, None)
        if refusals is None or now - refusals.last > self.FORGIVEN:
            refusals = _Refusals(self.PENDING)
        self._refusals[address] = refusals
        if len(self._refusals) > self.ADDRESSES:
            self._refusals.popitem(last=False)
        delay = min(self.MOST, self.FIRST * 2.0 ** min(refusals.count, 16))
        refusals.count += 1
        refusals.last = now
        refusals.due.append(now + delay)
        return delay
