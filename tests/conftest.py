"""What all tests share: none of them notes hot experts in the user's cache."""

import os

os.environ["EDGEMOE_CACHE_DIR"] = ""
