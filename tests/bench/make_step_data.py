#!/usr/bin/env python3
"""Annotations whose samples all have one length, for timing a training step.

    tests/bench/make_step_data.py --text-tokens 128 --records 256 --stage 1 --out step_data.json

Uses the tokenizer and pictures of data/embedded; the answer is words of its captions, repeated.
"""
import argparse
import json
import pathlib

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "data/embedded"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text-tokens", type=int, required=True, help="tokens of a sample besides the visual ones")
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True, help="1: captions, 2: a question and an answer")
    parser.add_argument("--no-images", action="store_true", help="text-only records")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    tokenizer = sentencepiece.SentencePieceProcessor(str(EMBEDDED / "tokenizer/tokenizer.model"))
    captions = json.loads((EMBEDDED / "stage1_train.json").read_text())
    words = " ".join(r["conversations"][1]["value"] for r in captions).split()
    # Besides the answer: BOS and a newline; in stage 2 the v1 system text, question and end as well.
    system = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
              "detailed, and polite answers to the user's questions. USER: ")
    question = "Describe the picture."
    mark = "" if args.no_images else "\n"
    fixed = 2 if args.stage == 1 else 3 + len(tokenizer.encode(system)) + len(tokenizer.encode(f"{mark}{question} ASSISTANT:"))
    length_of = {word: len(tokenizer.encode(word)) for word in set(words)}  # pieces do not cross a space
    records = []
    for i in range(args.records):
        answer, length = [], 0
        k = i * 7
        while length < args.text_tokens - fixed:
            answer.append(words[k % len(words)])
            length += length_of[answer[-1]]
            k += 1
        assert length == len(tokenizer.encode(" ".join(answer)))
        record = {"id": str(i), "conversations": [
            {"from": "human", "value": question if args.no_images else f"<image>\n{question}"},
            {"from": "gpt", "value": " ".join(answer)}]}
        if not args.no_images:
            record["image"] = captions[i % len(captions)]["image"]
        records.append(record)
    pathlib.Path(args.out).write_text(json.dumps(records))


if __name__ == "__main__":
    main()
