"""
The Firebase Cloud Messaging XMPP app server for Twisted, and a compatible
connection server.

The modules are the public namespaces; nothing is re-exported here, so that
importing a part of the core imports no Twisted.
"""

__version__ = "26.11.0.dev0"
