"""Fuzz targets build from the sources they name and take every input of their corpus; scripts/test.sh --full runs all."""
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
FUZZ = ROOT / "tests/fuzz"
TARGETS = sorted(path.name[:-len("_fuzz.cpp")] for path in FUZZ.glob("*_fuzz.cpp"))


@pytest.fixture(scope="module")
def built():
    done = subprocess.run([FUZZ / "build.sh", "--replay", *TARGETS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("target", TARGETS)
def test_takes_its_corpus(target, built):
    corpus = sorted(path for path in (FUZZ / "corpus" / target).iterdir() if path.is_file())
    done = subprocess.run([ROOT / f"build/fuzz/{target}_replay", *corpus], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith(f"{len(corpus)} files\n") and corpus


def test_all_targets_are_fuzzed():
    (listed,) = re.findall(r"^  for fuzzer in (.*); do$", (ROOT / "scripts/test.sh").read_text(), re.M)
    assert sorted(listed.split()) == TARGETS
