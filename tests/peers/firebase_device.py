"""
A device on PyPI's firebase-messaging: registers, connects, and prints what it
gets, a line of JSON each.

    python firebase_device.py HTTP_URL MCS_PORT SENDER_ID
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from firebase_messaging import FcmPushClient, FcmRegisterConfig, fcmpushclient, fcmregister


def say(**what: Any) -> None:
    """
    Print a line.
    """
    print(json.dumps(what), flush=True)


async def main(http: str, port: int, senderID: str) -> None:
    """
    Be a device until the end of the process.
    """
    # The library knows nothing but Google's servers.
    fcmregister.GCM_CHECKIN_URL = f"{http}/checkin"
    fcmregister.GCM_REGISTER_URL = f"{http}/c2dm/register3"
    fcmregister.FCM_INSTALLATION = f"{http}/v1/"
    fcmregister.FCM_REGISTRATION = f"{http}/v1/"
    fcmregister.FCM_SEND_URL = f"{http}/fcm/send/"
    fcmpushclient.MCS_HOST = "localhost"
    fcmpushclient.MCS_PORT = port
    config = FcmRegisterConfig("test-project", f"1:{senderID}:web:0123456789abcdef", "no-api-key", senderID)
    client = FcmPushClient(
        lambda notification, persistent_id, context: say(received=notification, id=persistent_id), config
    )
    say(token=await client.checkin_or_register())
    await client.start()
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
