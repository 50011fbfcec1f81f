"""The limit on processes that tests start."""

import subprocess
import sys
import time

from tests.processes import started


def test_a_process_that_hangs_is_killed_and_reading_from_it_ends():
    begun = time.monotonic()
    with started(
        [sys.executable, "-c", "input()"], seconds=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.read() == b""
    assert process.returncode < 0
    assert time.monotonic() - begun < 60
