"""What every test may take for granted."""

import os
import signal

from hypothesis import HealthCheck, settings

# A shell that starts its job in the background has it ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, as long as it takes: what fails is the change, not a new example or a busy machine. Other
# examples are tried where SPANFLOW_PROPERTY_EXAMPLES says how many (tests/properties/strategies.py).
settings.register_profile(
    "spanflow",
    derandomize=not os.environ.get("SPANFLOW_PROPERTY_EXAMPLES"),
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("spanflow")
