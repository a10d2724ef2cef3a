"""
The application of C{upstream.py} for what C{twistd fcm-xmpp} has no option for:
run by it, as C{twistd -n -y upstream_app.py}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from io import FileIO
from pathlib import Path

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString

from fcmxmpp.appserver import AppServer
from fcmxmpp.connection import Credentials
from fcmxmpp.delivery import Policy
from fcmxmpp.handlers import JSONLines
from fcmxmpp.services import InOrder
from fcmxmpp.store.groupcommit import MOST
from fcmxmpp.store.sqlite import SQLiteStore


settings = json.loads(os.environ["UPSTREAM"])
if settings["switch_interval"]:
    sys.setswitchinterval(settings["switch_interval"])
application = Application("fcmxmpp upstream")
assert sys.__stdout__ is not None
store = SQLiteStore(settings["store"], reactor, most=1 if settings["commit_per_message"] else MOST)
appServer = AppServer(
    clientFromString(reactor, settings["endpoint"]),
    Credentials(settings["sender_id"], Path(settings["server_key_file"]).read_text().strip()),
    JSONLines(FileIO(sys.__stdout__.fileno(), "wb", closefd=False)),
    clock=reactor,
    policy=Policy(ack=settings["ack"] or "stored"),
    store=store,
)
both = InOrder()
store.setServiceParent(both)
appServer.setServiceParent(both)
both.setServiceParent(application)
# Twisted would end the process by the signal that it got.
reactor.callWhenRunning(signal.signal, signal.SIGTERM, lambda _, __: reactor.callFromThread(reactor.stop))
