# An app server with a handler of your own, as a Twisted application:
#
#     twistd -n -y tap/fcm-xmpp.tac
#
# It logs in to the connection server named by FCM_ENDPOINT (such as
# tls:push.example.org:5235), with FCM_SENDER_ID and FCM_SERVER_KEY_FILE; where
# FCM_ENDPOINT is not set, to one that it runs itself, so that this can be
# tried as it is.  With FCM_STORE (such as sqlite:/var/lib/fcm-xmpp/store.db)
# nothing is lost.  Copy it, and put your handler in place of Journal.

import os
import sys
from pathlib import Path
from uuid import uuid4

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.logger import Logger
from zope.interface import implementer

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import Policy
from fcmxmpp.embedded import DeviceThatTalks, EmbeddedConnectionServer
from fcmxmpp.interfaces import IUpstreamHandler
from fcmxmpp.services import InOrder
from fcmxmpp.store.database import parseStore
from fcmxmpp.store.sqlite import SQLiteStore


@implementer(IUpstreamHandler)
class Journal:
    """
    Notes that a message came.  A real handler would do something with it, and
    return a Deferred (or be "async def") if that takes time.
    """

    log = Logger()

    def messageReceived(self, message):
        # Identifiers only: what devices send does not belong in a log.
        self.log.info("handled {message_id}", message_id=message.message_id)


application = Application("fcm-xmpp")

# Not the application itself, which begins to stop everything at once: the app
# server needs the others until its last message is recorded and acknowledged.
services = InOrder()
services.setServiceParent(application)

store = None
if "FCM_STORE" in os.environ:
    try:
        path = parseStore(os.environ["FCM_STORE"])
    except ValueError as error:
        sys.exit(f"FCM_STORE: {error}")
    store = SQLiteStore(path, reactor)
    store.setServiceParent(services)

if "FCM_ENDPOINT" in os.environ:
    description = os.environ["FCM_ENDPOINT"]
    if not description.startswith("tls:"):
        sys.exit("FCM_ENDPOINT has to begin with tls:, because the server key goes over it")
    for name in ("FCM_SENDER_ID", "FCM_SERVER_KEY_FILE"):
        if name not in os.environ:
            sys.exit(f"FCM_ENDPOINT is set, and {name} is not")
    endpoint = clientFromString(reactor, description)
    server = ":".join(description.split(":")[1:3])
    key = Path(os.environ["FCM_SERVER_KEY_FILE"]).read_text().partition("\n")[0].strip()
    if not key:
        sys.exit("the first line of FCM_SERVER_KEY_FILE is empty")
    credentials = Credentials(os.environ["FCM_SENDER_ID"], key)
else:
    server = "the embedded server"
    # What its device has sent is in the same store, until it is acknowledged.
    endpoint = EmbeddedConnectionServer(reactor, "123456789", store)
    endpoint.setServiceParent(services)
    DeviceThatTalks(endpoint, reactor, lambda: str(uuid4())).setServiceParent(services)
    credentials = endpoint.credentials

AppServer(
    endpoint,
    credentials,
    Journal(),
    clock=reactor,
    policy=Policy(handlerTimeout=30, handlerTries=5),
    store=store,
    server=server,  # what the log calls it
).setServiceParent(services)
