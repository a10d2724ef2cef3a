"""
Tests for L{fcmxmpp.server.senders}, and for what a registry and a connection
server make of it.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fcmxmpp.server.registry import Registry
from fcmxmpp.server.senders import MIN_KEY, HashedKey, hashKey, readSenders
from fcmxmpp.server.service import ConnectionServer
from tests.appservers import OPEN, SENDERS, Client


KEY = "EXAMPLE-SERVER-KEY-1"
OTHER = "EXAMPLE-SERVER-KEY-2"


def hashed(key: str, salt: bytes = b"s") -> HashedKey:
    """
    What is kept of a key.
    """
    return hashKey(key, lambda count: salt * count)


class HashTests(SynchronousTestCase):
    """
    L{hashKey} is what is kept of a key.
    """

    def test_format(self) -> None:
        """
        It is written with its salt, of 16 bytes, and the digest of both.
        """
        digest = sha256(b"s" * 16 + KEY.encode()).hexdigest()
        self.assertEqual(f"sha256:{'73' * 16}:{digest}", str(hashed(KEY)))

    def test_salted(self) -> None:
        """
        One key is kept differently each time.
        """
        self.assertNotEqual(hashed(KEY, b"a"), hashed(KEY, b"b"))

    def test_short(self) -> None:
        """
        A key that could be guessed is refused, and not quoted.
        """
        for key in ("", "x", "S3CRET" * 3, "S" * (MIN_KEY - 1)):
            error = self.assertRaises(ValueError, hashed, key)
            self.assertIn(f"at least {MIN_KEY} characters", str(error))
            self.assertNotIn("S", str(error))
        hashed("S" * MIN_KEY)


class ReadTests(SynchronousTestCase):
    """
    L{readSenders} reads a senders file.
    """

    def test_read(self) -> None:
        """
        Each sender has one key or more; its name, the date and comments are
        for people.
        """
        text = f"""# ours
            [senders.111]
            name = "the shop"
            added = 2026-11-29T05:00:00Z
            keys = ["{hashed(KEY)}", "{hashed(OTHER)}"]  # the second since May
            [senders.222]
            added = 2026-11-29
            keys = ["{hashed(OTHER, b"t")}"]
        """
        self.assertEqual(
            {"111": (hashed(KEY), hashed(OTHER)), "222": (hashed(OTHER, b"t"),)}, readSenders(text)
        )

    def test_nobody(self) -> None:
        """
        A file may be empty.
        """
        for text in ("", "\n# nobody yet\n", "[senders]\n"):
            self.assertEqual({}, readSenders(text))

    def test_refused(self) -> None:
        """
        What is wrong is told in one line, with the sender, and without what
        may be a key that stands in the wrong place.
        """
        key = f'keys = ["{hashed(KEY)}"]'
        for text, expected in (
            ("[senders.111\n", r"it is not TOML: .* line 1"),
            ("senders = 1", "senders has to be a table"),
            ("111 = 1", r"tables such as \[senders.123456789\]"),
            (f'[senders]\n111 = "{KEY}"', r"\[senders.111\] has to be a table"),
            (f"[senders.111]\n{key}\n[senders.{KEY}]\n{key}", "sender 2 in it has no ID: .* digits"),
            (f'[senders."1\\n2"]\n{key}', "sender 1 in it has no ID"),
            (f"[senders.{'1' * 21}]\n{key}", "sender 1 in it has no ID"),
            (f"[senders.\u0661]\n{key}", "it is not TOML"),
            (f'[senders."\u0661"]\n{key}', "sender 1 in it has no ID"),
            ("[senders.111]", r"\[senders.111\] needs keys: .* fcmxmpp senders add 111"),
            ("[senders.111]\nkeys = []", r"\[senders.111\] needs keys"),
            (f'[senders.111]\nkeys = "{KEY}"', r"\[senders.111\] needs keys"),
            (f'[senders.111]\nkeys = ["{hashed(KEY)}", "{KEY}"]', r"\[senders.111\]: key 2 is none"),
            ("[senders.111]\nkeys = [1]", r"\[senders.111\]: key 1 is none"),
            (f"[senders.111]\n{key.upper().replace('KEYS', 'keys')}", r"\[senders.111\]: key 1 is none"),
            (f'[senders.111]\n{key}\nkey = "{KEY}"', r"\[senders.111\] may have name, keys and added, and"),
            (f"[senders.111]\n{key}\nname = 1", r"\[senders.111\]: the name has to be a string"),
            (f"[senders.111]\n{key}\nadded = true", r"\[senders.111\]: added has to be a date"),
        ):
            error = str(self.assertRaises(ValueError, readSenders, text))
            self.assertRegex(error, expected)
            self.assertEqual([error], error.splitlines())
            self.assertNotIn(KEY, error)
            self.assertNotIn(hashed(KEY).digest.hex(), error.lower())

    @given(st.text())
    def test_anyText(self, text: str) -> None:
        """
        Whatever is in the file, nothing but C{ValueError} is raised, with one
        line.
        """
        try:
            readSenders(text)
        except ValueError as error:
            self.assertEqual(1, len(str(error).splitlines()))


class RegistryTests(SynchronousTestCase):
    """
    L{Registry} knows keys by what is kept of them.
    """

    def test_severalKeys(self) -> None:
        """
        Each of a sender's keys lets it in, and no other does.
        """
        registry = Registry({"111": [hashed(KEY), hashed(OTHER)], "222": [hashed(OTHER, b"t")]})
        self.assertTrue(registry.mayLogIn("111", KEY))
        self.assertTrue(registry.mayLogIn("111", OTHER))
        self.assertTrue(registry.mayLogIn("222", OTHER))
        for senderID, key in (("222", KEY), ("111", KEY + "x"), ("111", ""), ("333", KEY), ("333", "")):
            self.assertFalse(registry.mayLogIn(senderID, key), (senderID, key))

    def test_noKey(self) -> None:
        """
        What stands in for a key that is not there lets nobody in.
        """
        for registry in (Registry({}), Registry({"111": []})):
            for key in ("", "\0" * 32):
                self.assertFalse(registry.mayLogIn("111", key))

    def test_digestIsNoKey(self) -> None:
        """
        Who has read the file cannot log in with what is in it.
        """
        kept = hashed(KEY)
        registry = Registry({"111": [kept]})
        for key in (str(kept), kept.digest.hex(), kept.digest.decode("latin-1"), "\0" * 32):
            self.assertFalse(registry.mayLogIn("111", key))

    def test_sameWork(self) -> None:
        """
        A login costs as many digests and comparisons, whether the sender
        exists, how many keys it has, and whether the first of them is right.
        """
        registry = Registry({"111": [hashed(KEY), hashed(OTHER), hashed("x" * 20)], "222": [hashed(KEY)]})
        digests: list[int] = []
        real = HashedKey.digestOf

        def counted(kept: HashedKey, encoded: bytes) -> bytes:
            digests.append(len(kept.salt) + len(encoded))
            return real(kept, encoded)

        self.patch(HashedKey, "digestOf", counted)
        for senderID, key in (("111", KEY), ("111", "wrong"), ("222", KEY), ("222", "wrong"), ("333", KEY)):
            digests.clear()
            registry.mayLogIn(senderID, key)
            self.assertEqual([16 + len(key)] * 3, digests, (senderID, key))

    def test_replace(self) -> None:
        """
        Others may log in from then on; those that are gone or have lost a key
        are told, and not those that have got one.
        """
        registry = Registry({each: [hashed(KEY), hashed(OTHER)] for each in ("1", "2", "3", "4")})
        self.assertEqual(
            ["2", "3"],
            registry.replace(
                {
                    "1": [hashed(OTHER), hashed("x" * 20), hashed(KEY)],
                    "2": [hashed(OTHER)],
                    "4": [hashed(KEY), hashed(OTHER)],
                    "5": [hashed(KEY)],
                }
            ),
        )
        self.assertEqual([True, True, False, True, True], [registry.knows(each) for each in "12345"])
        self.assertEqual((False, True), (registry.mayLogIn("2", KEY), registry.mayLogIn("2", OTHER)))
        self.assertFalse(registry.mayLogIn("3", KEY))
        self.assertTrue(registry.mayLogIn("5", KEY))
        self.assertEqual(["1", "2", "4", "5"], registry.replace({}))
        self.assertFalse(registry.mayLogIn("1", KEY))


class CloseSenderTests(SynchronousTestCase):
    """
    L{ConnectionServer.closeSender} ends the streams of a sender.
    """

    def setUp(self) -> None:
        """
        A connection server.
        """
        self.server = ConnectionServer(Registry(SENDERS), Clock())
        self.server.startService()

    def client(self) -> Client:
        """
        Connect.
        """
        client = Client(self.server)
        self.addCleanup(client.lose)
        return client

    def test_closed(self) -> None:
        """
        Each of its streams gets the reason and ends; those of others stay.
        """
        ours, second, other = self.client(), self.client(), self.client()
        for client, senderID in ((ours, "111"), (second, "111"), (other, "222")):
            client.login(senderID)
        self.server.closeSender("111")
        for client in (ours, second):
            self.assertIn(b"<not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>", client.said())
            self.assertTrue(client.transport.disconnecting)
        self.assertEqual(b"", other.said())
        self.assertFalse(other.transport.disconnecting)
        self.server.closeSender("333")

    def test_justBeforeTheBind(self) -> None:
        """
        A stream that has shown the key and nothing more ends, too; one that
        has not shown it yet stays.
        """
        ours, early = self.client(), self.client()
        for client in (ours, early):
            client.send(OPEN)
        plain = b64encode(f"\0111\0{SENDERS['111']}".encode())
        ours.send(b'<auth xmlns="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">%b</auth>' % plain)
        self.server.closeSender("111")
        self.assertTrue(ours.transport.disconnecting)
        self.assertFalse(early.transport.disconnecting)
