# A connection server with services of your own, as a Twisted application:
#
#     twistd -n -y tap/fcm-connection-server.tac
#
# FCM_CONFIG names its configuration, such as fcm-connection-server.toml; where
# that is not set, it makes what it needs in the directory "first-try", so that
# this can be tried as it is. Copy it, and put your services in place of Hello.

import os

from twisted.application.service import Application, Service
from twisted.logger import Logger

from fcmxmpp.servertap import Options, makeService


class Hello(Service):
    """
    Says that it is there. A real service would do something with it.
    """

    log = Logger()

    def startService(self):
        super().startService()
        self.log.info("the connection server has started")


application = Application("fcm-connection-server")

options = Options()
config = os.environ.get("FCM_CONFIG")
options.parseOptions(["--config", config] if config else ["--self-signed", "first-try"])

# It ends the process in order at SIGTERM, with the exit status 0, and reads its
# senders again at SIGHUP.
server = makeService(options)
server.setServiceParent(application)

Hello().setServiceParent(application)
