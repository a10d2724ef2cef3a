"""
The tests.

How Hypothesis searches is set here, once: in CI it takes the same examples in
every run and leaves nothing on disk, so that no check fails by chance.
"""

import os

from hypothesis import settings


settings.register_profile("fcmxmpp", deadline=None)
settings.register_profile("fcmxmpp-ci", deadline=None, derandomize=True, database=None)
settings.load_profile("fcmxmpp-ci" if os.environ.get("CI") else "fcmxmpp")
