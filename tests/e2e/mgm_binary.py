"""The built binary, for tests that drive it as a user does."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MGM_BUILD_DIR", ROOT / "build" / "release"))
MGM = BUILD / "bin" / "mgm"
FULL = os.environ.get("MGM_TEST_FULL", "0") == "1"


def required(what):
    """Whether MGM_TEST_REQUIRE ("gpu,mpi") names it: a test that needs it then fails where it is missing."""
    return what in os.environ.get("MGM_TEST_REQUIRE", "").split(",")


def mgm(*args, check=True, code=0, timeout=300, **kwargs):
    """Runs mgm in the repository root; returns the finished process."""
    done = subprocess.run([str(MGM), *map(str, args)], cwd=kwargs.pop("cwd", ROOT), text=True,
                          capture_output=True, timeout=timeout, **kwargs)
    if check:
        assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done


def sets(values):
    """{"a.b": 1} as --set arguments."""
    out = []
    for key, value in values.items():
        out += ["--set", f"{key}={json.dumps(value) if not isinstance(value, (str, pathlib.Path)) else value}"]
    return out


def changed(model, folder, **fields):
    """A copy of a model directory with other fields in its config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(fields)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def metrics(run_dir):
    """The lines of metrics.jsonl, in order."""
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def anonymous_memory(process):
    """Bytes that a process holds now beside mapped files; 0 when it has ended."""
    try:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.M)
    return 1024 * int(found[1]) if found else 0


def peak_anonymous(*args):
    """Runs mgm and returns the most anonymous memory it had, in bytes, sampled."""
    process = subprocess.Popen([str(MGM), *map(str, args)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process))
        time.sleep(0.001)
    error = process.stderr.read()
    assert process.returncode == 0, error
    return peak
