"""Bad configs with the exact text they get, shipped configs, and the generated reference page.

tests/config_cases/NAME/: config.yaml, perhaps sets.txt (one --set per line), and expected.txt, the whole of
standard error. MGM_UPDATE=1 rewrites expected.txt; read the difference before committing it.
"""
import functools
import os
import pathlib
import re
import subprocess

import pytest

from mgm_binary import MGM, ROOT, mgm

CASES = sorted(p.parent.relative_to(ROOT) for p in (ROOT / "tests/config_cases").glob("*/config.yaml"))
CASES += [pathlib.Path("tests/config_cases/missing_file")]
SHIPPED = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "templates")
RECIPES = [p for p in SHIPPED if p.parent.name in ("stage1", "stage2")]


@pytest.mark.parametrize("case", sorted(set(CASES)), ids=lambda p: p.name)
def test_bad_config(case):
    sets = ROOT / case / "sets.txt"
    options = [word for line in sets.read_text().splitlines() if line for word in ("--set", line)] if sets.exists() else []
    error = mgm("config", "check", case / "config.yaml", *options, code=2, timeout=20).stderr
    expected = ROOT / case / "expected.txt"
    if os.environ.get("MGM_UPDATE"):
        expected.write_text(error)
    assert error == expected.read_text()


@pytest.mark.parametrize("config", SHIPPED, ids=str)
def test_shipped_config_is_right(config):
    if config.parent.name == "base":
        return  # a part of others; those are checked
    mgm("config", "check", config)


def test_there_are_seven_and_thirteen_recipes():
    count = {stage: sum(p.parent.name == stage for p in RECIPES) for stage in ("stage1", "stage2")}
    assert count == {"stage1": 7, "stage2": 13}


@pytest.mark.parametrize("config", RECIPES, ids=str)
def test_recipe_can_be_planned_without_weights_or_data(config):
    text = mgm("train", config, "--plan", timeout=20).stdout
    steps = int(re.search(r"steps: ([\d,]+)", text)[1].replace(",", ""))
    samples = {"stage1": 1270000, "stage2": 1420000}[config.parent.name]
    batch = int(re.search(r"batch: (\d+) samples", text)[1])
    assert steps == -(-samples // batch)


@pytest.mark.parametrize("config", SHIPPED, ids=str)
def test_shown_config_reads_back_as_itself(config, tmp_path):
    """What is stored in run folders and checkpoints is the whole config."""
    if config.parent.name == "base":
        return
    shown = mgm("config", "show", config, "--plain").stdout
    (tmp_path / "shown.yaml").write_text(shown)
    assert mgm("config", "show", tmp_path / "shown.yaml", "--plain").stdout == shown


def test_reference_page_is_current():
    page = mgm("config", "help", "--markdown").stdout
    assert (ROOT / "docs/config.md").read_text() == page, "run: mgm config help --markdown > docs/config.md"


def test_origins_are_shown():
    text = mgm("config", "show", "configs/stage2/vicuna_7b_hd.yaml", "--set", "train.seed=9").stdout
    assert re.search(r"seed: 9 +# --set train.seed=9", text), text
    assert "# base/hd" in text or "base/hd.yaml" in text


def test_difference_of_two_configs():
    normal, hd = "configs/stage2/vicuna_7b.yaml", "configs/stage2/vicuna_7b_hd.yaml"
    lines = mgm("config", "diff", normal, hd).stdout.splitlines()
    assert "image.hr_size: 768 -> 1536" in lines and not any(line.startswith("optimizer.lr:") for line in lines)
    assert mgm("config", "diff", normal, normal).stdout == "no difference\n"
    assert mgm("config", "diff", normal, normal, "--set", "train.seed=9").stdout == "train.seed: 42 -> 9\n"
    assert "model.llm.hidden_size: 4096 -> 128\n" in mgm("config", "diff", "configs/tiny/stage1.yaml").stdout


@functools.cache
def help_of(*command):
    return mgm(*command, "--help").stdout


def commands(*parents):
    """Every command and sub-command below, as the help lists them."""
    listed = re.search(r"^Subcommands:\n((?:  .+\n)+)", help_of(*parents), re.M)
    for line in listed[1].splitlines() if listed else ():
        if name := re.match(r"  (\w+)", line):
            yield (*parents, name[1])
            yield from commands(*parents, name[1])


def test_every_command_has_help_with_an_example():
    found = list(commands())
    assert {("train",), ("config", "diff"), ("data", "show"), ("render",), ("checkpoint", "ls")} <= set(found)
    missing = [command for command in found if not re.search(r"Examples?:\s+.*\bmgm ", help_of(*command))]
    assert not missing


def test_an_unknown_command_is_named():
    assert mgm("trian", "x.yaml", code=2).stderr == "unknown command 'trian'; did you mean 'mgm train'?\n"
    assert mgm("frobnicate", code=2).stderr == "unknown command 'frobnicate'; mgm --help lists them\n"


@pytest.mark.parametrize("command", [("--help",), ("config", "show", "configs/tiny/stage1.yaml")])
def test_output_that_is_lost_is_an_error(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([MGM, *command], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "error: standard output could not be written" in done.stderr, done
