"""
MCS, the protocol between devices and a connection server: its messages, its
frames and its two conversations, without any I/O.
"""
