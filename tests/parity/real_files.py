"""The real vocabularies that scripts/fetch_tokenizers.sh brings and the real model of scripts/fetch_models.sh. A test
that needs one says NOT RUN where the script was not run, and fails where it was and a file is not what was fetched."""
import functools
import hashlib
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FETCHED = pathlib.Path(os.environ.get("MGM_TOKENIZERS", ROOT / ".deps/tokenizers"))
MODELS = pathlib.Path(os.environ.get("MGM_TEST_MODELS", ROOT / ".deps/test_models"))
FETCH_MODELS = ROOT / "scripts/fetch_models.sh"
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


@functools.cache
def smollm2():
    """The fetched GGUF of SmolLM2-135M-Instruct, held once against the hash that the script pins."""
    if not (MODELS / ".complete").exists():
        pytest.skip(f"NOT RUN: no models in {MODELS}; scripts/fetch_models.sh brings them")
    pinned = dict(re.findall(r"^(member|sha256)=(\S+)$", FETCH_MODELS.read_text(), re.M))
    file = MODELS / pathlib.Path(pinned["member"]).name
    again = f"run MGM_TEST_MODELS={MODELS} scripts/fetch_models.sh"
    assert file.exists(), f"{file} is missing; {again}"
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == pinned["sha256"], f"{file} has the SHA-256 {found}, the pinned file {pinned['sha256']}; {again}"
    return file


def mistral(name):
    """A file of mistral-common's data."""
    return fetched("mistral-common") / "mistral_common/data" / name


def tekkenizer(name):
    """mistral-common's own reading of a tekken file, and its policy of leaving special tokens out."""
    path = mistral(name)
    from mistral_common.tokens.tokenizers import tekken

    assert pathlib.Path(tekken.__file__).is_relative_to(FETCHED.resolve()) or str(FETCHED) in tekken.__file__, tekken.__file__
    return tekken.Tekkenizer.from_file(path), tekken.SpecialTokenPolicy.IGNORE
