"""The real vocabularies that scripts/fetch_tokenizers.sh brings. A test that needs one says NOT RUN where the script
was not run, and fails where it was and a file is not what was fetched."""
import functools
import hashlib
import os
import pathlib
import sys

import pytest

FETCHED = pathlib.Path(os.environ.get("MGM_TOKENIZERS", pathlib.Path(__file__).resolve().parents[2] / ".deps/tokenizers"))
MISTRAL_SENTENCEPIECE = {
    "v1": "tokenizer.model.v1", "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3", "v7": "mistral_instruct_tokenizer_241114.model.v7"}

# Before anything imports the mistral-common of tests/requirements.txt.
if (FETCHED / "mistral-common").exists():
    sys.path.insert(0, str(FETCHED / "mistral-common"))


def fetched(name):
    """A fetched file or folder."""
    if not (FETCHED / ".complete").exists():
        pytest.skip(f"NOT RUN: no {name} in {FETCHED}; scripts/fetch_tokenizers.sh brings it")
    broken = problem(name)
    assert not broken, f"{broken}; remove {FETCHED} and run scripts/fetch_tokenizers.sh"
    return FETCHED / name


@functools.cache
def problem(name):
    """What is wrong with a fetched file or the files of a folder; empty: nothing."""
    if not (FETCHED / "SHA256SUMS").exists():
        return f"{FETCHED} was fetched by an older script: it has no SHA256SUMS"
    rows = (row.split("  ./", 1) for row in (FETCHED / "SHA256SUMS").read_text().splitlines())
    wanted = {path: sha256 for sha256, path in rows if path == name or path.startswith(f"{name}/")}
    if not wanted:
        return f"{FETCHED / 'SHA256SUMS'} knows no {name}"
    for path, sha256 in wanted.items():
        if not (FETCHED / path).exists():
            return f"{FETCHED / path} is missing"
        if hashlib.sha256((FETCHED / path).read_bytes()).hexdigest() != sha256:
            return f"{FETCHED / path} is not the file that was fetched"
    return ""


def mistral(name):
    """A file of mistral-common's data."""
    return fetched("mistral-common") / "mistral_common/data" / name


def tekkenizer(name):
    """mistral-common's own reading of a tekken file, and its policy of leaving special tokens out."""
    path = mistral(name)
    from mistral_common.tokens.tokenizers import tekken

    assert pathlib.Path(tekken.__file__).is_relative_to(FETCHED.resolve()) or str(FETCHED) in tekken.__file__, tekken.__file__
    return tekken.Tekkenizer.from_file(path), tekken.SpecialTokenPolicy.IGNORE
