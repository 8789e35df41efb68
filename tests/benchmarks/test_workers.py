"""Processes beside the one that was called: none outlives it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the same on any backend")

KILLED = """
import os, signal
from vae_fast.benchmarks import workers
if __name__ == "__main__":
    pool = workers.pool(1)
    print(pool.submit(os.getpid).result() != os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_the_one_that_is_killed():
    """It writes to the same pipe, which stays open until it ends."""
    result = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (-9, "True\n")
