"""
The tests.

How Hypothesis searches is set here, once: in CI it takes the same examples in
every run and leaves nothing on disk, so that no check fails by chance.

What fails is made smaller, and is not explained: for that Hypothesis runs each
variant under a tracer, which takes minutes where an example takes long.
"""

import os

from hypothesis import HealthCheck, Phase, settings


# How long examples take to make depends on what else the machine does.
settings.register_profile(
    "fcmxmpp",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[phase for phase in Phase if phase is not Phase.explain],
)
settings.register_profile("fcmxmpp-ci", settings.get_profile("fcmxmpp"), derandomize=True, database=None)
settings.load_profile("fcmxmpp-ci" if os.environ.get("CI") else "fcmxmpp")
