"""
The options of C{twistd fcm-connection-server}.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from msgspec import Struct
from twisted.internet.endpoints import quoteStringArgument
from twisted.python import usage

from fcmxmpp.certificates import LocalCertificates
from fcmxmpp.files import replaceFile, why
from fcmxmpp.sendapi import isLocal
from fcmxmpp.server.senders import hashKey
from fcmxmpp.settings import SettingsOptions


__all__ = ["ServerOptions", "ServerSettings", "Trial"]

#: Whom --self-signed makes a first sender.
_SENDER = "123456789"
_DEFAULTS = {
    "xmpp": "tls:5235:interface=127.0.0.1",
    "devices": "tls:5228:interface=127.0.0.1",
    "http": "tls:8443:interface=127.0.0.1",
}
_NOTHING = (
    "nothing to listen on: name at least --xmpp (such as ssl:5235:privateKey=key.pem:certKey=cert.pem), and "
    "--devices and --http for devices; for a first try, --self-signed DIR alone does everything"
)


class Trial(Struct, frozen=True):
    """
    What C{--self-signed} has made.

    @ivar isNew: whether nobody can trust the certificates yet, because they are
        by a new authority.
    @ivar senderID: the first sender, if it is of our making.
    @ivar keyFile: where its key is.
    """

    certificates: LocalCertificates
    isNew: bool
    senderID: str | None
    keyFile: Path


class ServerSettings(Struct, frozen=True, kw_only=True):
    """
    What to run, complete and checked.

    @ivar xmpp: the Twisted server endpoint description for app servers; None
        for no such port.
    @ivar devices: the one for devices.
    @ivar http: the one for what devices and app servers ask over HTTP.
    @ivar senders: the senders file.
    @ivar store: the file of the store, or None for none.
    @ivar isOpen: whether C{http} is unencrypted, and other machines can reach it.
    @ivar grace: seconds that app servers get at the stop.
    @ivar trial: what was made for a first try.
    @ivar daemon: whether twistd puts the process into the background.
    @ivar announce: whether to print what the log has to say at the start.
    """

    xmpp: str | None
    devices: str | None
    http: str | None
    senders: str
    store: str | None
    receipts: bool
    isOpen: bool
    grace: float
    trial: Trial | None
    daemon: bool
    announce: bool


class ServerOptions(SettingsOptions):
    """
    The options of C{twistd fcm-connection-server}.
    """

    program = "fcm-connection-server"
    synopsis = "[options]"
    longdesc = (
        "Runs a connection server: takes messages from devices, gives them to app servers "
        "(twistd fcm-xmpp, or any other that speaks the protocol), and the other way round."
    )

    optFlags = [["receipts", None, "Tell app servers that ask for it when a device has got a message"]]

    optParameters = [
        [
            "xmpp",
            None,
            None,
            "Where app servers connect: a Twisted server endpoint, such as "
            "ssl:5235:privateKey=key.pem:certKey=cert.pem; with --self-signed the port is enough, or "
            "tls:5235:interface=127.0.0.1",
        ],
        ["devices", None, None, "Where devices connect (MCS; theirs is port 5228): an endpoint likewise"],
        [
            "http",
            None,
            None,
            "Where devices check in and register, and app servers manage topics and device groups: likewise, "
            "or tcp:8080:interface=127.0.0.1 behind a proxy that does TLS",
        ],
        [
            "senders",
            None,
            None,
            "File with the sender IDs and their keys, made by fcmxmpp senders add; it is read again at "
            "SIGHUP (or FCM_SENDERS)",
        ],
        [
            "store",
            None,
            None,
            "What outlasts the process: sqlite:PATH, a file on a local disk that is made if need be (or "
            "FCM_STORE)  [default: nothing does]",
        ],
        [
            "self-signed",
            None,
            None,
            "Directory for a local authority, certificates and, if there is no --senders, a file with the "
            f"first sender {_SENDER}; all are made if need be. Without --xmpp, --devices and --http it is "
            "ports 5235, 5228 and 8443, for programs on this machine",
        ],
        ["grace", None, None, "Seconds that app servers get at the stop to send their ACKs  [default: 10]"],
        ["config", None, None, "TOML file with these options by the same names"],
    ]

    compData = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "senders": usage.CompleteFiles("*.toml"),
            "self-signed": usage.CompleteDirs(),
        }
    )

    settings: ServerSettings

    def postOptions(self) -> None:
        """
        Complete and check what was given.
        """
        self._file = self._readConfig(self["config"])
        directory = self._value("self-signed")
        given = {name: self._value(name) for name in _DEFAULTS}
        if directory is not None and not any(given.values()):
            given = dict(_DEFAULTS)
        if not (given["xmpp"] or given["devices"]):
            raise usage.UsageError(_NOTHING)
        senders = self._value("senders", "FCM_SENDERS")
        if senders is None and directory is None:
            raise usage.UsageError(
                "who may log in? Give --senders FILE, made by: fcmxmpp senders add SENDER_ID --senders FILE"
            )
        grace = self._number("grace", 10.0)
        if grace < 0:
            raise usage.UsageError("--grace has to be 0 or more seconds")
        store = self._store()
        trial = None if directory is None else self._makeTrial(directory, senders is None)
        if senders is None:
            assert trial is not None
            senders = str(trial.certificates.directory / "senders.toml")
        endpoints = {
            name: None if text is None else self._endpoint(name, text, trial) for name, text in given.items()
        }
        self.settings = ServerSettings(
            xmpp=endpoints["xmpp"],
            devices=endpoints["devices"],
            http=endpoints["http"],
            senders=os.path.abspath(senders),
            store=store,
            receipts=self._flag("receipts"),
            isOpen=endpoints["http"] is not None and _isOpen(endpoints["http"]),
            grace=grace,
            trial=trial,
            daemon=self._isDaemon(),
            announce=self._chooseLog("stderrLog"),
        )

    def _makeTrial(self, directory: str, withSender: bool) -> Trial:
        """
        Make what C{--self-signed} asks for.
        """
        certificates = LocalCertificates(directory)
        keyFile = certificates.directory / "server-key.txt"
        senders = certificates.directory / "senders.toml"
        try:
            isNew = certificates.prepare()
            if withSender and not senders.exists():
                key = secrets.token_urlsafe(24)
                hashed = hashKey(key, secrets.token_bytes)
                replaceFile(keyFile, f"{key}\n".encode())
                replaceFile(senders, f'[senders.{_SENDER}]\nkeys = ["{hashed}"]\n'.encode())
        except (OSError, ValueError) as error:
            raise usage.UsageError(f"--self-signed {directory}: {why(error)}") from None
        return Trial(certificates, isNew, _SENDER if withSender else None, keyFile)

    def _endpoint(self, name: str, description: str, trial: Trial | None) -> str:
        """
        The description of an endpoint for Twisted.
        """
        kind, _, rest = description.partition(":")
        if kind.isdigit() and not rest:
            kind, rest = "tls", kind
        if kind == "tls" and "privateKey=" in rest:
            raise usage.UsageError(f"--{name}: with a certificate of your own it is ssl:{rest}")
        if kind == "tls" and trial is None:
            raise usage.UsageError(
                f"--{name} {description} needs --self-signed; with a certificate of your own say "
                "ssl:PORT:privateKey=key.pem:certKey=cert.pem"
            )
        if trial is not None and kind in ("tls", "ssl") and "privateKey=" not in rest:
            key = quoteStringArgument(str(trial.certificates.key))
            certificate = quoteStringArgument(str(trial.certificates.certificate))
            return f"ssl:{rest}:privateKey={key}:certKey={certificate}"
        if name != "http" and _isOpen(description):
            what = "server keys" if name == "xmpp" else "messages and the secrets of devices"
            raise usage.UsageError(
                f"--{name} {description} would send {what} unencrypted over the network: use ssl:PORT:"
                "privateKey=key.pem:certKey=cert.pem, or interface=127.0.0.1 behind a proxy that does TLS"
            )
        return description


def _isOpen(description: str) -> bool:
    """
    Whether other machines can connect to an endpoint, and send what everybody on
    the way can read, as far as that can be told.
    """
    # Only what a proxy says of the client comes before the rest.
    description = description.removeprefix("haproxy:")
    plain = description.partition(":")[0] in ("tcp", "systemd", "stdio")
    return plain and not isLocal(description)
