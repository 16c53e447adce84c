"""What the system says of this process."""

import subprocess
import sys


def test_peak_memory_is_of_this_process_and_not_of_the_one_that_began_it() -> None:
    parent = """
import subprocess, sys
held = bytearray(400 << 20)
program = "from edgemoe.process import peak_rss_bytes; print(peak_rss_bytes())"
print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 300 << 20
