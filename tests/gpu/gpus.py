"""The GPUs of this host, for tests that need some."""
import os
import subprocess

import pytest


def gpus():
    """As many as mgm would see."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len([name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name])
    try:
        done = subprocess.run(["nvidia-smi", "-L"], text=True, capture_output=True)
    except FileNotFoundError:
        return 0
    return done.stdout.count("GPU ") if done.returncode == 0 else 0


def need(count):
    """Skips the test where there are fewer, loudly; with MGM_TEST_REQUIRE=gpu that is a failure."""
    if gpus() >= count:
        return
    if "gpu" in os.environ.get("MGM_TEST_REQUIRE", ""):
        pytest.fail(f"{count} GPUs required, {gpus()} found")
    pytest.skip(f"NOT RUN: needs {count} GPUs, this host has {gpus()}")
