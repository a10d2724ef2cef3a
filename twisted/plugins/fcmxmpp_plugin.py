"""
C{twistd fcm-xmpp}.

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
