"""Fixtures of all tests: no setting of the caller or the user reaches the commands that tests start."""

import os
import signal

os.environ["EDGEMOE_CACHE_DIR"] = ""  # nobody notes hot experts in the user's cache
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, which they would inherit
