"""
The connection server: Google's side of the protocol.
"""
