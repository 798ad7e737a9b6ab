"""Three hosts (network namespaces around a router) with a rank each: a link that is cut, slow or lossy during a step ends
the job on every rank within the limit, with a name; the same command line goes on when the link is back.

Needs root, ip, tc and iptables; runs with MGM_TEST_FULL=1."""
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import FULL, MGM, ROOT, metrics, mgm, sets  # noqa: E402

STEPS = 120
STEP_LIMIT = 8
pytestmark = pytest.mark.skipif(not FULL, reason="NOT RUN: needs MGM_TEST_FULL=1")


def run(*words, check=True):
    return subprocess.run([str(w) for w in words], check=check, text=True, capture_output=True)


class Hosts:
    """hN has address 10.77.N.1; a router in a namespace of its own has a wire to each."""

    def __init__(self, count):
        self.tag = f"mgm{os.getpid()}"
        self.names = [f"{self.tag}h{i}" for i in range(count)]
        self.router = f"{self.tag}rt"
        run("ip", "netns", "add", self.router)
        run("ip", "netns", "exec", self.router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for i, name in enumerate(self.names):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"port{i}", "netns",
                self.router)
            run("ip", "-n", self.router, "addr", "add", f"10.77.{i}.254/24", "dev", f"port{i}")
            run("ip", "-n", self.router, "link", "set", f"port{i}", "up")
            run("ip", "-n", name, "addr", "add", f"10.77.{i}.1/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            self.route(i)

    def route(self, host):
        """A link that goes down takes its route away."""
        run("ip", "-n", self.names[host], "route", "replace", "default", "via", f"10.77.{host}.254")

    def remove(self):
        for name in [*self.names, self.router]:
            run("ip", "netns", "del", name, check=False)

    def inside(self, host, *words):
        return ["ip", "netns", "exec", self.names[host], *map(str, words)]


@pytest.fixture(scope="module")
def hosts():
    for tool in ("ip", "tc", "iptables"):
        assert shutil.which(tool), f"{tool} is missing: apt-get install iproute2 iptables"
    made = Hosts(3)
    yield made
    made.remove()


def start(hosts, folder):
    options = {"run.dir": str(folder), "train.max_steps": STEPS, "train.global_batch": 12, "train.micro_batch": 2,
               "train.threads": 1, "log.every_steps": 1, "checkpoint.every_steps": 2, "checkpoint.every_minutes": 0,
               "dist.mode": "zero2", "data.workers": 1, "dist.timeout_s.step": STEP_LIMIT, "dist.timeout_s.save": 60}
    port = random.randrange(20000, 32000)  # below those of connections
    ranks = []
    for rank in range(3):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
               "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(
            hosts.inside(rank, MGM, "train", "configs/tiny/stage1.yaml", *sets(options)), cwd=ROOT, env=env,
            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    return ranks


def wait_for_steps(folder, ranks, steps):
    until = time.time() + 120
    while time.time() < until:
        log = folder / "logs/rank_0.log"
        if log.exists() and len(re.findall(r" step \d+/", log.read_text())) >= steps:
            return
        assert all(rank.poll() is None for rank in ranks), "\n".join(rank.communicate()[1] for rank in ranks)
        time.sleep(0.05)
    pytest.fail("the run did not get going")


def trouble(hosts, kind):
    """Breaks the link of host 2; returns how to mend it."""
    if kind == "cut":
        run("ip", "-n", hosts.names[2], "link", "set", "eth0", "down")
        return lambda: (run("ip", "-n", hosts.names[2], "link", "set", "eth0", "up"), hosts.route(2))
    if kind == "slow":
        run(*hosts.inside(2, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "8kbit", "burst", "2kb",
                          "latency", "1s"))
        return lambda: run(*hosts.inside(2, "tc", "qdisc", "del", "dev", "eth0", "root"))
    rule = ["INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.9", "-j", "DROP"]
    run(*hosts.inside(2, "iptables", "-A", *rule))
    return lambda: run(*hosts.inside(2, "iptables", "-D", *rule))


@pytest.mark.parametrize("kind", ["cut", "slow", "lossy"])
def test_a_bad_link_ends_the_job_with_a_name_and_it_goes_on_later(hosts, tmp_path, kind):
    folder = tmp_path / "run"
    ranks = start(hosts, folder)
    wait_for_steps(folder, ranks, 5)
    mend = trouble(hosts, kind)
    began = time.time()
    try:
        # The limit of a step or of silence (15 s), whichever ends it, and the outer net behind them.
        for rank in ranks:
            rank.wait(timeout=90)
        seconds = time.time() - began
    finally:
        mend()
        for rank in ranks:
            rank.kill()
    codes = [rank.returncode for rank in ranks]
    assert codes == [5, 5, 5], [rank.communicate()[1][-2000:] for rank in ranks]
    assert seconds < 60, seconds
    first = (folder / "logs/rank_0.log").read_text()
    assert re.search(r"rank 2|has lasted|sign of life|failed", first), first[-600:] + "\n".join(r.communicate()[1][-900:] for r in ranks)
    assert mgm("blame", str(folder)).stdout.strip()

    ranks = start(hosts, folder)
    for rank in ranks:
        assert rank.wait(timeout=120) == 0, rank.communicate()[1]
    assert [line["step"] for line in metrics(folder)] == list(range(1, STEPS + 1))
