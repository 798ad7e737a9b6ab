"""The architecture, enforced: who may include whom, where torch may be seen, how the code is formatted.

The table of layers is the mgm_layer lines of CMakeLists.txt, so that the build and this test cannot differ.
"""
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
TESTS = sorted(p for p in (ROOT / "tests").rglob("*") if p.suffix in (".h", ".cpp"))
TORCH = re.compile(r'#include\s+[<"](torch|ATen|c10)/')
CUDA = re.compile(r'#include\s+[<"](ATen/cuda|c10/cuda|cuda|nccl|torch/csrc/cuda)')
INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.M)
MAX_LINES = 540  # "about 500"


def layers():
    """{layer: (may include, sees torch)}"""
    out = {}
    for line in re.findall(r"^mgm_layer\((.*?)\)", (ROOT / "CMakeLists.txt").read_text(), re.M | re.S):
        words = line.split()
        allowed = words[words.index("LAYERS") + 1:] if "LAYERS" in words else []
        if "DEPS" in allowed:
            allowed = allowed[:allowed.index("DEPS")]
        out[words[0]] = ({words[0], *allowed}, "TORCH" in words)
    return out


def violations(path, text, table):
    """What is wrong with the includes of one file."""
    layer = path.relative_to(CSRC).parts[0]
    out = []
    if layer != "cli":
        allowed, torch = table[layer]
        for name in INCLUDE.findall(text):
            if "/" not in name or name.split("/")[0] not in table:
                out.append(f"{path}: \"{name}\" is not written relative to csrc")
            elif name.split("/")[0] not in allowed:
                out.append(f"{path}: {layer} may not include {name}")
        if not torch and TORCH.search(text):
            out.append(f"{path}: {layer} may not see torch")
    if path.suffix in (".cu", ".cuh") and TORCH.search(text):
        out.append(f"{path}: CUDA files do not see torch")
    if "torch/torch.h" in text or "torch/all.h" in text:
        out.append(f"{path}: torch/torch.h costs half a minute per file")
    return out


def test_every_test_file_is_run():
    listed = set(re.findall(r"mgm_pytest\(\w+ \w+ (\S+)\)", (ROOT / "tests/CMakeLists.txt").read_text()))
    files = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}
    assert files == {name for name in listed if pathlib.Path(name).name.startswith("test_")}


def test_no_test_hides_another():
    """Of two functions of one name in a Python file only the last is run."""
    hidden = []
    for path in (ROOT / "tests").rglob("*.py"):
        names = re.findall(r"^def (\w+)", path.read_text(), re.M)
        hidden += [f"{path}: {name}" for name in set(names) if names.count(name) > 1]
    assert not hidden, hidden


def test_nothing_is_half_merged():
    marks = re.compile(rb"^(<<<<<<< |>>>>>>> )", re.M)
    files = [ROOT / "README.md", *(p for folder in ("csrc", "tests", "docs", "configs", "scripts") for p in (ROOT / folder).rglob("*"))]
    found = [str(p) for p in files if p.suffix in (".h", ".cpp", ".cu", ".py", ".md", ".yaml", ".sh", ".txt", ".cmake")
             and marks.search(p.read_bytes())]
    assert not found, found


def test_only_gpu_tests_include_cuda():
    found = {path.relative_to(ROOT / "tests").parts[0] for path in TESTS if CUDA.search(path.read_text())}
    assert found == {"gpu"}  # the folder that a build without CUDA leaves out


def test_layers():
    table = layers()
    assert {"base", "model", "train"} <= table.keys()
    found = [v for path in SOURCES for v in violations(path, path.read_text(), table)]
    assert not found, "\n".join(found)


def test_every_room_is_a_layer():
    rooms = {p.name for p in CSRC.iterdir() if p.is_dir()}
    assert rooms == set(layers()) | {"cli"}


def test_hard_rules():
    table = layers()
    for layer in ("base", "config", "kernels", "formats", "image", "text"):
        assert not table[layer][1], f"{layer} must not see torch"
    for layer in ("model", "nn", "ops"):
        assert "dist" not in table[layer][0], f"{layer} must not know ranks"


@pytest.mark.parametrize("file,line", [
    ("model/x.cpp", '#include "dist/param_store.h"'),
    ("text/x.cpp", "#include <ATen/ATen.h>"),
    ("ops/x.cu", "#include <c10/util/Exception.h>"),
    ("data/x.cpp", '#include "loader.h"'),
    ("nn/x.cpp", "#include <torch/torch.h>"),
])
def test_a_breach_is_seen(file, line):
    assert violations(CSRC / file, line + "\n", layers())


def test_file_length():
    long = {str(p): n for p in SOURCES + TESTS if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_format():
    tool = ROOT / ".deps/venv/bin/clang-format"
    done = subprocess.run([tool, "--dry-run", "-Werror", *map(str, SOURCES + TESTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000] + "\nRun: .deps/venv/bin/clang-format -i <file>"


def test_words():
    """Comments and docs speak of the project alone."""
    files = SOURCES + TESTS + sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"]
    bad = re.compile(r"TODO|FIXME|#if 0")
    found = [f"{p}:{i}" for p in files if p.exists()
             for i, line in enumerate(p.read_text().splitlines(), 1) if bad.search(line)]
    assert not found, found
