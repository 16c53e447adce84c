"""What all tests share: nothing of the caller's or the user's own reaches the commands that they start."""

import os
import signal

os.environ["EDGEMOE_CACHE_DIR"] = ""  # nobody notes hot experts in the user's cache
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, which they would inherit
