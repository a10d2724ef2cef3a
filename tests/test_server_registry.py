"""
Tests for L{fcmxmpp.server.registry}.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.server.registry import Device, IDeviceCallbacks, LoginGuard, Registry


@implementer(IDeviceCallbacks)
class _Callbacks:
    """
    An app that does not care.
    """

    def messageStored(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageStored}.
        """

    def messageDelivered(self, message_id: str) -> None:
        """
        See L{IDeviceCallbacks.messageDelivered}.
        """

    def messageFailed(self, message_id: str, error: str) -> None:
        """
        See L{IDeviceCallbacks.messageFailed}.
        """

    def messageReceived(self, message: DownstreamMessage) -> None:
        """
        See L{IDeviceCallbacks.messageReceived}.
        """


class RegistrySenderTests(SynchronousTestCase):
    """
    L{Registry.mayLogIn} lets in whoever has the sender's key.
    """

    def setUp(self) -> None:
        """
        Two senders.
        """
        self.registry = Registry({"111": "key-1", "222": "key-2"})

    def test_rightKey(self) -> None:
        """
        Each sender has a key of its own.
        """
        self.assertTrue(self.registry.mayLogIn("111", "key-1"))
        self.assertTrue(self.registry.mayLogIn("222", "key-2"))

    def test_wrongKey(self) -> None:
        """
        A wrong key, another sender's, a part of the right one and none at all
        are refused.
        """
        for key in ("key-3", "key-2", "key", "key-1 ", "KEY-1", "key-1\0", ""):
            self.assertFalse(self.registry.mayLogIn("111", key), key)

    def test_unknownSender(self) -> None:
        """
        A sender that does not exist is refused, whatever key comes with it.
        """
        for sender in ("333", "", "111 ", "1111"):
            for key in ("key-1", "", "\0" * 32):
                self.assertFalse(self.registry.mayLogIn(sender, key), (sender, key))

    def test_nobody(self) -> None:
        """
        Where there is no sender, nobody is let in.
        """
        self.assertFalse(Registry({}).mayLogIn("", ""))

    def test_anyText(self) -> None:
        """
        A key may be of any characters, be it half of a surrogate pair.
        """
        registry = Registry({"111": "schl\u00fcssel \U0001f511", "222": "\ud83d"})
        self.assertTrue(registry.mayLogIn("111", "schl\u00fcssel \U0001f511"))
        self.assertTrue(registry.mayLogIn("222", "\ud83d"))
        self.assertFalse(registry.mayLogIn("111", "\ud83d"))

    def test_keysAreNotKept(self) -> None:
        """
        The registry keeps no key that a dump of it could tell.
        """
        self.assertNotIn("key-1", repr(vars(self.registry)))
        kept = [key for keys in vars(self.registry)["_keys"].values() for key in keys]
        self.assertNotIn(b"key-1", [part for key in kept for part in (key.salt, key.digest)])


class RegistryDeviceTests(SynchronousTestCase):
    """
    L{Registry} knows devices by their registration tokens.
    """

    def device(self, token: str) -> Device:
        """
        Make a device.
        """
        return Device(token, "111", "org.example.app", _Callbacks())

    def test_unknown(self) -> None:
        """
        An unknown token is nobody's.
        """
        self.assertIsNone(Registry({}).device("tok-A"))

    def test_add(self) -> None:
        """
        A device that was registered is found by its token, and is what it was
        made as.
        """
        registry, callbacks = Registry({}), _Callbacks()
        device = Device("tok-A", "111", "org.example.app", callbacks)
        registry.add(device)
        registry.add(self.device("tok-B"))
        self.assertIs(device, registry.device("tok-A"))
        self.assertEqual(
            ("tok-A", "111", "org.example.app"), (device.token, device.senderID, device.category)
        )
        self.assertIs(callbacks, device.callbacks)

    def test_addAgain(self) -> None:
        """
        A device that registers again takes the place of what it was.
        """
        registry, again = Registry({}), self.device("tok-A")
        registry.add(self.device("tok-A"))
        registry.add(again)
        self.assertIs(again, registry.device("tok-A"))

    def test_remove(self) -> None:
        """
        A device that was unregistered is not found; to unregister one that is
        not there does nothing.
        """
        registry = Registry({})
        registry.add(self.device("tok-A"))
        registry.remove("tok-A")
        registry.remove("tok-A")
        self.assertIsNone(registry.device("tok-A"))


class LoginGuardTests(SynchronousTestCase):
    """
    L{LoginGuard} has whoever tries keys wait longer each time.
    """

    def test_growth(self) -> None:
        """
        Each refusal doubles the delay, up to ten seconds.
        """
        guard = LoginGuard()
        delays = [guard.refuse("192.0.2.1", float(now)) for now in range(9)]
        self.assertEqual([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0], delays)

    def test_cap(self) -> None:
        """
        Ten thousand attempts wait no longer than ten seconds each.
        """
        guard = LoginGuard()
        for _ in range(10_000):
            delay = guard.refuse("192.0.2.1", 0.0)
        self.assertEqual(10.0, delay)

    def test_busy(self) -> None:
        """
        An address with as many refusals pending as there may be is busy until
        the first of them is told; others are not.
        """
        guard = LoginGuard()
        self.assertFalse(guard.isBusy("192.0.2.1", 0.0))
        for pending in range(guard.PENDING):
            self.assertFalse(guard.isBusy("192.0.2.1", 0.0), pending)
            guard.refuse("192.0.2.1", 0.0)
        self.assertTrue(guard.isBusy("192.0.2.1", 0.0))
        self.assertTrue(guard.isBusy("192.0.2.1", 0.25 - 2**-10))
        self.assertFalse(guard.isBusy("192.0.2.1", 0.25))
        self.assertFalse(guard.isBusy("192.0.2.2", 0.0))

    def test_busyOnly(self) -> None:
        """
        Whoever waits for each refusal is never busy, and an address that was
        forgotten or forgiven is not either.
        """
        guard = LoginGuard()
        now = 0.0
        for _ in range(100):
            self.assertFalse(guard.isBusy("192.0.2.1", now))
            now += guard.refuse("192.0.2.1", now)
        for _ in range(guard.PENDING):
            guard.refuse("192.0.2.1", now)
        self.assertTrue(guard.isBusy("192.0.2.1", now))
        now += guard.FORGIVEN + 1
        self.assertFalse(guard.isBusy("192.0.2.1", now))
        self.assertEqual(0.25, guard.refuse("192.0.2.1", now))
        self.assertFalse(guard.isBusy("192.0.2.1", now))

    def test_busyRate(self) -> None:
        """
        Ten thousand connections side by side try no more than two keys a
        second in the long run.
        """
        guard = LoginGuard()
        tried = 0
        for now in range(100):
            for _ in range(10_000):
                if guard.isBusy("192.0.2.1", float(now)):
                    break
                guard.refuse("192.0.2.1", float(now))
                tried += 1
        self.assertLess(tried, 200)

    def test_addresses(self) -> None:
        """
        One address does not pay for another.
        """
        guard = LoginGuard()
        for _ in range(3):
            guard.refuse("192.0.2.1", 0.0)
        self.assertEqual(0.25, guard.refuse("192.0.2.2", 0.0))
        self.assertEqual(2.0, guard.refuse("192.0.2.1", 0.0))

    def test_networks(self) -> None:
        """
        All IPv6 addresses that one household has count as one, busy or not.
        """
        guard = LoginGuard()
        delays = [guard.refuse(f"2001:db8::{number:x}", 0.0) for number in range(4)]
        self.assertEqual([0.25, 0.5, 1.0, 2.0], delays)
        self.assertEqual(0.25, guard.refuse("2001:db8:0:1::1", 0.0))
        for number in range(16):
            guard.refuse(f"2001:db8::1:{number:x}", 0.0)
        self.assertTrue(guard.isBusy("2001:db8::ffff:1", 0.0))
        self.assertFalse(guard.isBusy("2001:db8:0:1::1", 0.0))

    def test_forgiveness(self) -> None:
        """
        An address that was quiet for more than ten minutes has a clean slate;
        ten minutes are not more.
        """
        guard = LoginGuard()
        for now in (0.0, 1.0):
            guard.refuse("192.0.2.1", now)
        self.assertEqual(1.0, guard.refuse("192.0.2.1", 601.0))
        self.assertEqual(0.25, guard.refuse("192.0.2.1", 1201.5))

    def test_quietIsCountedFromTheLast(self) -> None:
        """
        It is the last refusal that the ten minutes are counted from, not the
        first.
        """
        guard = LoginGuard()
        delays = [guard.refuse("192.0.2.1", now) for now in (0.0, 500.0, 1000.0, 1500.0)]
        self.assertEqual([0.25, 0.5, 1.0, 2.0], delays)

    def test_bounded(self) -> None:
        """
        So many addresses are remembered and no more; the one that has been
        quiet for longest is forgotten first.
        """
        guard = LoginGuard()
        guard.ADDRESSES = 3  # type: ignore[misc]
        for address in ("a", "b", "c", "a", "d"):
            guard.refuse(address, 0.0)
        self.assertEqual([1.0, 0.5, 0.5], [guard.refuse(address, 0.0) for address in ("a", "c", "d")])
        self.assertEqual(0.25, guard.refuse("b", 0.0))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 700)), max_size=50))
    def test_always(self, refusals: list[tuple[str, float]]) -> None:
        """
        Whatever comes, the delay is a quarter of a second at least and ten
        seconds at most.
        """
        guard = LoginGuard()
        now = 0.0
        for address, pause in refusals:
            now += pause
            delay = guard.refuse(address, now)
            self.assertTrue(LoginGuard.FIRST <= delay <= LoginGuard.MOST, delay)
