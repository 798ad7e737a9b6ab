"""Encoding speed of csrc/text and of the library each tokenizer comes from, on one thread, in one run, on the same
lines: `tokenizers` (encode_batch and encode_batch_fast, which makes no offsets) and tiktoken (encode_ordinary). Ours
makes spans. Measured is CPU time, the best of several passes, the sides taking turns: other work on the machine
counts little. Both sides must give the same number of tokens. Text: running text and code of this Python installation (what models mostly read), and the multilingual
corpus of the parity test (hardly a word comes twice).
  MGM_BUILD_DIR=build/release .deps/venv/bin/python tests/bench/tokenizer_bench.py [ROUNDS]
needs the target tokenizer_bench and the files of scripts/fetch_tokenizers.sh."""

import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))

import test_bpe_parity as parity  # noqa: E402
import tiktoken  # noqa: E402
from real_files import FETCHED  # noqa: E402
from test_tiktoken_parity import ranks_of, tiktoken_cases  # noqa: E402


def running_text(megabytes):
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(1).shuffle(files)
    lines, size = [], 0
    for file in files:
        for line in file.read_text(errors="replace").split("\n"):
            lines.append(line.replace("\r", " "))
            size += len(line.encode()) + 1
        if size > megabytes * 1e6:
            return lines
    return lines


def multilingual(megabytes):
    rng, lines, size = random.Random(2), [], 0
    while size < megabytes * 1e6:
        lines.append(parity.line_of(rng).replace("\n", " "))
        size += len(lines[-1].encode()) + 1
    return lines


def theirs(encode, lines):
    """CPU seconds of the better of two passes, and tokens."""
    seconds, tokens = [], 0
    for _ in range(2):
        at = time.process_time()
        out = encode(lines)
        seconds.append(time.process_time() - at)
        tokens = sum(len(x) for x in out)
    return min(seconds), tokens


def ours(path, text):
    command = [str(parity.BUILD / "tests/tokenizer_bench"), str(path), str(text), "2"]
    out = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return out["cpu_s"], out["tokens"]


def compare(path, lines, folder, libraries, rounds):
    text = folder / "text.txt"
    text.write_text("\n".join(lines), newline="\n")
    megabytes = text.stat().st_size / 1e6
    mine, others = 1e30, dict.fromkeys(libraries, 1e30)
    for _ in range(rounds):
        seconds, tokens = ours(path, text)
        mine = min(mine, seconds)
        for library, encode in libraries.items():
            seconds, count = theirs(encode, lines)
            assert count == tokens, (path, library, count, tokens)
            others[library] = min(others[library], seconds)
    return megabytes / mine, {library: megabytes / seconds for library, seconds in others.items()}


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    texts = {"running": running_text(1), "multilingual": multilingual(1)}
    with tempfile.TemporaryDirectory() as tmp:
        folder = pathlib.Path(tmp)
        cases = []
        real = parity.smollm2_real(FETCHED / "smollm2_head.gguf")
        for name, hf in (("SmolLM2 49k", real), ("LLaMA-3 style 3k", parity.llama3()), ("Llama style 3k", parity.llama())):
            path = folder / f"{name.replace(' ', '_')}" / "tokenizer.json"
            path.parent.mkdir()
            hf.save(str(path))
            cases.append((name, path, {"tokenizers": hf.encode_batch, "tokenizers fast": hf.encode_batch_fast}))
        for file, (pattern, _, bos) in tiktoken_cases().items():
            path = FETCHED / file
            oracle = tiktoken.Encoding(file, pat_str=pattern, mergeable_ranks=ranks_of(path), special_tokens={})
            cases.append((file, path, {"tiktoken": lambda lines, o=oracle, b=[bos] * (bos is not None): [
                b + o.encode_ordinary(x) for x in lines]}))
        print("MB per CPU second, best pass\n| tokenizer | text | mgm | theirs | ratio |\n|---|---|---|---|---|")
        for name, path, libraries in cases:
            for kind, lines in texts.items():
                mine, others = compare(path, lines, folder, libraries, rounds)
                for library, other in others.items():
                    print(f"| {name} | {kind} | {mine:.1f} | {other:.1f} ({library}) | {mine / other:.1f} |", flush=True)


if __name__ == "__main__":
    main()
