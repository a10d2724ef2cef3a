"""
What every store has to do for devices, as tests: see L{fcmxmpp.contracts}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyObject

from fcmxmpp.contracts import StoreContract
from fcmxmpp.errors import GroupRefused, TooManyRegistrations, UnknownDevice, UnknownToken
from fcmxmpp.interfaces import IMailboxes, IRegistrations
from fcmxmpp.messages import DownstreamMessage
from fcmxmpp.registrations import (
    APP_LIMIT,
    CONNECTED_LIMIT,
    GROUP_LIMIT,
    REGISTRATION_LIMIT,
    TOPIC_LIMIT,
    Application,
    Identity,
    WebPushKeys,
    looksLikeToken,
)


__all__ = ["MailboxesContract", "RegistrationsContract"]

_KEYS = WebPushKeys(p256dh="BAAA", auth="AAAA")


class _DeviceContract(StoreContract):
    """
    What both contracts have in common.
    """

    async def _registered(
        self, store: Any, senderID: str = "1", category: str = "app", subtype: str = ""
    ) -> tuple[Identity, str]:
        """
        An app on a new device.
        """
        identity = await store.registrations.checkIn(None)
        application = Application(category=category, senderID=senderID, subtype=subtype)
        return identity, await store.registrations.register(identity, application)

    async def _fails(self, result: Deferred[Any], error: type[Exception]) -> str:
        """
        Assert that something fails.

        @return: what the error says.
        """
        try:
            await result
        except error as raised:
            return str(raised)
        raise AssertionError(f"it did not fail with {error.__name__}")


class RegistrationsContract(_DeviceContract):
    """
    What an L{IRegistrations} has to do.
    """

    async def test_registrationsInterface(self) -> None:
        """
        The store has one.
        """
        store = await self._open()
        self.assertTrue(verifyObject(IRegistrations, store.registrations))

    async def test_checkIn(self) -> None:
        """
        A device keeps its identity; a wrong one, and none, get a new one.
        """
        store = await self._open()
        identity = await store.registrations.checkIn(None)
        wrong = identity._replace(security_token=identity.security_token ^ 1)
        store = await self._reopened()
        self.assertEqual(identity, await store.registrations.checkIn(identity))
        others = [await store.registrations.checkIn(each) for each in (wrong, Identity(5, 5), None)]
        self.assertEqual(4, len({identity, *others}))
        for each in (identity, *others):
            self.assertTrue(all(0 < number < 1 << 63 for number in each))
        known = [await store.registrations.isKnown(each) for each in (identity, wrong, Identity(5, 5))]
        self.assertEqual([True, False, False], known)

    async def test_secret(self) -> None:
        """
        The secret stays.
        """
        store = await self._open()
        secret = await store.registrations.secret()
        self.assertEqual(32, len(secret))
        store = await self._reopened()
        self.assertEqual(secret, await store.registrations.secret())

    async def test_register(self) -> None:
        """
        Each app, sender and subtype has its token, and keeps it.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        self.assertTrue(looksLikeToken(token))
        apps = [
            Application(category=category, senderID=senderID, subtype=subtype)
            for category, senderID, subtype in (
                ("app", "1", ""),
                ("b", "1", ""),
                ("app", "2", ""),
                ("app", "1", "s"),
            )
        ]
        tokens = [await store.registrations.register(identity, app) for app in apps]
        self.assertEqual(token, tokens[0])
        self.assertEqual(4, len(set(tokens)))
        store = await self._reopened()
        for app, each in zip(apps, tokens, strict=True):
            registration = await store.registrations.lookUp(each)
            self.assertEqual(
                (each, identity.android_id, app, None),
                (registration.token, registration.android_id, registration.application, registration.keys),
            )
        self.assertEqual(tokens[3], await store.registrations.tokenOf(identity.android_id, "app", "1"))
        self.assertIsNone(await store.registrations.tokenOf(identity.android_id, "app", "3"))
        self.assertIsNone(await store.registrations.lookUp("nobody"))

    async def test_registerRefused(self) -> None:
        """
        Who is not known registers nothing, and nobody more than the limit.
        """
        store = await self._open()
        app = Application(category="app", senderID="1")
        await self._fails(store.registrations.register(Identity(5, 5), app), UnknownDevice)
        await self._fails(store.registrations.unregister(Identity(5, 5), "app", "1", ""), UnknownDevice)
        identity = await store.registrations.checkIn(None)
        apps = [Application(category=f"{number}", senderID="1") for number in range(REGISTRATION_LIMIT)]
        tokens = await gatherResults([store.registrations.register(identity, each) for each in apps])
        await self._fails(store.registrations.register(identity, app), TooManyRegistrations)
        web = store.registrations.registerWebPush(tokens[0], "1", _KEYS)
        await self._fails(web, TooManyRegistrations)

    async def test_unregister(self) -> None:
        """
        What is unregistered is gone, for one sender or for all.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        second = await store.registrations.register(identity, Application(category="app", senderID="2"))
        other = await store.registrations.register(identity, Application(category="b", senderID="1"))
        self.assertEqual(1, await store.registrations.unregister(identity, "app", "1", ""))
        self.assertEqual(0, await store.registrations.unregister(identity, "app", "1", ""))
        self.assertEqual(1, await store.registrations.unregister(identity, "app", None, ""))
        found = [await store.registrations.lookUp(each) for each in (token, second, other)]
        self.assertEqual([True, True, False], [each is None for each in found])
        self.assertTrue(await store.registrations.remove(other))
        self.assertEqual(False, await store.registrations.remove(other))
        # And comes back as another one.
        again = await store.registrations.register(identity, Application(category="app", senderID="1"))
        self.assertTrue(again != token)

    async def test_webPush(self) -> None:
        """
        A subscription stands on another registration, and is gone with that.
        """
        store = await self._open()
        identity, below = await self._registered(store, "VAPID", "browser", "wp:1")
        token = await store.registrations.registerWebPush(below, "1", _KEYS)
        self.assertEqual(token, await store.registrations.registerWebPush(below, "1", _KEYS))
        other = WebPushKeys(p256dh="BBBB", auth="BBBB")
        self.assertEqual(token, await store.registrations.registerWebPush(below, "1", other))
        store = await self._reopened()
        registration = await store.registrations.lookUp(token)
        app = Application(category="browser", senderID="1", subtype="wp:1")
        self.assertEqual(
            (identity.android_id, app, other),
            (registration.android_id, registration.application, registration.keys),
        )
        for wrong in ("nobody", token):
            await self._fails(store.registrations.registerWebPush(wrong, "1", _KEYS), UnknownToken)
        await store.registrations.unregister(identity, "browser", "VAPID", "wp:1")
        self.assertIsNone(await store.registrations.lookUp(token))

    async def test_topics(self) -> None:
        """
        Registrations are subscribed to topics, in letters of either case; each
        error is told for itself.
        """
        store = await self._open()
        _, token = await self._registered(store)
        _, foreign = await self._registered(store, "2")
        gone = "A" * 22 + ":APA91b" + "A" * 134
        results = await store.registrations.subscribe([token, foreign, gone, "x"], "/topics/News", "1")
        self.assertEqual([None, "PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT"], results)
        await store.registrations.subscribe([token], "/topics/news")
        await store.registrations.subscribe([token], "/topics/b")
        store = await self._reopened()
        self.assertEqual(["News", "b"], list(await store.registrations.topicsOf(token)))
        results = await store.registrations.unsubscribe([token, foreign], "/topics/NEWS", "1")
        self.assertEqual([None, "PERMISSION_DENIED"], results)
        self.assertEqual(["b"], list(await store.registrations.topicsOf(token)))
        self.assertEqual({}, await store.registrations.topicsOf("x"))

    async def test_topicLimit(self) -> None:
        """
        There is a limit to the topics of one registration.
        """
        store = await self._open()
        _, token = await self._registered(store)
        results = await gatherResults(
            [store.registrations.subscribe([token], f"/topics/{number}") for number in range(TOPIC_LIMIT + 1)]
        )
        self.assertEqual([[None]] * TOPIC_LIMIT + [["TOO_MANY_TOPICS"]], results)
        # One that it has already is not one more.
        self.assertEqual([None], await store.registrations.subscribe([token], "/topics/5"))

    async def test_groups(self) -> None:
        """
        Groups are made, changed and gone with their last member.
        """
        store = await self._open()
        tokens = [(await self._registered(store))[1] for _ in range(3)]
        registrations = store.registrations
        group = await registrations.createGroup("1", "ann", tokens[:2])
        self.assertEqual(("1", "ann", tokens[:2]), (group.senderID, group.name, group.members))
        key = group.notification_key
        store = await self._reopened()
        registrations = store.registrations
        self.assertEqual(group, await registrations.findGroup("1", "ann"))
        self.assertIsNone(await registrations.findGroup("2", "ann"))
        group = await registrations.addToGroup("1", key, "ann", tokens)
        self.assertEqual(tokens, group.members)
        group = await registrations.removeFromGroup("1", key, "", tokens[:1])
        self.assertEqual(tokens[1:], group.members)
        await registrations.remove(tokens[1])
        self.assertEqual(tokens[2:], (await registrations.findGroup("1", "ann")).members)
        await registrations.remove(tokens[2])
        self.assertIsNone(await registrations.findGroup("1", "ann"))

    async def test_groupsRefused(self) -> None:
        """
        What is wrong with a group is said.
        """
        store = await self._open()
        registrations = store.registrations
        tokens = [(await self._registered(store))[1] for _ in range(GROUP_LIMIT + 1)]
        _, foreign = await self._registered(store, "2")
        group = await registrations.createGroup("1", "ann", tokens[:1])
        key = group.notification_key
        for result, expected in (
            (registrations.createGroup("1", "ann", tokens[:1]), "already exists"),
            (registrations.createGroup("1", "bob", [foreign, "x"]), "no valid registration ids"),
            (registrations.createGroup("1", "bob", tokens), "at most 20"),
            (registrations.addToGroup("1", "x", "ann", tokens), "not found"),
            (registrations.addToGroup("2", key, "ann", tokens), "not found"),
            (registrations.addToGroup("1", key, "bob", tokens), "doesn't match"),
            (registrations.addToGroup("1", key, "ann", tokens), "at most 20"),
            (registrations.removeFromGroup("1", "x", "ann", tokens), "not found"),
        ):
            said = await self._fails(result, GroupRefused)
            self.assertTrue(expected in said, said)
        self.assertIsNone(await registrations.findGroup("1", "bob"))
        self.assertEqual(group, await registrations.findGroup("1", "ann"))


class MailboxesContract(_DeviceContract):
    """
    What an L{IMailboxes} has to do.
    """

    async def test_mailboxesInterface(self) -> None:
        """
        The store has one.
        """
        store = await self._open()
        self.assertTrue(verifyObject(IMailboxes, store.mailboxes))

    async def test_lasts(self) -> None:
        """
        What was posted is there after the store was opened again, in order, as
        it was sent, until it was delivered.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        messages = [
            DownstreamMessage(to=token, message_id=f"m-{number}", data={"n": str(number)}, priority="high")
            for number in range(5)
        ]
        posted = await gatherResults([store.mailboxes.post("1", message) for message in messages])
        mails = [mail for each in posted for mail in each.mails]
        self.assertEqual(messages, [mail.message for mail in mails])
        store = await self._reopened()
        self.assertEqual(mails, await store.mailboxes.load(identity.android_id, 0, 10))
        self.assertEqual(mails[2:4], await store.mailboxes.load(identity.android_id, mails[1].number, 2))
        self.assertEqual([], await store.mailboxes.load(identity.android_id + 1, 0, 10))
        await store.mailboxes.delivered([mails[0].number, mails[2].number, 999])
        self.assertEqual(3, await store.mailboxes.waiting(identity.android_id))
        names = [mails[1].persistent_id, mails[0].persistent_id, "x"]
        self.assertEqual(mails[1:2], await store.mailboxes.confirm(identity.android_id, names))
        self.assertEqual([], await store.mailboxes.confirm(identity.android_id + 1, [mails[3].persistent_id]))
        store = await self._reopened()
        self.assertEqual(mails[3:], await store.mailboxes.load(identity.android_id, 0, 10))

    async def test_names(self) -> None:
        """
        What devices know mails by is ASCII, short, and never twice the same.
        """
        store = await self._open()
        _, token = await self._registered(store)
        names = set()
        for number in range(50):
            posted = await store.mailboxes.post("1", DownstreamMessage(to=token, message_id=f"m-{number}"))
            (mail,) = posted.mails
            names.add(mail.persistent_id)
            self.assertTrue(mail.persistent_id.isascii() and len(mail.persistent_id) < 128)
            self.assertTrue("|" not in mail.persistent_id)
            await store.mailboxes.delivered([mail.number])
        self.assertEqual(50, len(names))

    async def test_refused(self) -> None:
        """
        What cannot be delivered is refused, dry runs included.
        """
        store = await self._open()
        _, token = await self._registered(store)
        _, gone = await self._registered(store)
        await store.registrations.remove(gone)
        for senderID, to, expected in (
            ("1", "x", "BAD_REGISTRATION"),
            ("1", gone, "DEVICE_UNREGISTERED"),
            ("2", token, "SENDER_ID_MISMATCH"),
            ("1", token, None),
        ):
            for dry in (True, False):
                posted = await store.mailboxes.post(
                    senderID, DownstreamMessage(to=to, message_id="m", dry_run=dry)
                )
                self.assertEqual(expected, posted.error)
                self.assertEqual(0 if dry or expected else 1, len(posted.mails))

    async def test_twice(self) -> None:
        """
        The same message once more, while the first waits, is one mail.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        message = DownstreamMessage(to=token, message_id="m-1")
        first, second = [await store.mailboxes.post("1", message) for _ in range(2)]
        self.assertEqual(([], None), (second.mails, second.error))
        await store.mailboxes.delivered([first.mails[0].number])
        self.assertEqual(1, len((await store.mailboxes.post("1", message)).mails))
        self.assertEqual(1, await store.mailboxes.waiting(identity.android_id))

    async def test_collapse(self) -> None:
        """
        A message takes the place of one with its collapse key, and a fifth key
        that of the oldest.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        for number, key in enumerate("abacade"):
            await store.mailboxes.post(
                "1", DownstreamMessage(to=token, message_id=f"m-{number}", collapse_key=key)
            )
        mails = await store.mailboxes.load(identity.android_id, 0, 10)
        self.assertEqual(list("cade"), [mail.message.collapse_key for mail in mails])

    async def test_tooMany(self) -> None:
        """
        If too many wait for an app, all are dropped, and it is told how many
        those were; other apps keep theirs.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        other = await store.registrations.register(identity, Application(category="b", senderID="1"))
        await store.mailboxes.post("1", DownstreamMessage(to=other, message_id="b"))
        for number in range(APP_LIMIT + 1):
            await store.mailboxes.post("1", DownstreamMessage(to=token, message_id=f"m-{number}"))
        mails = await store.mailboxes.load(identity.android_id, 0, 200)
        self.assertEqual("b", mails[0].message.message_id)
        self.assertEqual(
            {"message_type": "deleted_messages", "total_deleted": "100"}, dict(mails[1].message.data)
        )
        self.assertEqual(["m-100"], [mail.message.message_id for mail in mails[2:3]])
        for number in range(200, 300):
            await store.mailboxes.post("1", DownstreamMessage(to=token, message_id=f"m-{number}"))
        mails = await store.mailboxes.load(identity.android_id, 0, 200)
        deleted = [mail for mail in mails if "total_deleted" in mail.message.data]
        self.assertEqual(["200"], [mail.message.data["total_deleted"] for mail in deleted])

    async def test_connected(self) -> None:
        """
        If the device is connected more may wait, and then the app server has to
        wait, too.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        store.mailboxes.connected.add(identity.android_id)
        posted = await gatherResults(
            [
                store.mailboxes.post("1", DownstreamMessage(to=token, message_id=f"m-{number}"))
                for number in range(CONNECTED_LIMIT + 1)
            ]
        )
        self.assertEqual(CONNECTED_LIMIT, sum(len(each.mails) for each in posted))
        self.assertEqual("DEVICE_MESSAGE_RATE_EXCEEDED", posted[-1].error)

    async def test_nowOrNever(self) -> None:
        """
        A C{time_to_live} of 0 is never kept, and on its way only if the device
        is connected.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        message = DownstreamMessage(to=token, message_id="m", time_to_live=0)
        self.assertEqual([], (await store.mailboxes.post("1", message)).mails)
        store.mailboxes.connected.add(identity.android_id)
        (mail,) = (await store.mailboxes.post("1", message)).mails
        self.assertEqual(0, mail.number)
        self.assertEqual(0, await store.mailboxes.waiting(identity.android_id))

    async def test_nowOrNeverToTopic(self) -> None:
        """
        The same holds for topics, and for groups: it goes to those that are
        connected, and two apps of one device know it by different names.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        _, absent = await self._registered(store)
        other = await store.registrations.register(identity, Application(category="b", senderID="1"))
        tokens = [token, absent, other]
        await store.registrations.subscribe(tokens, "/topics/x")
        key = (await store.registrations.createGroup("1", "ann", tokens)).notification_key
        store.mailboxes.connected.add(identity.android_id)
        message = DownstreamMessage(to="/topics/x", message_id="m", time_to_live=0)
        await store.mailboxes.post("1", message)
        spread, _ = await store.mailboxes.spread(10)
        message = DownstreamMessage(to=key, message_id="m", time_to_live=0)
        posted = await store.mailboxes.post("1", message)
        for mails in (spread, posted.mails):
            self.assertEqual([token, other], [mail.registration.token for mail in mails])
            self.assertEqual([0, 0], [mail.number for mail in mails])
        self.assertEqual(4, len({mail.persistent_id for mail in [*spread, *posted.mails]}))
        self.assertEqual(0, await store.mailboxes.waiting(identity.android_id))

    async def test_group(self) -> None:
        """
        A message to a group goes to each member, and it is told to how many.
        """
        store = await self._open()
        devices = [await self._registered(store) for _ in range(3)]
        tokens = [token for _, token in devices]
        key = (await store.registrations.createGroup("1", "ann", tokens)).notification_key
        posted = await store.mailboxes.post("1", DownstreamMessage(to=key, message_id="m"))
        self.assertEqual((3, 3, []), (posted.success, len(posted.mails), posted.failed))
        posted = await store.mailboxes.post("2", DownstreamMessage(to=key, message_id="m"))
        self.assertEqual("SENDER_ID_MISMATCH", posted.error)

    async def test_topic(self) -> None:
        """
        A message to a topic goes to its subscribers among this sender's, step
        by step, be the store opened again in between.
        """
        store = await self._open()
        devices = [await self._registered(store) for _ in range(7)]
        _, foreign = await self._registered(store, "2")
        tokens = [token for _, token in devices]
        await store.registrations.subscribe([*tokens[:5], foreign], "/topics/News")
        message = DownstreamMessage(to="/topics/news", message_id="m", data={"a": "b"})
        posted = await store.mailboxes.post("1", message)
        self.assertEqual(([], None), (posted.mails, posted.error))
        await store.mailboxes.post("1", DownstreamMessage(to="/topics/news", message_id="d", dry_run=True))
        got = []
        isMore = True
        while isMore:
            mails, isMore = await store.mailboxes.spread(2)
            got += mails
            store = await self._reopened()
        self.assertEqual(tokens[:5], [mail.registration.token for mail in got])
        self.assertEqual({"/topics/news"}, {mail.topic for mail in got})
        self.assertEqual(got[:1], await store.mailboxes.load(devices[0][0].android_id, 0, 9))
        self.assertEqual(([], False), await store.mailboxes.spread(2))

    async def test_condition(self) -> None:
        """
        A message with a condition goes to those for whom it holds.
        """
        store = await self._open()
        tokens = [(await self._registered(store))[1] for _ in range(4)]
        await store.registrations.subscribe([tokens[0], tokens[1]], "/topics/a")
        await store.registrations.subscribe([tokens[1], tokens[2]], "/topics/B")
        await store.mailboxes.post(
            "1", DownstreamMessage(condition="'a' in topics || 'b' in topics", message_id="steps")
        )
        # Who is in both topics gets it once, however small the steps.
        steps = [await store.mailboxes.spread(1) for _ in range(4)]
        self.assertEqual(
            [[token] for token in tokens[:3]] + [[]],
            [[mail.registration.token for mail in mails] for mails, _ in steps],
        )
        self.assertEqual([True, True, True, False], [isMore for _, isMore in steps])
        for condition, expected in (
            ("'a' in topics && 'b' in topics", tokens[1:2]),
            ("'a' in topics || 'b' in topics", tokens[:3]),
            ("'a' in topics && !('b' in topics)", tokens[:1]),
        ):
            await store.mailboxes.post("1", DownstreamMessage(condition=condition, message_id=condition))
            mails, isMore = await store.mailboxes.spread(100)
            self.assertEqual((expected, False), ([mail.registration.token for mail in mails], isMore))

    async def test_notify(self) -> None:
        """
        What the connection server says to an app waits as well; for an app that
        is not registered there is nothing.
        """
        store = await self._open()
        identity, _ = await self._registered(store)
        data = {"message_type": "send_error", "error": "x"}
        mail = await store.mailboxes.notify(identity.android_id, "app", "1", "u-1", data, 60)
        self.assertEqual(("u-1", data), (mail.persistent_id, dict(mail.message.data)))
        store = await self._reopened()
        self.assertEqual([mail], await store.mailboxes.load(identity.android_id, 0, 9))
        self.assertIsNone(await store.mailboxes.notify(identity.android_id, "b", "1", "u-1", data, 60))

    async def test_unregistered(self) -> None:
        """
        What waits for an app is gone with it.
        """
        store = await self._open()
        identity, token = await self._registered(store)
        other = await store.registrations.register(identity, Application(category="app", senderID="2"))
        web = await store.registrations.registerWebPush(token, "1", _KEYS)
        for senderID, to in (("1", token), ("2", other), ("1", web)):
            await store.mailboxes.post(senderID, DownstreamMessage(to=to, message_id=f"m-{senderID}-{to}"))
        self.assertEqual(3, await store.mailboxes.waiting(identity.android_id))
        await store.registrations.remove(token)
        mails = await store.mailboxes.load(identity.android_id, 0, 9)
        self.assertEqual([other], [mail.registration.token for mail in mails])
        self.assertEqual(1, await store.mailboxes.waiting(identity.android_id))
