"""mgm train on the embedded pictures: bit-equal repetition and resume, stop signals, refusals."""
import json
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch

from mgm_binary import FULL, MGM, ROOT, metrics, mgm, sets

STEPS = 8
STAGE1 = "configs/tiny/stage1.yaml"
STAGE2 = "configs/tiny/stage2.yaml"


def options(run_dir, **more):
    values = {
        "run.dir": str(run_dir),
        "train.max_steps": STEPS,
        "train.global_batch": 4,
        "train.micro_batch": 2,
        "train.deterministic": True,
        "train.threads": 1,  # other tests run beside this one
        "checkpoint.every_steps": 3,
        "log.every_steps": 1,
    }
    values.update({key.replace("__", "."): value for key, value in more.items()})
    return sets(values)


def train(run_dir, config=STAGE1, **more):
    code = more.pop("code", 0)
    return mgm("train", config, *options(run_dir, **more), code=code)


def weights(run_dir, step=STEPS):
    return (pathlib.Path(run_dir) / "checkpoints" / f"step_{step}" / "rank_0.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run)
    return run


@pytest.fixture(scope="module")
def stage2_options(whole):
    return {"model__projector__path": str(whole / "mm_projector.bin")}


def assert_same_run(run, expected):
    assert (run / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert weights(run) == weights(expected)


def test_run_folder(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all({"loss", "lr", "grad_norm", "num_targets"} <= line.keys() for line in lines)
    assert lines[0]["lr"] == 0  # step 1 of a warm-up
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "logs", "checkpoints", "mm_projector.bin"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_6", "step_8"]  # keep: 2


def test_same_seed_same_bits(whole, tmp_path):
    train(tmp_path / "run", data__workers=3)
    assert_same_run(tmp_path / "run", whole)


def test_other_seed_other_loss(whole, tmp_path):
    train(tmp_path / "run", train__seed=2)
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(whole)[0]["loss"]


def test_offload_on_the_cpu_says_that_it_changes_nothing(tmp_path):
    runs = {kind: train(tmp_path / kind, dist__offload=kind, train__device="cpu", train__max_steps=2)
            for kind in ("none", "optimizer")}
    line = ("dist.offload: optimizer changes nothing on the CPU: fp32 weights and moments are in host memory as it is\n")
    assert [runs[kind].stderr.count(line) for kind in runs] == [0, 1], runs["optimizer"].stderr
    assert (tmp_path / "none/metrics.jsonl").read_bytes() == (tmp_path / "optimizer/metrics.jsonl").read_bytes()
    assert weights(tmp_path / "none", 2) == weights(tmp_path / "optimizer", 2)


def test_micro_batches_add_up(whole, tmp_path):
    train(tmp_path / "run", train__micro_batch=4)
    for a, b in zip(metrics(tmp_path / "run"), metrics(whole)):
        assert a["num_targets"] == b["num_targets"]
        assert abs(a["loss"] - b["loss"]) < 1e-4, (a, b)


def kill_when(run, text, delay, sig, config=STAGE1, more=None):
    """Starts the run and sends `sig` `delay` seconds after `text` appeared; the exit code."""
    process = subprocess.Popen([MGM, "train", config, *options(run, **(more or {}))], cwd=ROOT,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if text in line:
            time.sleep(delay)
            process.send_signal(sig)
            break
    process.stderr.read()
    return process.wait(timeout=120)


def kill_points():
    if FULL:
        return [(f"step {k}/", d) for k in range(1, STEPS + 1) for d in (0, 0.03, 0.08)] + [
            ("checkpoint at step 3", d) for d in (0, 0.002, 0.01)]
    return [("step 2/", 0), ("step 4/", 0.02), ("checkpoint at step 6", 0)]


@pytest.mark.parametrize("text,delay", kill_points())
def test_kill_9_and_the_same_line_again(whole, tmp_path, text, delay):
    run = tmp_path / "run"
    kill_when(run, text, delay, signal.SIGKILL)
    train(run)
    assert_same_run(run, whole)


def test_killed_again_and_again(whole, tmp_path):
    """Kills at random moments, also while a checkpoint is being written."""
    run = tmp_path / "run"
    draw = random.Random(5)
    for _ in range(12 if FULL else 4):
        process = subprocess.Popen([MGM, "train", STAGE1, *options(run, checkpoint__every_steps=1)], cwd=ROOT,
                                   stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    train(run, checkpoint__every_steps=1)
    assert_same_run(run, whole)


@pytest.mark.parametrize("sig,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_signal_saves_and_the_run_goes_on(whole, tmp_path, sig, code):
    run = tmp_path / "run"
    assert kill_when(run, "step 4/", 0, sig) == code
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, len(steps) + 1)) and 4 <= len(steps) < STEPS
    assert (run / "checkpoints" / f"step_{len(steps)}").is_dir()
    train(run)
    assert_same_run(run, whole)


def test_stage2_resumes_to_the_bit(whole, stage2_options, tmp_path):
    train(tmp_path / "whole", STAGE2, **stage2_options)
    run = tmp_path / "killed"
    kill_when(run, "step 5/", 0.05, signal.SIGKILL, STAGE2, stage2_options)
    train(run, STAGE2, **stage2_options)
    assert_same_run(run, tmp_path / "whole")


def test_complete_run_is_left_alone(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    assert "complete at step 8 of 8" in train(whole).stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_projector_is_rewritten_when_it_is_missing(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "mm_projector.bin").unlink()
    train(run)
    assert (run / "mm_projector.bin").read_bytes() == (whole / "mm_projector.bin").read_bytes()


def test_second_run_on_a_live_folder_is_refused(tmp_path):
    run = tmp_path / "run"
    first = subprocess.Popen([MGM, "train", STAGE1, *options(run, train__max_steps=500)], cwd=ROOT,
                             stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if "step 1/" in line:
            break
    second = train(run, train__max_steps=500, code=1)
    assert "run folder" in second.stderr and str(run) in second.stderr
    first.kill()
    first.wait()


def test_metrics_can_be_followed(tmp_path):
    """Every finished step is a whole line of the file, long before a checkpoint."""
    run = tmp_path / "run"
    process = subprocess.Popen([MGM, "train", STAGE1, *options(run, train__max_steps=500, checkpoint__every_steps=0)],
                               cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "step 4/" in line:
            break
    text = (run / "metrics.jsonl").read_text()
    process.kill()
    process.wait()
    assert text.endswith("\n") and text.count("\n") >= 3


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_damaged_checkpoint_is_named_and_an_older_one_offered(whole, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    victim = run / "checkpoints" / "step_8" / "rank_0.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    error = train(run, code=4).stderr
    assert "rank_0.safetensors" in error and "step_6" in error
    mgm("train", STAGE1, *options(run), "--resume", run / "checkpoints" / "step_6")
    assert_same_run(run, whole)


def test_checkpoint_of_another_config_is_refused_with_the_keys(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    error = train(run, optimizer__lr=0.5, train__seed=3, code=4).stderr
    assert "optimizer.lr: 0.002 -> 0.5" in error and "train.seed: 1 -> 3" in error
    assert "--accept-changes" in error


def test_resume_never_refuses_an_old_run(whole):
    error = mgm("train", STAGE1, *options(whole), "--resume", "never", code=4).stderr
    assert "step 8" in error


def test_frozen_weights_that_changed_are_refused(whole, stage2_options, tmp_path):
    run = tmp_path / "run"
    projector = tmp_path / "mm_projector.bin"
    shutil.copy(whole / "mm_projector.bin", projector)
    train(run, STAGE2, model__projector__path=str(projector))
    train(tmp_path / "other", train__seed=9)  # other random towers
    shutil.copy(tmp_path / "other" / "mm_projector.bin", projector)
    # A finished run is left alone, so ask for the export, which needs the frozen weights again.
    error = mgm("export", run, "--out", tmp_path / "model", code=4).stderr
    assert "frozen weights" in error and not (tmp_path / "model").exists()


def test_full_disk_is_an_error_and_keeps_the_older_checkpoint(whole, tmp_path):
    """A file size limit makes every write of a checkpoint fail half-way, as a full disk does."""
    run = tmp_path / "run"
    train(run, train__max_steps=STEPS, checkpoint__every_steps=3, checkpoint__keep=5)
    shutil.rmtree(run / "checkpoints" / "step_8")
    size = (run / "checkpoints" / "step_6" / "rank_0.safetensors").stat().st_size

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = mgm("train", STAGE1, *options(run, checkpoint__keep=5), code=1, preexec_fn=limit)
    assert "rank_0.safetensors" in done.stderr and "File too large" in done.stderr
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_3", "step_6"]
    train(run, checkpoint__keep=5)
    assert_same_run(run, whole)


def test_output_folder_that_cannot_be_written():
    error = train("/proc/no/such/place", code=1).stderr
    assert "/proc/no" in error


def test_tokenizer_of_another_vocabulary(tmp_path):
    error = train(tmp_path / "run", model__llm__vocab_size=1000, code=2).stderr
    assert "1024" in error and "1000" in error and "vocab_size" in error


def test_config_of_another_width_than_the_weights(whole, tmp_path):
    error = train(tmp_path / "run", STAGE2, model__projector__path=str(whole / "mm_projector.bin"),
                  model__llm__hidden_size=64, code=4).stderr
    assert "mm_projector" in error and "[128" in error and "[64" in error


def test_nan_in_a_weight_file_is_refused_by_name(whole, tmp_path):
    content = torch.load(whole / "mm_projector.bin", weights_only=True)
    content["model.mm_projector.0.weight"][1, 2] = float("nan")
    torch.save(content, tmp_path / "nan.bin")
    error = train(tmp_path / "run", STAGE2, model__projector__path=str(tmp_path / "nan.bin"), code=4).stderr
    assert "model.mm_projector.0.weight" in error and "1 NaN" in error


def test_indivisible_batches_name_legal_sizes(tmp_path):
    error = train(tmp_path / "run", train__micro_batch=3, code=2).stderr
    assert "micro_batch" in error and ("2" in error and "4" in error)


def test_paths_where_nothing_is_are_named_with_their_places(tmp_path):
    error = mgm("train", "configs/stage1/vicuna_7b.yaml", "--set", f"run.dir={tmp_path / 'run'}", code=2).stderr
    for key in ("model.llm.path", "model.vision_tower.path", "model.convnext.path", "data.sources[0].annotations"):
        assert f"{key}: " in error, error
    assert f"no such file or folder, seen from {ROOT}" in error and "base/clip_l_336.yaml:" in error
    assert not (tmp_path / "run").exists()


def test_rule_without_a_match_names_its_place(tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text(f"extends: {ROOT}/{STAGE1}\nrun:\n  dir: {tmp_path}/run\ntrain:\n  rules:\n"
                      "    - match: model.mm_projektor.*\n")
    error = mgm("train", config, "--plan", code=2).stderr
    assert f"{config}:6:14: train.rules[0].match" in error and "mm_projector" in error


def test_not_finite_loss_stops_with_its_own_code(tmp_path):
    error = train(tmp_path / "run", model__llm__init_std=1000, code=6).stderr
    assert "error: step 1: loss" in error and "Its 4 samples: " in error and "not updated" in error


def test_all_ranks_samples_of_a_step_that_is_not_finite_are_named(tmp_path):
    """The same whoever computed them; places stand in for ids that are not there."""
    data = tmp_path / "data.json"
    records = json.loads((ROOT / "data/embedded/stage1_train.json").read_text())[:6]
    del records[3]["id"]
    data.write_text(json.dumps(records))
    more = dict(model__llm__init_std=1000, data__sources=f"[{{annotations: {data}, images: {ROOT}/data/embedded/images}}]")
    alone = train(tmp_path / "one", code=6, **more).stderr
    two = mgm("launch", "--nproc", 2, "--", "train", STAGE1, *options(tmp_path / "two", **more), code=6).stderr
    named = [re.search(r"Its 4 samples: (.*?)\. The weights", text)[1].split(", ") for text in (alone, two)]
    known = {record.get("id", f"{data}: record 3") for record in records}
    assert named[0] == named[1] and len(named[0]) == 4 and set(named[0]) <= known


def test_a_run_in_which_nothing_trains_is_refused(tmp_path):
    config = tmp_path / "part.yaml"
    config.write_text("train:\n  seed: 4\n")
    mgm("config", "check", config)  # may be meant as a part of others
    error = mgm("train", config, "--set", f"run.dir={tmp_path / 'run'}", code=2).stderr
    assert f"{config}:2:3: train.rules: is not set, so that nothing would train" in error
    error = train(tmp_path / "run", train__rules=[], code=2).stderr
    assert "--set train.rules=[]: train.rules: is empty, so that nothing would train" in error
    assert not (tmp_path / "run").exists()


def test_fewer_steps_than_the_run_has_made(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = (run / "metrics.jsonl").read_bytes()
    done = mgm("train", STAGE1, *options(run, train__max_steps=5), "--accept-changes", code=2)
    assert f"{run}/checkpoints/step_8 is of step 8, the config asks for 5 (train.max_steps)" in done.stderr
    assert "has passed that already" in done.stderr and "complete" not in done.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def both_stages(tmp_path):
    config = tmp_path / "both.yaml"
    config.write_text(f"""
stages:
  - extends: {ROOT}/{STAGE1}
    run: {{dir: {tmp_path}/one}}
  - extends: {ROOT}/{STAGE2}
    run: {{dir: {tmp_path}/two}}
    model: {{projector: {{path: {tmp_path}/one/mm_projector.bin}}}}
train: {{max_steps: 3, global_batch: 4, micro_batch: 4, threads: 1}}
checkpoint: {{every_steps: 1, keep: 10}}
""")
    return config


def test_two_stages_in_one_file(tmp_path):
    mgm("train", both_stages(tmp_path))
    assert len(metrics(tmp_path / "one")) == 3 and len(metrics(tmp_path / "two")) == 3


def test_resume_of_a_file_of_stages_is_for_the_stage_it_is_of(tmp_path):
    config, one, two = both_stages(tmp_path), tmp_path / "one", tmp_path / "two"
    mgm("train", config)
    lines = [(run / "metrics.jsonl").read_bytes() for run in (one, two)]

    def last_start(run):
        start = json.loads((run / "run.json").read_text())["starts"]
        return len(start), start[-1]["from_step"]

    mgm("train", config, "--resume", two / "checkpoints" / "step_1")
    assert last_start(one) == (1, 0) and last_start(two) == (2, 1)
    mgm("train", config, "--resume", one / "checkpoints" / "step_2")
    assert last_start(one) == (2, 2) and last_start(two) == (2, 1)
    shutil.copytree(two / "checkpoints" / "step_2", tmp_path / "elsewhere")  # known by its config
    mgm("train", config, "--resume", tmp_path / "elsewhere")
    assert last_start(one) == (2, 2) and last_start(two) == (3, 2)
    assert [(run / "metrics.jsonl").read_bytes() for run in (one, two)] == lines


def test_resume_of_none_of_the_stages(whole, tmp_path):
    config = both_stages(tmp_path)
    for folder, text in ((whole / "checkpoints" / "step_8", "of none of the stages"), (tmp_path / "no", "no such checkpoint folder")):
        error = mgm("train", config, "--resume", folder, code=4).stderr
        assert f"--resume {folder}: {text}" in error
    assert not (tmp_path / "one").exists()


def test_closed_standard_streams(whole, tmp_path):
    """Whatever is opened must not take the numbers of the log and of standard output."""
    run = tmp_path / "run"
    command = " ".join(map(str, [MGM, "train", STAGE1, *options(run)]))
    assert subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], cwd=ROOT).returncode == 0
    assert_same_run(run, whole)
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    # What is asked for and cannot be printed is an error as before.
    assert subprocess.run(["sh", "-c", f"{MGM} config show {STAGE1} >&-"], cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 1


def test_a_closed_terminal_or_pipe_ends_a_run_without_a_save_and_the_same_line_goes_on(whole, tmp_path):
    """SIGHUP and SIGPIPE do what the system does with them, as docs/training.md says."""
    run = tmp_path / "run"
    assert kill_when(run, "step 4/", 0, signal.SIGHUP) == -signal.SIGHUP
    process = subprocess.Popen([MGM, "train", STAGE1, *options(run)], cwd=ROOT, stderr=subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()  # the next line of the log has nobody to read it
    assert process.wait(timeout=120) == -signal.SIGPIPE
    train(run)
    assert_same_run(run, whole)
