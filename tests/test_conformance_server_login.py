"""
Conformance cases of the connection server's logins, the variants that clients
in the field have, and of what they send besides messages.
"""

from __future__ import annotations

import re

from fcmxmpp.stanza import attribute
from fcmxmpp.testing import SENDER_ID, SERVER_KEY
from tests.conformance import (
    BARE_JID,
    BIND,
    GOOD_KEY,
    HEADER,
    HOUR,
    NOT_AUTHORIZED,
    SUCCESS,
    RawClient,
    ServerCase,
    auth,
    idsIn,
    plain,
)


#: What clients in the field put there, and what none should.
STREAM_TOS = [
    "gcm.googleapis.com",
    "gcm-xmpp.googleapis.com",
    "fcm-xmpp.googleapis.com",
    "fcm.googleapis.com",
    "FCM XMPP Client Connection Server",
    "localhost",
    "",
    "@/",
    "a\"b'c<d>&amp;e",
    "\U0001f600 \u00e5",
    "x" * 1000,
]
#: Who logs in as what; each with success, so far as is known.
IDENTITIES = {
    "gcm": ("", f"{SENDER_ID}@gcm.googleapis.com"),
    "fcm": ("", f"{SENDER_ID}@fcm.googleapis.com"),
    "bare": ("", SENDER_ID),
    "any domain": ("", f"{SENDER_ID}@example.org"),
    "full JID": ("", f"{SENDER_ID}@gcm.googleapis.com/node7"),
    "authzid of the documentation": (
        f"{SENDER_ID}@projects.gcm.android.com",
        f"{SENDER_ID}@projects.gcm.android.com",
    ),
    "authzid of another domain": (f"{SENDER_ID}@projects.gcm.android.com", f"{SENDER_ID}@gcm.googleapis.com"),
    "authzid, bare": (SENDER_ID, SENDER_ID),
}


class LoginVariantTests(ServerCase):
    """
    The many ways in which clients log in.
    """

    def test_S01_transcript(self) -> None:
        """
        The documented way, step by step and to the byte.
        """
        client = self.client()
        started = (
            '<stream:stream from="gcm.googleapis.com" id="%s" version="1.0" '
            'xmlns:stream="http://etherx.jabber.org/streams" xmlns="jabber:client">'
        )
        self.assertEqual(
            started
            % "0000000000000001"
            + '<stream:features><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl">'
            "<mechanism>PLAIN</mechanism></mechanisms></stream:features>",
            client.send(HEADER),
        )
        self.assertEqual(SUCCESS, client.send(auth(GOOD_KEY)))
        self.assertEqual(
            started % "0000000000000002" + '<stream:features><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>'
            '<session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></stream:features>',
            client.send(HEADER),
        )
        self.assertEqual(
            '<iq type="result" id="b1"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind">'
            "<jid>987654321098@gcm.googleapis.com/node7</jid></bind></iq>",
            client.send(BIND),
        )
        self.assertEqual(
            '<iq type="result" id="s1"/>',
            client.send('<iq type="set" id="s1"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>'),
        )

    def test_S01_anyTo(self) -> None:
        """
        The stream header's C{to} may be anything, and is echoed.
        """
        for to in STREAM_TOS:
            client = self.client()
            header = HEADER.replace('to="gcm.googleapis.com"', f'to="{attribute(to)}"')
            for step in (auth(GOOD_KEY), BIND):
                self.assertTrue(
                    client.send(header).startswith(f'<stream:stream from="{attribute(to)}" id="'), to
                )
                said = client.send(step)
            self.assertIn("<jid>", said, to)
            self.alive(client, to)

    def test_S01_anyHeader(self) -> None:
        """
        The header may lack its C{to}, be quoted in either way, follow an XML
        declaration, and come with a line break or byte by byte.
        """
        for header in (
            HEADER.replace(' to="gcm.googleapis.com"', ""),
            HEADER.replace('"', "'"),
            f"<?xml version='1.0'?>{HEADER}",
            f'<?xml version="1.0" encoding="UTF-8" ?>\n{HEADER}\n',
            HEADER.replace(' version="1.0"', ""),
            HEADER.replace(">", f' xml:lang="en" from="{BARE_JID}">'),
            HEADER.replace("stream:", "s:").replace(":stream=", ":s="),
            HEADER.replace(" ", "\n  "),
        ):
            client = self.client()
            for step in (auth(GOOD_KEY), BIND):
                for byte in header.encode():
                    client.stream.dataReceived(bytes([byte]))
                self.assertIn("<stream:features>", client.take(), header)
                said = client.send(step)
            self.assertIn("<jid>", said, header)

    def test_S01_anyIdentity(self) -> None:
        """
        SASL PLAIN may name the sender in any of the ways that are in use.
        """
        for name, (authzid, authcid) in IDENTITIES.items():
            client = self.client()
            said = client.login(plain(authzid, authcid, SERVER_KEY))
            self.assertIn(f"<jid>{BARE_JID}/", said, name)
            self.alive(client, name)

    def test_S01_lineBreaks(self) -> None:
        """
        The base64 may be broken into lines, at any place.
        """
        blob = GOOD_KEY
        broken = [blob[:cut] + "\n" + blob[cut:] for cut in range(len(blob) + 1)]
        broken += [
            "\r\n".join(re.findall(".{1,20}", blob)) + "\r\n",
            "\n".join(blob),
            f"\n\t  {blob}  \n",
            " ".join(re.findall(".{1,3}", blob)),
        ]
        for each in broken:
            client = self.client()
            client.send(HEADER)
            self.assertEqual(SUCCESS, client.send(auth(each)), repr(each))

    def test_S01_anyAuth(self) -> None:
        """
        The rest of the request may be written in any way, too, and may come in
        two steps.
        """
        for request in (
            auth(GOOD_KEY).replace('"', "'") + "\n",
            f'<a:auth xmlns:a="urn:ietf:params:xml:ns:xmpp-sasl" mechanism="PLAIN">{GOOD_KEY}</a:auth>',
            auth(GOOD_KEY).replace("<auth ", '<auth xmlns:ga="http://www.google.com/talk/protocol/auth" '),
            auth(GOOD_KEY).replace(">", ' ga:x="1" xmlns:ga="urn:x">', 1),
            auth(f"<![CDATA[{GOOD_KEY}]]>"),
        ):
            client = self.client()
            client.send(HEADER)
            self.assertEqual(SUCCESS, client.send(request), request)
        client = self.client()
        client.send(HEADER)
        self.assertEqual('<challenge xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>', client.send(auth("")))
        response = f'<response xmlns="urn:ietf:params:xml:ns:xmpp-sasl">{GOOD_KEY}</response>'
        self.assertEqual(SUCCESS, client.send(response))

    def test_S01_anotherAuthzid(self) -> None:
        """
        Only an authzid that names another sender is not accepted.
        """
        client = self.client()
        client.send(HEADER)
        client.send(auth(plain("111@gcm.googleapis.com", BARE_JID, SERVER_KEY)))
        self.clock.advance(1)
        self.assertEqual(NOT_AUTHORIZED, client.take())

    def test_S02_incompleteBind(self) -> None:
        """
        A bind without C{id}, without a resource, or with an empty one is
        accepted; the answer has the C{id} if the request had one, and a
        resource in any case.
        """
        namespace = "urn:ietf:params:xml:ns:xmpp-bind"
        jids = set()
        for bind, stanzaID in (
            (f'<iq type="set"><bind xmlns="{namespace}"/></iq>', ""),
            (f'<iq type="set" id=""><bind xmlns="{namespace}"/></iq>', ' id=""'),
            (f'<iq type="set" id="b1"><bind xmlns="{namespace}"/></iq>', ' id="b1"'),
            (f'<iq type="set" id="b2"><bind xmlns="{namespace}"><resource/></bind></iq>', ' id="b2"'),
            (f'<iq type="set"><bind xmlns="{namespace}"><resource>r</resource></bind></iq>', ""),
            (
                f'<iq id="1" to="fcm-xmpp.googleapis.com" type="set"><bind xmlns="{namespace}"/></iq>',
                ' id="1"',
            ),
            (f'<iq id="a&amp;&quot;" type="set"><bind xmlns="{namespace}"/></iq>', ' id="a&amp;&quot;"'),
        ):
            client = self.client()
            said = client.login(bind=bind)
            answer = re.fullmatch(
                f'<iq type="result"{re.escape(stanzaID)}><bind xmlns="{namespace}">'
                f"<jid>{BARE_JID}/([^<]+)</jid></bind></iq>",
                said,
            )
            assert answer is not None, (bind, said)
            jids.add(answer[1])
            self.alive(client, bind)
        self.assertEqual(7, len(jids), "two streams have one resource")
        self.assertIn("r", jids)

    def test_S02_sameResource(self) -> None:
        """
        When several streams ask for the same resource each gets one of its
        own, none is closed, and all of them work.
        """
        clients = []
        resources = []
        for _ in range(5):
            client = self.client()
            said = client.login()
            resources += re.findall(f"<jid>{BARE_JID}/(.*)</jid>", said)
            clients.append(client)
        self.assertEqual("node7", resources[0])
        self.assertEqual(5, len(set(resources)))
        for client in clients:
            self.alive(client)
        self.send("m-1", "m-2", "m-3", "m-4", "m-5")
        self.assertEqual(5, len({tuple(idsIn(client.take())) for client in clients}))
        # A resource that has become free may be had again.
        self.lose(clients[0])
        self.assertIn(f"{BARE_JID}/node7<", self.client().login())

    def test_S03_otherStanzas(self) -> None:
        """
        Presence and whatever else clients send out of habit is tolerated; IQ
        requests that it does not know are answered with
        C{service-unavailable}, and pings with a result.
        """
        condition = '<service-unavailable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>'
        unavailable = f'<error type="cancel">{condition}</error></iq>'
        for stanza, answer in (
            ("<presence/>", ""),
            ("<presence xml:lang='en'><show>chat</show><priority>1</priority></presence>", ""),
            ('<presence type="unavailable"/>', ""),
            (
                '<iq type="get" id="r1"><query xmlns="jabber:iq:roster"/></iq>',
                f'<iq type="error" id="r1">{unavailable}',
            ),
            ('<iq type="get"><query xmlns="jabber:iq:roster"/></iq>', f'<iq type="error">{unavailable}'),
            (
                '<iq type="get" id="d1" to="gcm.googleapis.com"><query '
                'xmlns="http://jabber.org/protocol/disco#info"/></iq>',
                f'<iq type="error" id="d1">{unavailable}',
            ),
            ('<iq type="set" id="x"/>', f'<iq type="error" id="x">{unavailable}'),
            (
                '<iq type="get" id="&lt;&amp;&quot;\'"><x xmlns="y"/></iq>',
                f'<iq type="error" id="&lt;&amp;&quot;\'">{unavailable}',
            ),
            (
                f"<iq from='{BARE_JID}/node7' to='fcm-xmpp.googleapis.com' id='c2s1' type='get'>"
                "<ping xmlns='urn:xmpp:ping'/></iq>",
                '<iq type="result" id="c2s1"/>',
            ),
            ('<iq type="get"><ping xmlns="urn:xmpp:ping"/></iq>', '<iq type="result"/>'),
            ('<iq type="result" id="c2s1"/>', ""),
            ('<iq type="error" id="c2s1"><error type="cancel"/></iq>', ""),
            ('<iq id="no type"/>', ""),
            (
                '<iq type="set" id="s1"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>',
                '<iq type="result" id="s1"/>',
            ),
            (
                '<iq type="set"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>',
                '<iq type="result"/>',
            ),
            ("<message/>", ""),
            ('<message to="devices@gcm.googleapis.com"><body>hello</body></message>', ""),
            ('<message><gcm xmlns="google:mobile">{}</gcm></message>', ""),
            ('<message type="error"><gcm xmlns="google:mobile:data">{}</gcm></message>', ""),
            ('<r xmlns="urn:xmpp:sm:3"/>', ""),
            (" ", ""),
            ("\n", ""),
        ):
            for behind in ("", "\n", "\r\n", " "):
                client = self.loggedIn()
                self.assertEqual(answer, client.send(stanza + behind), stanza)
                self.alive(client, stanza)

    def test_S03_beforeTheBind(self) -> None:
        """
        So it is between the login and the bind.
        """
        client = self.client()
        client.send(HEADER)
        client.send(auth(GOOD_KEY))
        client.send(HEADER)
        self.assertEqual("", client.send("<presence/>\n"))
        self.assertIn(
            "service-unavailable", client.send('<iq type="get"><query xmlns="jabber:iq:roster"/></iq>\n')
        )
        self.alive(client)
        self.assertIn(f"{BARE_JID}/node7", client.send(BIND))

    def test_S03_messagesWithoutID(self) -> None:
        """
        Messages without an C{id}, or with an empty one, to whomever they are
        addressed and with a line break after each, are accepted.
        """
        client = self.loggedIn()
        for number, attributes in enumerate(
            (
                "",
                ' id=""',
                ' id="1"',
                ' type="normal"',
                ' to="devices@gcm.googleapis.com"',
                ' to="fcm-xmpp.googleapis.com" xml:lang="en"',
                ' xmlns="jabber:client"',
            )
        ):
            text = f'{{"to":"tok-A","message_id":"d-{number}","data":{{"k":"v"}}}}'
            said = client.send(
                f'<message{attributes}><gcm xmlns="google:mobile:data">{text}</gcm></message>\n'
            )
            self.assertEqual([f"d-{number}"], idsIn(said), attributes)
            self.assertIn('"message_type":"ack"', said, attributes)
        self.assertEqual(7, len(self.device.received))


#: Logins that must not succeed.
BAD_LOGINS = {
    "wrong key": plain("", BARE_JID, "WRONG-KEY"),
    "unknown sender": plain("", "222@gcm.googleapis.com", SERVER_KEY),
    "key of another sender": plain("", BARE_JID, "ANOTHER-KEY"),
    "another sender with this key": plain("", "111@gcm.googleapis.com", SERVER_KEY),
    "no key": plain("", BARE_JID, ""),
    "unknown sender, no key": plain("", "222", ""),
    "no sender": plain("", "", SERVER_KEY),
    "no sender, no key": plain("", "", ""),
    "begins like the key": plain("", BARE_JID, SERVER_KEY[:-1]),
    "longer than the key": plain("", BARE_JID, SERVER_KEY + "x"),
    "on behalf of another": plain("111", BARE_JID, SERVER_KEY),
    "very long": plain("", BARE_JID, "x" * 5_000),
    "not ASCII": plain("", "\u0669\u0668\u0667@gcm.googleapis.com", "\u00e5"),
}


class GuessingTests(ServerCase):
    """
    Those who try keys.
    """

    def refusal(self, blob: str, host: str) -> tuple[str, float]:
        """
        Try to log in.

        @return: the answer, and after how many seconds it came.
        """
        client = self.client(host)
        client.send(HEADER)
        before = self.clock.seconds()
        client.stream.dataReceived(auth(blob).encode())
        while not client.transport.value():
            self.clock.advance(0.125)
            self.assertLess(self.clock.seconds() - before, 60, "there is no answer")
        self.assertTrue(client.closing)
        return client.take(), self.clock.seconds() - before

    def test_S13_sameAnswer(self) -> None:
        """
        Whatever is wrong with a login, the answer is the same to the byte.
        """
        for number, (name, blob) in enumerate(BAD_LOGINS.items()):
            answer, _ = self.refusal(blob, f"192.0.2.{number}")
            self.assertEqual(NOT_AUTHORIZED, answer, name)

    def test_S13_sameTime(self) -> None:
        """
        It comes after the same time, too: that grows with each attempt, up to
        a limit, and does not depend on what was wrong.
        """
        schedules = {}
        for number, (name, blob) in enumerate(BAD_LOGINS.items()):
            schedules[name] = tuple(self.refusal(blob, f"192.0.2.{number}")[1] for _ in range(12))
        mixed = list(BAD_LOGINS.values())[:12]
        schedules["a mixture"] = tuple(self.refusal(blob, "192.0.2.200")[1] for blob in mixed)
        self.assertEqual(1, len(set(schedules.values())), schedules)
        (delays,) = set(schedules.values())
        self.assertEqual(sorted(delays), list(delays))
        self.assertGreater(delays[0], 0)
        self.assertGreaterEqual(delays[4], 8 * delays[0])
        self.assertEqual(delays[-1], delays[-2])
        self.assertGreaterEqual(delays[-1], 5)

    def test_S13_nothingBeforeTheAnswer(self) -> None:
        """
        While the answer is being kept back nothing else is answered, and a
        good key on the same connection is not looked at.
        """
        client = self.client()
        client.send(HEADER)
        self.assertEqual("", client.send(auth(BAD_LOGINS["wrong key"])))
        self.assertEqual(
            "", client.send(auth(GOOD_KEY) + '<iq type="get" id="1"><ping xmlns="urn:xmpp:ping"/></iq>')
        )
        self.clock.advance(60)
        self.assertEqual(NOT_AUTHORIZED, client.take())

    def test_S13_goodLogin(self) -> None:
        """
        A good login is not slowed down, not even from an address that has
        tried many keys.
        """
        for _ in range(10):
            self.refusal(BAD_LOGINS["wrong key"], "192.0.2.7")
        self.assertIn("<jid>", self.client("192.0.2.7").login())

    def test_S13_tenThousandAttempts(self) -> None:
        """
        Ten thousand attempts take more than a day, leave nothing behind, and
        do not keep anybody else from logging in.
        """
        started = self.clock.seconds()
        kinds = list(BAD_LOGINS.values())[:3]
        request = [auth(blob).encode() for blob in kinds]
        header = HEADER.encode()
        answers = set()
        for number in range(10_000):
            client = RawClient(self.server.factory)
            client.stream.dataReceived(header)
            client.transport.clear()
            client.stream.dataReceived(request[number % 3])
            while not client.closing:
                self.assertEqual(b"", client.transport.value())
                self.clock.advance(10)
            answers.add(client.take())
            client.lose()
        self.assertEqual({NOT_AUTHORIZED}, answers)
        self.assertGreaterEqual(self.clock.seconds() - started, 24 * HOUR)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertIn("<jid>", self.client("192.0.2.8").login())
