"""
A handler for C{twistd fcm-xmpp} that prints what it gets, and answers what asks
for an answer.
"""

from __future__ import annotations

import json
import os

from zope.interface import implementer

from fcmxmpp.interfaces import IDownstreamSender, IReceiptHandler, IUpstreamHandler
from fcmxmpp.messages import DownstreamMessage, Receipt, UpstreamMessage


def say(**what: object) -> None:
    """
    Print a line, past the log that has taken standard output.
    """
    os.write(1, json.dumps(what).encode() + b"\n")


@implementer(IUpstreamHandler, IReceiptHandler)
class Printing:
    """
    The handler.
    """

    def __init__(self, sender: IDownstreamSender) -> None:
        self._sender = sender

    async def messageReceived(self, message: UpstreamMessage) -> None:
        """
        Print a message, and send an answer if it wants one.
        """
        say(
            message_id=message.message_id,
            **{"from": message.from_},
            category=message.category,
            data=message.data,
            time_to_live=message.time_to_live,
        )
        if "question" in message.data:
            answer = {"answer": message.data["question"]}
            await self._sender.send(
                DownstreamMessage(to=message.from_, message_id=f"to-{message.message_id}", data=answer)
            )

    def receiptReceived(self, receipt: Receipt) -> None:
        """
        Print a receipt.
        """
        say(receipt=receipt.data.original_message_id, device=receipt.data.device_registration_id)
