"""Values that outlive the call that makes them."""

import os
import threading


def lock():
    """A lock that a forked child finds free: fork waits until no thread holds it."""
    made = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=made.acquire, after_in_parent=made.release, after_in_child=made.release)
    return made
