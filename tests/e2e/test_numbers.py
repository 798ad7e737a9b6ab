"""Numbers on the command line: what lies outside an option's range is exit code 2, with option, value and range."""
import pytest

from mgm_binary import mgm

PLAN = ["train", "configs/tiny/stage1.yaml", "--plan"]
CHAT = ["chat", "no_model", "--batch", "no_questions"]
LAUNCH = ["launch", "--nproc", 1]
DOCTOR = ["doctor", "configs/tiny/stage1.yaml"]
CASES = [
    (PLAN, "--gpu-memory", ["-80GiB", "nan", "inf", "0", "0GiB", "80XB", "1e30GB", "9EiB"], "like 500MB or 80GiB"),
    (PLAN, "--link", ["nan", "inf", "-inf", "-1", "0", "1e300", "x"], "1e-06 to 1e+06"),
    (PLAN, "--network", ["nan", "-1", "0"], "1e-06 to 1e+06"),
    (PLAN, "--flops", ["nan", "inf", "-1", "0"], "1e-06 to 1e+06"),
    (PLAN, "--tokens", ["0", "-1", "1.5", "nan", "99999999999999999999"], "1 to 1000000000"),
    (PLAN, "--images", ["-1", "99999999999999999999"], "0 to 1000000"),
    (PLAN, "--world", ["0", "-8", "8,0", "65537"], "1 to 65536"),
    (PLAN, "--gpus-per-node", ["0", "-8"], "1 to 1024"),
    (["convert", "none", "--out", "none2"], "--max-shard-size", ["0", "-1", "-1GB", "nan", "0.1"], "like 500MB or 80GiB"),
    (["export", "none", "--out", "none2"], "--max-shard-size", ["0", "-1", "-1GB", "inf"], "like 500MB or 80GiB"),
    (CHAT, "--batch-size", ["0", "-1", "1e3", "65536", "99999999999999999999"], "1 to 65535"),
    (CHAT, "--max-new-tokens", ["0", "-1", "99999999999999999999"], "1 to 2147483647"),
    (CHAT, "--temperature", ["nan", "inf", "-0.1"], "0 to 1e+06"),
    (CHAT, "--top-p", ["nan", "1.1", "-0.1"], "0 to 1"),
    (CHAT, "--top-k", ["-1", "nan", "2147483648"], "0 to 2147483647"),
    (CHAT, "--repetition-penalty", ["nan", "0", "101"], "0.01 to 100"),
    (CHAT, "--beams", ["0", "-1", "65"], "1 to 64"),
    (CHAT, "--seed", ["-1", "18446744073709551616", "1.5"], "0 to 18446744073709551615"),
    (CHAT, "--drop-path", ["-1", "nan"], "0 to 18446744073709551615"),
    (LAUNCH, "--grace", ["nan", "inf", "-1"], "0 to 1e+06"),
    (LAUNCH, "--join-timeout", ["nan", "inf", "0", "-1"], "0.001 to 1e+06"),
    (DOCTOR, "--wait", ["nan", "inf", "0", "-1"], "0.001 to 1e+06"),
    (DOCTOR, "--link", ["nan", "inf", "0", "-1"], "1e-06 to 1e+06"),
    (["report", "m", "--heldin", "h", "--images", "i", "--out", "o"], "--print", ["0", "-1"], "1 to 1000000000"),
]


@pytest.mark.parametrize("command,option,values,range", CASES, ids=[f"{case[0][0]} {case[1]}" for case in CASES])
def test_what_is_out_of_range(command, option, values, range):
    for value in values:
        done = mgm(*command, f"{option}={value}", *(["--", "train", "x"] if command is LAUNCH else []), code=2, timeout=60)
        first = done.stderr.splitlines()[0]
        assert first.startswith(option + ": ") and range in first, first
        assert value.split(",")[-1] in first and len(first) < 160, first


def test_sizes_have_units():
    def memory(size):
        return mgm(*PLAN, "--gpu-memory", size).stdout
    assert memory("80GiB") == memory("85899345920") == memory("81920 MiB") == memory("80gib")
    assert memory("80GB") == memory("80000MB") == memory("0.08tb") != memory("80GiB")
