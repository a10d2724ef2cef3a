"""
C{twistd fcm-xmpp} and C{twistd fcm-connection-server}.

Imports nothing of ours: C{twistd} loads every plugin, whichever one it is to
run.  There is no C{__init__.py} next to this file, nor may there be one.
"""

from twisted.application.service import ServiceMaker


fcmXMPP = ServiceMaker(
    "FCM XMPP app server",
    "fcmxmpp.tap",
    "Firebase Cloud Messaging XMPP app server",
    "fcm-xmpp",
)

fcmConnectionServer = ServiceMaker(
    "FCM connection server",
    "fcmxmpp.servertap",
    "Connection server for devices and FCM XMPP app servers",
    "fcm-connection-server",
)
