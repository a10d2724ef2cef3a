"""
Conformance cases of downstream messages, from sending to the answer.
"""

from __future__ import annotations

from fcmxmpp.elementstream import GCMStanza
from fcmxmpp.errors import Nacked
from fcmxmpp.messages import Ack, DownstreamMessage
from fcmxmpp.stanza import stanzaError
from fcmxmpp.testing import ScriptedConnectionServer
from tests.conformance import (
    BARE_JID,
    AppServerCase,
    LogText,
)


#: Ways to say 400 of the message "d-0".
BAD_REQUESTS = {
    "ours": stanzaError(
        400,
        "InvalidJson: JSON_PARSING_ERROR : Missing Required Field: message_id\n",
        f"{BARE_JID}/node7",
        GCMStanza('{"to":"tok-A","message_id":"d-0"}', {"id": "d-0"}),
    ).decode(),
    "documented": (
        f'<message id="d-0" type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
        '{"to":"tok-A","data":{}}</gcm><error code="400" type="modify"><bad-request '
        'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/><text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">'
        "InvalidJson</text></error></message>"
    ),
    "without id": (
        f'<message type="error" to="{BARE_JID}/node7"><gcm xmlns="google:mobile:data">'
        '{"to":"tok-A","message_id":"d-0"}</gcm><error code="400" type="modify"/></message>'
    ),
    "empty id": (
        '<message id="" type="error"><data:gcm xmlns:data="google:mobile:data">'
        '{"to":"tok-A","message_id":"d-0"}</data:gcm><error code="400"/></message>'
    ),
    "broken payload": (
        '<message id="d-0" type="error"><gcm xmlns="google:mobile:data">{"to":"tok-A",</gcm>'
        '<error code="400"/></message>'
    ),
    "no payload": '<message id="d-0" type="error"><error code="400" type="modify"/></message>',
    "no code": (
        '<message id="d-0" type="error"><error type="modify"><bad-request '
        'xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></message>'
    ),
}


class StanzaErrorTests(AppServerCase):
    """
    Stanza errors, which stand for answers that could not be given.
    """

    def test_A22_badRequest(self) -> None:
        """
        A stanza error 400 fails the message that it is about, frees that
        message's place for the next one, and leaves the stream as it is.
        """
        for name, error in BAD_REQUESTS.items():
            script = ScriptedConnectionServer()
            joined = self.joined(script)
            results = [
                joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}"))
                for number in range(102)
            ]
            joined.pump()
            self.assertEqual(100, len(script.downstream))
            script.write(error.encode())
            joined.pump()
            failed = self.failureResultOf(results[0], Nacked).value
            self.assertEqual(
                ("BAD_REQUEST", "d-0", True), (failed.error, failed.message_id, failed.permanent), name
            )
            self.assertEqual(
                [f"d-{number}" for number in range(101)], [m.message_id for m in script.downstream]
            )
            for result in results[1:]:
                self.assertNoResult(result)
                result.addErrback(lambda failure: None)
            self.stays(script, joined, name)

    def test_A22_notAcceptable(self) -> None:
        """
        A stanza error 406 is logged; no message fails, no place is freed, and
        the stream stays.
        """
        log = LogText(self)
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        results = [
            joined.appServer.send(DownstreamMessage(to="tok-A", message_id=f"d-{number}"))
            for number in range(102)
        ]
        joined.pump()
        for stanzaID in ("", "d-0"):
            echoed = GCMStanza('{"to":"tok-A","message_id":"d-0","message_type":"ack"}', {"id": stanzaID})
            text = "Received acks for messages not sent over this connection\n"
            script.write(stanzaError(406, text, f"{BARE_JID}/node7", echoed))
        joined.pump()
        self.assertEqual(2, len([line for line in log.lines if "406" in line]))
        self.assertEqual(100, len(script.downstream))
        for result in results:
            self.assertNoResult(result)
            result.addErrback(lambda failure: None)
        self.stays(script, joined)
        script.deliver(Ack(from_="tok-A", message_id="d-0"))
        joined.pump()
        self.assertEqual("d-0", self.successResultOf(results[0]).message_id)

    def test_A22_ofAnotherMessage(self) -> None:
        """
        A stanza error about a message that is not waiting, or about nothing
        that can be told, is no harm.
        """
        script = ScriptedConnectionServer()
        joined = self.joined(script)
        result = joined.appServer.send(DownstreamMessage(to="tok-A", message_id="d-1"))
        joined.pump()
        for error in BAD_REQUESTS.values():
            script.write(error.encode())
        script.write(b'<message type="error"/><message type="error"><error code="x"/></message>')
        script.write(b'<message type="error"><gcm xmlns="google:mobile:data">{}</gcm></message>')
        joined.pump()
        self.assertNoResult(result)
        result.addErrback(lambda failure: None)
        self.stays(script, joined)
