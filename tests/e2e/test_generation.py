"""Files of questions and beam search through the binary: answers equal to those asked one at a time and to those of
transformers, order, statistics, refusals."""
import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from mgm_binary import ROOT, changed, mgm

sys.path.insert(0, str(ROOT / "tests/parity"))
from mgm_oracle import TOKENIZER, Oracle, Sizes  # noqa: E402

IMAGES = ROOT / "data/embedded/images"
APPLE, BUS, SEAL = IMAGES / "apple.png", IMAGES / "bus_red.webp", IMAGES / "seal.jpg"
CUT = " [cut at the token limit]"
QUESTIONS = [("What is in the picture?", [APPLE]), ("Say hello to seventeen red apples beside a blue bus.", []),
             ("Which is the larger one?", [SEAL, BUS]), ("Where?", [BUS]), ("Who are you?", [])]


@pytest.fixture(scope="module")
def oracle():
    torch.set_num_threads(2)
    return Oracle(Sizes(hr=96), seed=11)


@pytest.fixture(scope="module")
def model(oracle, tmp_path_factory):
    return oracle.save(tmp_path_factory.mktemp("oracle") / "model")


def write_questions(folder, questions=QUESTIONS):
    path = folder / "questions.jsonl"
    lines = []
    for number, (prompt, images) in enumerate(questions):
        record = {"id": f"q{number}", "prompt": prompt}
        if images:
            record["image"] = str(images[0]) if len(images) == 1 else [str(image) for image in images]
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


def chat(model_dir, *options, **more):
    return mgm("chat", model_dir, "--device", "cpu", *options, **more)


def batch(model_dir, questions, *options):
    lines = chat(model_dir, "--batch", questions, *options).stdout.split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def one_at_a_time(model_dir, questions, *options):
    out = []
    for number, (prompt, images) in enumerate(questions):
        pictures = [part for image in images for part in ("--image", image)]
        answer = chat(model_dir, *pictures, "--prompt", prompt, *options).stdout.removesuffix("\n")
        out.append({"id": f"q{number}", "answer": answer.removesuffix(CUT).strip(" \n\t\r\f\v"), "stopped": not answer.endswith(CUT)})
    return out


def refused(code, *args, says):
    error = mgm(*args, code=code).stderr
    for part in says:
        assert str(part) in error, f"{part!r} is not in: {error}"


# ---- batches ----------------------------------------------------------------------------------------------
def test_answers_are_those_asked_one_at_a_time(model, tmp_path):
    questions = write_questions(tmp_path)
    expected = one_at_a_time(model, QUESTIONS, "--max-new-tokens", 24)
    assert len({answer["answer"] for answer in expected}) == len(expected)
    for size in (1, 2, 8):
        assert batch(model, questions, "--batch-size", size, "--max-new-tokens", 24) == expected


def test_out_and_stats(model, tmp_path):
    questions = write_questions(tmp_path)
    out, stats = tmp_path / "answers.jsonl", tmp_path / "stats.json"
    done = chat(model, "--batch", questions, "--out", out, "--stats", stats, "--batch-size", 2, "--max-new-tokens", 6)
    assert done.stdout == "" and "5 answers" in done.stderr
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [f"q{n}" for n in range(5)]
    found = json.loads(stats.read_text())
    assert (found["rows"], found["prompts"]) == (2, 5) and found["step_tokens"] <= 5 * 5
    assert found["steps"] > 0 and found["step_seconds"] > 0 and found["prompt_seconds"] > 0
    assert (found["graphs"], found["graph_steps"]) == (0, 0)  # on a CPU
    assert batch(model, questions, "--no-graphs", "--max-new-tokens", 6) == [json.loads(line) for line in
                                                                          out.read_text().splitlines()]


def test_a_seed_fixes_a_batch(model, tmp_path):
    questions = write_questions(tmp_path)
    options = ["--temperature", 1.2, "--top-k", 40, "--max-new-tokens", 8, "--seed"]
    first = batch(model, questions, *options, 1)
    assert first == batch(model, questions, "--batch-size", 2, *options, 1)
    assert first != batch(model, questions, *options, 2)


def test_refusals(model, tmp_path):
    questions = write_questions(tmp_path)
    refused(2, "chat", model, "--batch", questions, "--prompt", "Hi", says=["--batch", "--prompt"])
    refused(2, "chat", model, "--prompt", "Hi", "--out", tmp_path / "x", says=["--out", "--batch"])
    refused(2, "chat", model, "--batch", questions, "--batch-size", 0, says=["batch-size"])
    refused(3, "chat", model, "--batch", tmp_path / "none.jsonl", says=["none.jsonl"])
    refused(1, "chat", model, "--batch", questions, "--out", "/proc/no/answers", says=["/proc/no"])
    long = write_questions(tmp_path, [("Hi", []), ("word " * 3000, [])])
    out = tmp_path / "out.jsonl"
    out.write_text("of another day")
    refused(3, "chat", model, "--device", "cpu", "--batch", long, "--out", out, says=["questions.jsonl:2", "tokens", "2048"])
    assert out.read_text() == "of another day"  # nothing is written before the first answer
    (tmp_path / "half.png").write_bytes(APPLE.read_bytes()[:900])
    broken = write_questions(tmp_path, [("Hi", []), ("What?", [tmp_path / "half.png"])])
    refused(3, "chat", model, "--device", "cpu", "--batch", broken, says=["questions.jsonl:2", "half.png"])


@pytest.mark.parametrize("options", [["--batch-size", 1], ["--batch-size", 2], ["--batch-size", 8], ["--beams", 2]])
def test_a_broken_picture_costs_no_other_answer(model, tmp_path, options):
    half = tmp_path / "half.png"
    half.write_bytes(APPLE.read_bytes()[:900])
    broken = [QUESTIONS[0], ("Broken?", [half]), *QUESTIONS[1:4], ("Broken, too?", [BUS, half]), QUESTIONS[4], ("At last?", [half])]
    places = [n for n, (_, images) in enumerate(broken) if half in images]
    options = [*options, "--max-new-tokens", 6]
    good = batch(model, write_questions(tmp_path, [q for q in broken if half not in q[1]]), *options)
    questions, out, stats = write_questions(tmp_path, broken), tmp_path / "out.jsonl", tmp_path / "stats.json"
    done = chat(model, "--batch", questions, "--out", out, "--stats", stats, *options, code=3)
    assert f"questions.jsonl:{places[0] + 1}: {half}" in done.stderr and "3 of 8 questions have no answer" in done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"q{n}" for n in range(8)]
    assert [n for n, line in enumerate(lines) if "error" in line] == places
    assert all(set(lines[n]) == {"id", "error"} and str(half) in lines[n]["error"] for n in places)
    answered = [(line["answer"], line["stopped"]) for line in lines if "error" not in line]
    assert answered == [(line["answer"], line["stopped"]) for line in good]
    assert json.loads(stats.read_text())["prompts"] == 5
    only = write_questions(tmp_path, [("Broken?", [half])])
    assert list(json.loads(chat(model, "--batch", only, *options, code=3).stdout)) == ["id", "error"]


def test_gpus_that_cannot_be_used(model):
    for gpus, says in [("0,1", ["--gpus 0,1", "CPU"]), ("0,x", ["'x'"]), ("", ["''"]), ("1,1", ["twice"]), ("-1", ["'-1'"])]:
        refused(2, "chat", model, "--device", "cpu", "--prompt", "Hi", "--gpus", gpus, says=says)
    assert chat(model, "--prompt", "Hi", "--gpus", "auto", "--max-new-tokens", 1).stdout


# ---- beam search ------------------------------------------------------------------------------------------
TEXTS = ["What is in the picture?", "Say hello to seventeen red apples.", "Where is the bus that was beside the house?"]


@pytest.mark.parametrize("beams,length_penalty", [(1, 1.0), (4, 1.0), (3, -0.5)])
def test_beams_are_those_of_transformers(oracle, model, tmp_path, beams, length_penalty):
    tokenizer = transformers.LlamaTokenizer.from_pretrained(TOKENIZER)
    expected = []
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = oracle.llm.generate(ids, attention_mask=torch.ones_like(ids), num_beams=beams, length_penalty=length_penalty,
                                  early_stopping=False, do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
        out = out[0, ids.shape[1]:]
        expected.append({"id": f"q{number}", "answer": tokenizer.decode(out, skip_special_tokens=True).strip(),
                         "stopped": out[-1].item() == 2})
    options = ["--template", f"{ROOT}/tests/e2e/bare.yaml:bare", "--max-new-tokens", 10, "--beams", beams]
    options += ["--length-penalty", length_penalty]
    assert batch(model, write_questions(tmp_path, [(text, []) for text in TEXTS]), *options) == expected
    [first, *_] = one_at_a_time(model, [(TEXTS[0], [])], *options)
    assert first == expected[0]


@pytest.mark.parametrize("penalty", [-10, 10])
def test_extreme_length_penalties_have_an_answer(model, penalty):
    """An answer's score is then below what transformers takes for none, or 0."""
    done = chat(model, "--prompt", "What is this?", "--beams", 3, "--length-penalty", penalty, "--max-new-tokens", 40)
    assert done.stdout.removesuffix(CUT + "\n").strip()


def test_settings_of_a_generation_config_that_are_not_applied(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    values = {"eos_token_id": 2, "repetition_penalty": 1.1, "suppress_tokens": [5], "num_beams": 1, "do_sample": True, "top_k": 20}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(values))
    told = chat(tmp_path / "model", "--prompt", "Hi", "--max-new-tokens", 2).stderr
    assert "generation_config.json: repetition_penalty 1.1, suppress_tokens [5]: not applied" in told


def test_beams_see_pictures(model, tmp_path):
    questions = write_questions(tmp_path)
    found = batch(model, questions, "--beams", 3, "--max-new-tokens", 8)
    assert found == one_at_a_time(model, QUESTIONS, "--beams", 3, "--max-new-tokens", 8)
    assert found != batch(model, questions, "--max-new-tokens", 8)


def test_beams_refusals(model):
    refused(2, "chat", model, "--prompt", "Hi", "--beams", 2, "--temperature", 0.5, says=["beams", "temperature"])
    refused(2, "chat", model, "--prompt", "Hi", "--beams", 0, says=["beams"])
    refused(2, "chat", model, "--prompt", "Hi", "--length-penalty", 2, says=["--length-penalty", "--beams"])


# ---- long conversations -----------------------------------------------------------------------------------
def test_a_template_that_is_not_there(model, tmp_path):
    """The option, the file, what is known and how to name another; before the weights are read."""
    (tmp_path / "t.yaml").write_text((ROOT / "tests/e2e/bare.yaml").read_text())
    for row, near in (("nope", "."), ("bear", "; did you mean 'bare'?")):
        name = f"{tmp_path}/t.yaml:{row}"
        says = f"error: --template: no template '{row}' in {tmp_path}/t.yaml{near} Known: bare; or FILE.yaml:NAME\n"
        assert chat(model, "--prompt", "Hi", "--template", name, code=2).stderr == says
        assert mgm("render", "--template", name, input="[]", code=2).stderr == says
    refused(2, "chat", model, "--device", "cpu", "--prompt", "Hi", "--template", "v11",
            says=["error: --template: no template 'v11'; did you mean 'v1'? Known: "])
    refused(2, "chat", model, "--device", "cpu", "--prompt", "Hi", "--template", f"{tmp_path}/no.yaml:x",
            says=["error: --template: ", "no.yaml"])


def test_a_conversation_that_grows_too_long(model, tmp_path):
    """The system text of v1 takes about half of this context, so that the third question does not fit any more."""
    small = changed(model, tmp_path / "small", max_position_embeddings=160)
    script = "".join(f"Where are the {n} red apples that were beside the house?\n" for n in range(1, 7))
    refused_at = mgm("chat", small, "--device", "cpu", "--max-new-tokens", 4, input=script, code=3)
    assert "160" in refused_at.stderr and "--trim turns" in refused_at.stderr
    done = chat(small, "--max-new-tokens", 4, "--trim", "turns", input=script)
    assert len(done.stdout.splitlines()) == 6
    assert "left out" in done.stderr
    short = chat(small, "--max-new-tokens", 4, "--trim", "turns", input=script.splitlines()[0] + "\n")
    assert "left out" not in short.stderr and short.stdout.splitlines()[0] == done.stdout.splitlines()[0]


def test_trim_refusals(model, tmp_path):
    refused(2, "chat", model, "--prompt", "Hi", "--trim", "words", says=["--trim", "turns"])
    refused(2, "chat", model, "--batch", write_questions(tmp_path), "--trim", "turns", says=["--batch", "--trim"])
    refused(3, "chat", model, "--prompt", "word " * 3000, "--trim", "turns", says=["2048", "last question"])


# ---- ends of answers --------------------------------------------------------------------------------------
def generation_config(model, folder, text):
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(text)
    return folder


def greedy_ids(oracle, text, tokens):
    tokenizer = transformers.LlamaTokenizer.from_pretrained(TOKENIZER)
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = oracle.llm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                              eos_token_id=2, pad_token_id=0)[0, ids.shape[1]:]
    return out.tolist(), tokenizer


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_the_models_own_ends_count(oracle, model, tmp_path, place):
    ids, tokenizer = greedy_ids(oracle, TEXTS[0], 12)
    end = next(i for i in range(1, 12) if ids[i] not in ids[:i])  # a token that comes for the first time
    if place == "config.json":
        other = changed(model, tmp_path / "other", eos_token_id=[ids[end], 7])
    else:
        other = generation_config(model, tmp_path / "other", json.dumps({"eos_token_id": [7, ids[end]]}))
    options = ["--template", f"{ROOT}/tests/e2e/bare.yaml:bare", "--prompt", TEXTS[0], "--max-new-tokens", 12]
    assert chat(model, *options).stdout.endswith(CUT + "\n")
    cut = chat(other, *options).stdout
    assert cut.strip() == tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
    single = generation_config(model, tmp_path / "single", json.dumps({"eos_token_id": ids[end]}))
    assert chat(single, *options).stdout == cut
    # generation_config.json alone decides where it is there; the tokenizer's own end still ends answers.
    neither = generation_config(changed(model, tmp_path / "a", eos_token_id=ids[end]), tmp_path / "b", "{}")
    assert chat(neither, *options).stdout == chat(model, *options).stdout


def test_ends_that_cannot_be_read(model, tmp_path):
    cases = [('{"eos_token_id": "</s>"}', ["eos_token_id", "</s>"]), ('{"eos_token_id": [2, 1.5]}', ["eos_token_id", "1.5"]),
             ("{", ["JSON"]), ("[]", ["object"])]
    for number, (text, says) in enumerate(cases):
        folder = generation_config(model, tmp_path / str(number), text)
        refused(4, "chat", folder, "--device", "cpu", "--prompt", "Hi", says=["generation_config.json", *says])
    beyond = generation_config(model, tmp_path / "beyond", '{"eos_token_id": [2, 4000]}')
    assert "4000" in chat(beyond, "--prompt", "Hi", "--max-new-tokens", 1).stderr


# ---- the benchmark ----------------------------------------------------------------------------------------
def test_the_benchmark_runs(tmp_path):
    """On a tiny model; what it measures here means nothing."""
    script = [sys.executable, ROOT / "tests/bench/decode/decode.py", "--shape", "tiny", "--out", tmp_path]
    options = ["--device", "cpu", "--batch", "1,3", "--prompt", 20, "--new", 14]
    done = subprocess.run([*map(str, script + options)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for size in (1, 3):
        cell = json.loads((tmp_path / f"tiny.b{size}.p20.json").read_text())
        assert "error" not in cell["mgm"] and "error" not in cell["transformers"], cell
        assert 18 <= cell["mgm"]["prompt_tokens"] <= 20
        # Steps 8 to 13 read the prompt and 8 to 13 tokens more.
        assert cell["mgm"]["context_per_step"] == size * (cell["mgm"]["prompt_tokens"] + 10.5)
        assert cell["limit_tokens_s"] > 0
    assert not (tmp_path / "model_tiny").exists()
    again = subprocess.run([*map(str, [*script, "--report"])], capture_output=True, text=True, timeout=60)
    assert again.stdout == done.stdout and len(again.stdout.splitlines()) == 4
