"""Three hosts (network namespaces around a router) with a rank each: a link that is cut, slow or lossy during a step ends
the job on every rank within the limit, with a name; the same command line goes on when the link is back. `mgm doctor`
names a rank at a slow link before the run.

Needs root, ip, tc and iptables; runs with MGM_TEST_FULL=1. Without them it is skipped, loudly; MGM_TEST_REQUIRE=net makes
that a failure."""
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from mgm_binary import FULL, MGM, ROOT, metrics, mgm, required, sets  # noqa: E402

STEPS = 120
STEP_LIMIT = 8
SILENCE = 15  # the default of dist.timeout_s.silence
# Seconds beyond the limits: a heartbeat, the look at it, the listening and the telling may each come a second late, rank 0
# waits up to three for the others, and two cores may have much else to do.
SLACK = 10
# From the fault to the first rank that ends: STEP_LIMIT shows that a step hangs; who does is found by listening for signs of
# life for a third of the silence.
FOUND = STEP_LIMIT + SILENCE // 3 + SLACK
# To the last, where nothing gets through: rank 0, which serves the store, may wait for the rank behind the link until that
# has been silent for as long as a rank may be, and that rank as long for the store. Where something does, from then on.
CUT, LAST = SILENCE + SLACK, FOUND + SILENCE
HOST = re.escape(socket.gethostname())  # of all of them
READY = os.getuid() == 0 and all(map(shutil.which, ("ip", "tc", "iptables")))
pytestmark = [
    pytest.mark.skipif(not FULL, reason="NOT RUN: needs MGM_TEST_FULL=1"),
    pytest.mark.skipif(not READY and not required("net"), reason="NOT RUN: needs root and apt-get install iproute2 iptables"),
]


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
    assert READY, "MGM_TEST_REQUIRE=net, but root, ip, tc or iptables is missing"
    made = Hosts(3)
    yield made
    made.remove()


def options(folder):
    return sets({"run.dir": str(folder), "train.max_steps": STEPS, "train.global_batch": 12, "train.micro_batch": 2,
                 "train.threads": 1, "log.every_steps": 1, "checkpoint.every_steps": 2, "checkpoint.every_minutes": 0,
                 "dist.mode": "zero2", "data.workers": 1, "dist.timeout_s.step": STEP_LIMIT, "dist.timeout_s.save": 60})


def port():
    return random.randrange(20000, 32000)  # below those of connections


def start(hosts, folder, command="train", *args, stdout=subprocess.DEVNULL):
    """A rank on each host, without a launcher."""
    master_port, ranks = port(), []
    for rank in range(3):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
               "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(master_port), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(
            hosts.inside(rank, MGM, command, "configs/tiny/stage1.yaml", *options(folder), *args), cwd=ROOT, env=env,
            text=True, stdout=stdout, stderr=subprocess.PIPE))
    return ranks


def launch(hosts, folder):
    """A launcher on each host, with a rank each."""
    master = f"10.77.0.1:{port()}"
    env = {name: value for name, value in os.environ.items() if not re.match(r"RANK$|WORLD_SIZE$|LOCAL_|MASTER_", name)}
    launchers = []
    for node in range(3):
        with open(folder.parent / f"launcher_{node}.log", "w") as log:
            launchers.append(subprocess.Popen(
                hosts.inside(node, MGM, "launch", "--nnodes", 3, "--node-rank", node, "--master", master, "--nproc", 1,
                             "--restarts", 1, "--join-timeout", 120, "--", "train", "configs/tiny/stage1.yaml",
                             *options(folder)),
                cwd=ROOT, env={**env, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=log))
    return launchers


def said(folder, node):
    return (folder.parent / f"launcher_{node}.log").read_text()


def wait_for_text(path, text, seconds=90):
    for _ in range(20 * seconds):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no '{text}' in {path}:\n{path.read_text() if path.exists() else 'no such file'}")


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


# Who is named as the one behind it, and who found it out.
CULPRIT = rf"rank (\d+) on {HOST} has (?:not entered|given no sign of life)"


@pytest.mark.parametrize("kind", ["cut", "slow", "lossy"])
def test_a_bad_link_ends_the_job_with_a_name_and_it_goes_on_later(hosts, tmp_path, kind):
    folder = tmp_path / "run"
    ranks = start(hosts, folder)
    wait_for_steps(folder, ranks, 5)
    began = time.monotonic()
    mend = trouble(hosts, kind)
    try:
        ranks[1].wait(timeout=90)
        first = time.monotonic() - began
        for rank in ranks:
            rank.wait(timeout=90)
        last = time.monotonic() - began
    finally:
        mend()
        for rank in ranks:
            rank.kill()
    codes = [rank.returncode for rank in ranks]
    assert codes == [5, 5, 5], [rank.communicate()[1][-2000:] for rank in ranks]
    assert first < FOUND and last < (CUT if kind == "cut" else LAST), (first, last)
    blamed = mgm("blame", str(folder)).stdout
    told = [(folder / f"logs/rank_{rank}.log").read_text().splitlines()[-1] for rank in (0, 1)]
    for text in (*told, blamed):
        # Signs of life get through a bad link, though slowly; then it may be known only that it is the network.
        network = kind != "cut" and re.search(r"all 3 ranks of group \S+ have entered .* and it has not ended: the network or a "
                                              "device between them", text)
        assert set(re.findall(CULPRIT, text)) == (set() if network else {"2"}), f"{text}\n{blamed}"
    if kind == "cut":
        assert re.fullmatch(
            rf"found by rank [01] on {HOST}: step \d+, phase \w+ has lasted \d+ s on rank [01] \({HOST}\), the limit "
            rf"dist.timeout_s.step is {STEP_LIMIT} s: rank 2 on {HOST} has given no sign of life for \d+ s: stopped, or its "
            r"host or network is gone. It was at step \d+, phase \w+, last collective: '[^']+'\n", blamed), blamed
        assert "the store of the ranks" in (folder / "logs/rank_2.log").read_text()

    ranks = start(hosts, folder)
    for rank in ranks:
        assert rank.wait(timeout=120) == 0, rank.communicate()[1]
    assert [line["step"] for line in metrics(folder)] == list(range(1, STEPS + 1))


def test_ports_that_a_firewall_closes_end_the_start_with_the_group_and_its_ranks(hosts, tmp_path):
    """The store is reached, and what listens on a port of the system's choice is not."""
    rule = ["rule", "{}", "pref", "5", "ipproto", "tcp", "sport", "32768-60999", "dport", "32768-60999", "blackhole"]
    run("ip", "-n", hosts.router, *[word.format("add") for word in rule])
    folder = tmp_path / "run"
    try:
        ranks = start(hosts, folder, "train", *sets({"dist.timeout_s.start": 8}))
        errors = [rank.communicate(timeout=90)[1] for rank in ranks]
    finally:
        run("ip", "-n", hosts.router, *[word.format("del") for word in rule])
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [5, 5, 5], errors
    for text in (errors[0], mgm("blame", str(folder)).stdout):  # the others have no log yet
        assert re.search(rf"ranks 0, 1, 2 on {HOST} are all connecting group control and it has not ended: some of them do not "
                         "reach each other. No firewall may stand between them, on any port", text), text


def shaped(hosts, direction, rate):
    """Limits what host 2 gets ("in") or gives ("out"); returns how to undo it."""
    space, wire = (hosts.router, "port2") if direction == "in" else (hosts.names[2], "eth0")
    tc = ["ip", "netns", "exec", space, "tc", "qdisc"]
    run(*tc, "add", "dev", wire, "root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
    return lambda: run(*tc, "del", "dev", wire, "root")


EXPECTED = 0.01  # GB/s: two cores busy with other things passed 0.36 and more between these hosts
# Every rank gives to the next one of a ring and gets from the one before. A link that is slow one way slows the two ranks at
# its ends alike, and either is named; of a host that is slow both ways it is the rank there.
SLOW = {"both ways": ({"in": "20mbit", "out": "40mbit"}, "2"), "in": ({"in": "20mbit"}, "12"), "out": ({"out": "20mbit"}, "02")}


def doctor(hosts, folder):
    """Its word on the links, then the slowest and the fastest rate in GB/s and the rank it calls the slowest."""
    ranks = start(hosts, folder, "doctor", "--link", str(EXPECTED), stdout=subprocess.PIPE)
    try:
        out = [rank.communicate(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0, 0], out
    assert "right sums, gathers and exchanges in 3 groups" in out[0][0]
    told = re.search(rf"^(\w+) +links +(\S+) to (\S+) GB/s from rank to rank \(CPUs of several hosts, expected {EXPECTED}\); "
                     r"slowest: rank (\d)", out[0][0], re.M)
    assert told, out[0][0]
    return told[1], float(told[2]), float(told[3]), told[4]


def test_the_doctor_finds_healthy_links_fast_enough(hosts, tmp_path):
    word, slowest, fastest, _ = doctor(hosts, tmp_path / "run")
    assert word == "ok" and EXPECTED <= slowest <= fastest


@pytest.mark.parametrize("where", SLOW)
def test_the_doctor_names_a_rank_at_a_slow_link(hosts, tmp_path, where):
    rates, named = SLOW[where]
    undo = [shaped(hosts, direction, rate) for direction, rate in rates.items()]
    try:
        word, slowest, _, rank = doctor(hosts, tmp_path / "run")
    finally:
        for end in undo:
            end()
    assert word == "warn" and rank in named, (slowest, rank)
    # 20 Mbit/s are 0.0025 GB/s, headers included; the bucket lends 32 KiB of 4 MiB.
    assert 0.3 * 0.0025 < slowest < 1.1 * 0.0025


@pytest.fixture(scope="module")
def whole(hosts, tmp_path_factory):
    """A run on three hosts that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for launcher in launch(hosts, folder):
        assert launcher.wait(timeout=120) == 0, said(folder, 0)
    return folder


def last_weights(folder):
    return {path.name: path.read_bytes() for path in (folder / f"checkpoints/step_{STEPS}").glob("rank_*.safetensors")}


def children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(launcher):
    """`ip netns exec` has become the launcher itself."""
    (rank,) = children(launcher.pid)
    return rank


@pytest.mark.parametrize("what", ["link cut and mended", "rank killed"])
def test_launch_starts_all_hosts_again_and_ends_as_if_nothing_had_been(hosts, whole, tmp_path, what):
    folder = tmp_path / "run"
    launchers = launch(hosts, folder)
    try:
        wait_for_text(folder / "logs/rank_0.log", " step 5/")
        if what == "rank killed":
            os.kill(rank_of(launchers[2]), signal.SIGKILL)
        else:
            mend = trouble(hosts, "cut")
            try:
                wait_for_text(folder / "logs/rank_0.log", f"rank 2 on {socket.gethostname()} has given no sign of life",
                              LAST)
                wait_for_text(folder / "logs/rank_2.log", "the store of the ranks", LAST)
            finally:
                mend()
        codes = [launcher.wait(timeout=180) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert codes == [0, 0, 0], "\n".join(said(folder, node) for node in range(3))
    for node in range(3):
        assert said(folder, node).count("restart 1 of 1") == 1, said(folder, node)
    assert "resuming from" in (folder / "logs/rank_0.log").read_text()
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    weights = last_weights(folder)
    assert len(weights) == 3 and weights == last_weights(whole)
