"""
The tests.

How Hypothesis searches is set here, once: in CI it takes the same examples in
every run and leaves nothing on disk, so that no check fails by chance.
"""

import os

from hypothesis import HealthCheck, settings


# How long examples take to make depends on what else the machine does.
settings.register_profile("fcmxmpp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fcmxmpp-ci", settings.get_profile("fcmxmpp"), derandomize=True, database=None)
settings.load_profile("fcmxmpp-ci" if os.environ.get("CI") else "fcmxmpp")
