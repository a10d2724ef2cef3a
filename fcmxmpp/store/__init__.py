"""
What outlasts the process: see L{fcmxmpp.interfaces.IStore}.
"""
