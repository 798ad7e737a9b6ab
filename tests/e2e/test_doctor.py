"""`mgm doctor` with seeded faults, each of which must be found and named, and the short form at every start.

ALONE and TOGETHER are the tables of faults: name -> (how it is seeded, expected exit code, expected words).
"""
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file, save_file

from job import IMAGES, RECORDS, Job
from mgm_binary import MGM, ROOT, mgm, sets
from ranks import held

HAS_GPU = os.path.exists("/dev/nvidiactl")


# ---- one rank -----------------------------------------------------------------------------------

class Case:
    """What a fault may change: --set values, options, the environment of the process."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.run = folder / "run"
        self.sets = {"run.dir": str(self.run)}
        self.args = []
        self.before = None  # called in the child before it becomes mgm
        self.keep = []  # open files

    def data(self, records, text=None):
        path = self.folder / "data.json"
        path.write_text(json.dumps(records) if text is None else text)
        self.sets["data.sources"] = json.dumps([{"annotations": str(path), "images": str(IMAGES)}])

    def pretrained(self, change=None):
        """Weights from a model folder; `change` alters the dict of its tensors."""
        path = self.model
        if change:
            path = self.folder / "model"
            shutil.copytree(self.model, path)
            file = path / "model.safetensors"
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, {"format": "pt"})
        self.sets |= {"model.init": "pretrained", "model.path": str(path)}

    def trained(self):
        """A run folder with a checkpoint."""
        mgm("train", "configs/tiny/stage1.yaml", *sets({**self.sets, "train.max_steps": 1, "train.global_batch": 2,
                                                         "train.micro_batch": 2}))
        self.sets |= {"train.max_steps": 1, "train.global_batch": 2, "train.micro_batch": 2}
        return self.run / "checkpoints" / "step_1"


def with_record(case, **changes):
    records = [dict(record) for record in RECORDS[:6]]
    records[3] = {**records[3], **changes}
    case.data(records)


def corrupt_image(case):
    images = case.folder / "images"
    images.mkdir()
    record = dict(RECORDS[0], image="broken.png")
    whole = (IMAGES / RECORDS[0]["image"]).read_bytes()
    (images / "broken.png").write_bytes(whole[:len(whole) // 2])
    case.data([record])
    case.sets["data.sources"] = json.dumps([{"annotations": str(case.folder / "data.json"), "images": str(images)}])


def image_folder_missing(case):
    case.data(RECORDS[:3])
    case.sets["data.sources"] = case.sets["data.sources"].replace(str(IMAGES), str(case.folder / "no_images"))


def locked(case):
    case.run.mkdir()
    lock = open(case.run / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    case.keep.append(lock)


def below_a_file(case):
    (case.folder / "file").write_text("")
    case.sets["run.dir"] = str(case.folder / "file" / "run")


def cut_checkpoint(case):
    shard = case.trained() / "rank_0.safetensors"
    os.truncate(shard, shard.stat().st_size // 2)


def other_positions(tensors):
    name = next(n for n in tensors if n.endswith("position_embedding.weight"))
    tensors[name] = tensors[name].new_zeros(257, tensors[name].shape[1])


def with_nan(tensors):
    name = next(n for n in tensors if n.endswith("mlp.up_proj.weight"))
    tensors[name][0, 0] = float("nan")


def few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def setting(**values):
    return lambda case: case.sets.update({key.replace("__", "."): value for key, value in values.items()})


def attribute(**values):
    return lambda case: case.__dict__.update(values)


def both(*seeds):
    return lambda case: [seed(case) for seed in seeds]


QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ALONE = {
    # config
    "unknown_key": (setting(train__sede=1), 2, "train.sede: unknown key; did you mean 'seed'?"),
    "rule_without_a_match": (setting(train__rules='[{"match": "model.nothing.*"}]'), 2, "matches no parameter"),
    "recompute_without_a_match": (setting(train__recompute='[{"match": "model.lairs.*"}]'), 2,
                                  "'model.lairs.*' matches no block"),
    "no_run_dir": (setting(run__dir='""'), 2, "run.dir: is required"),
    # run folder and disk
    "run_dir_below_a_file": (below_a_file, 1, "run.dir: "),
    "run_dir_locked": (locked, 1, "another process is using it"),
    "disk_too_small": (setting(checkpoint__keep=100_000_000), 1, "100000001 checkpoints"),
    "checkpoint_of_another_config": (both(Case.trained, setting(train__seed=2)), 4, "train.seed: 1 -> 2"),
    "checkpoint_cut": (cut_checkpoint, 4, "rank_0.safetensors"),
    # tokenizer
    "tokenizer_missing": (setting(text__tokenizer="not/there"), 3, "not/there"),
    "vocabulary_too_large": (setting(model__llm__vocab_size=512), 2, "model.llm.vocab_size is 512"),
    "template_of_another_model": (setting(text__template="gemma"), 2, "'<end_of_turn>', which is no token"),
    # weights
    "model_missing": (setting(model__init="pretrained", model__path="not/a/model"), 4,
                      "model.path: not/a/model is not there"),
    "llm_and_tower_missing": (setting(model__init="pretrained", model__llm__path="no/llm",
                                      model__vision_tower__path="no/clip", model__convnext__path="no/conv"), 4,
                              "model.vision_tower.path: no/clip is not there"),
    "tower_forgotten": (setting(model__init="pretrained", model__llm__path=".", model__convnext__path="."), 2,
                        "model.vision_tower.path: is empty, so the tower is drawn from train.seed, but "),
    "projector_missing": (setting(model__projector__path="runs/none/mm_projector.bin"), 4,
                          "model.projector.path: runs/none/mm_projector.bin is not there"),
    "clip_of_another_size": (lambda c: c.pretrained(other_positions), 4, "16 x 16 patches and the class token"),
    "vocabulary_of_other_weights": (both(Case.pretrained, setting(model__llm__vocab_size=1100)), 2,
                                    "model.llm.vocab_size: is 1100, but "),
    "tensor_missing": (lambda c: c.pretrained(lambda t: t.pop("model.norm.weight")), 4, "model.norm.weight"),
    "tensor_too_many": (lambda c: c.pretrained(lambda t: t.update(stray=t["model.norm.weight"].clone())), 4, "stray"),
    "nan_in_a_weight": (both(lambda c: c.pretrained(with_nan), attribute(args=["--deep"])), 4, "1 NaN"),
    # data
    "no_sources": (setting(data__sources="[]"), 2, "data.sources"),
    "annotations_missing": (setting(data__sources='[{"annotations": "no.json", "images": "."}]'), 3, "no.json"),
    "annotations_cut": (lambda c: c.data(None, json.dumps(RECORDS[:4])[:-40]), 3, "data.json:1:"),
    "annotations_empty": (lambda c: c.data([]), 3, "data"),
    "malformed_record": (lambda c: with_record(c, conversations="none"), 3, "1 malformed record"),
    "other_number_of_samples": (setting(data__expected_samples=558128), 0, "data.expected_samples is 558,128"),
    "image_folder_missing": (image_folder_missing, 3, "no_images"),
    "image_missing": (lambda c: with_record(c, image="gone.png"), 3, "missing image; the first: "),
    "image_corrupt": (corrupt_image, 3, "broken image; the first: "),
    "markers_without_pictures": (lambda c: with_record(c, conversations=[
        {"from": "human", "value": "<image><image>\nWhat is it?"}, {"from": "gpt", "value": "A box."}]), 3,
        "image marker mismatch; the first: "),
    "nothing_to_learn": (lambda c: with_record(c, conversations=[QUESTION]), 3, "1 of all 6 samples: "),
    "empty_answer": (lambda c: with_record(c, conversations=[QUESTION, {"from": "gpt", "value": ""}]), 3,
                     "unusable conversation; the first: "),
    "too_long": (setting(text__max_length=66), 3, "cut by the length limit; the first: "),
    # host
    "few_open_files": (attribute(before=few_files), 1, "ulimit -n is 128"),
    "little_memory": (setting(train__global_batch=65536, train__micro_batch=65536, data__prefetch=1024), 1,
                      "host memory: 1 rank needs "),
    "many_workers": (setting(data__workers=512), 0, "512 data.workers x 1 ranks = 512 threads"),
    "no_gpu": (setting(train__device="cuda"), 2, "train.device: cuda, but"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole model in the published layout."""
    folder = tmp_path_factory.mktemp("model")
    values = {"run.dir": str(folder / "run"), "train.max_steps": 1, "train.global_batch": 2, "train.micro_batch": 2}
    mgm("train", "configs/tiny/stage1.yaml", *sets(values))
    mgm("export", folder / "run", "--out", folder / "model")
    return folder / "model"


def lines(report, level):
    return [line for line in report.splitlines() if line.startswith(level)]


@pytest.mark.parametrize("name", [n for n in ALONE if not (HAS_GPU and n == "no_gpu")])
def test_a_fault_of_one_rank_is_found_and_named(tmp_path, model, name):
    seed, code, words = ALONE[name]
    case = Case(tmp_path, model)
    seed(case)
    done = mgm("doctor", "configs/tiny/stage1.yaml", *sets(case.sets), *case.args, code=code, preexec_fn=case.before)
    bad = done.stdout[:done.stdout.find("\nok ")] if "\nok " in done.stdout else done.stdout
    assert words in bad, done.stdout + done.stderr
    assert lines(done.stdout, "FAIL" if code else "warn")


def test_nothing_is_wrong_with_a_healthy_run(tmp_path, model):
    run = tmp_path / "runs" / "new"
    for values in ({}, {"model.init": "pretrained", "model.path": str(model)}):
        done = mgm("doctor", "configs/tiny/stage1.yaml", "--samples", "all", "--deep",
                   *sets({"run.dir": str(run), **values}))
        assert not lines(done.stdout, "FAIL") and not lines(done.stdout, "warn"), done.stdout
        assert "0 failures, 0 warnings" in done.stdout
        assert not (tmp_path / "runs").exists()  # nothing is left behind


def test_a_run_to_go_on_with_is_healthy(tmp_path):
    options = sets({"run.dir": str(tmp_path / "run"), "train.max_steps": 3})
    mgm("train", "configs/tiny/stage1.yaml", *options)
    report = mgm("doctor", "configs/tiny/stage1.yaml", *options).stdout
    assert re.search(r"ok +checkpoint +the run goes on from \S+/step_3\n", report), report


def test_stages_of_a_file_are_examined_one_after_another(tmp_path):
    config = tmp_path / "both.yaml"
    config.write_text(f"extends: {ROOT}/configs/tiny/stage1.yaml\nstages:\n"
                      f"  - run: {{dir: {tmp_path}/one}}\n"
                      f"  - run: {{dir: {tmp_path}/two}}\n    model: {{projector: {{path: {tmp_path}/none.bin}}}}\n")
    out = mgm("doctor", config, code=4).stdout
    assert out.index("stage 1 of 2") < out.index("0 failures") < out.index("stage 2 of 2") < out.index("none.bin")


# ---- several ranks ------------------------------------------------------------------------------

def own(rank, **values):
    return lambda job: job.own[rank].update({key.replace("__", "."): value for key, value in values.items()})


def everywhere(**values):
    return lambda job: job.values.update({key.replace("__", "."): value for key, value in values.items()})


def environment(rank, **values):
    return lambda job: job.env[rank].update(values)


def other_data(job):
    job.replace(1, "data.json").write_text(json.dumps(RECORDS[1:13]))


def other_tokenizer(job):
    with open(job.replace(2, "tokenizer") / "tokenizer_config.json", "a") as file:
        file.write("\n")


def other_binary(job):
    job.binary[1] = job.folder / "mgm_other"
    shutil.copy(MGM, job.binary[1])
    with open(job.binary[1], "ab") as file:
        file.write(b"\0")


def pretrained(job):
    job.values |= {"model.init": "pretrained", "model.path": "model"}


def other_weights(change):
    """change(tensors) on rank 1's copy of the model."""
    def seed(job):
        pretrained(job)
        file = job.replace(1, "model") / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
    return seed


def other_dtype(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()


def scaled(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2


def one_other_value(tensors):
    """Half way between two of the places that are looked at without --deep."""
    values = tensors["model.embed_tokens.weight"].view(-1)
    assert values.nbytes > 100_000
    values[values.numel() // 2] += 1


def own_run_dir(job):
    job.replace(2, "runs")


def weights_missing(job):
    pretrained(job)
    (job.at(2) / "model").unlink()


def config_missing(job):
    (job.at(1) / "config.yaml").unlink()


def uneven_nodes(job):
    """Nodes of 2, 1 and 1 ranks."""
    job.add(3)
    job.values |= {"dist.mode": "hybrid", "train.global_batch": 16, "dist.timeout_s.start": 20}
    for rank, (node, local, of) in enumerate([(0, 0, 2), (0, 1, 2), (1, 0, 1), (2, 0, 1)]):
        job.env[rank] = {"GROUP_RANK": str(node), "GROUP_WORLD_SIZE": "3", "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(of)}


TOGETHER = {
    "another_config_value": (own(1, train__seed=8), 2, "rank 1 on {host}: the config differs from rank 0's: "
                             "train.seed: 8 instead of 1"),
    "first_rank_is_the_odd_one": (own(0, optimizer__lr=3e-3), 2, "rank 0 on {host}: the config differs from rank 1's"),
    "another_mode": (own(2, dist__mode="zero3"), 2, "dist.mode: zero3 instead of"),
    "config_missing_on_a_rank": (config_missing, 2, "config.yaml"),
    "another_data_file": (other_data, 3, "rank 1 on {host}: the data set differs from rank 0's"),
    "data_missing_on_a_rank": (lambda j: (j.at(1) / "data.json").unlink(), 3, "[rank 1]"),
    "another_tokenizer": (other_tokenizer, 3, "rank 2 on {host}: the tokenizer differs from rank 0's"),
    "another_program": (other_binary, 5, "rank 1 on {host}: the program differs from rank 0's"),
    "other_weights_by_header": (other_weights(other_dtype), 4, "rank 1 on {host}: the weight files differs"),
    "other_weights_by_content": (other_weights(scaled), 4, "rank 1 on {host}: the weight files differs"),
    "other_weights_in_one_value": (lambda j: (other_weights(one_other_value)(j), j.args.append("--deep")), 4,
                                   "rank 1 on {host}: the weight files differs"),
    "weights_missing_on_a_rank": (weights_missing, 4, "model.path: model is not there"),
    "another_run_dir_mount": (own_run_dir, 5, "run.dir runs/x is not one folder: what rank 2 wrote there"),
    "same_local_rank": (environment(2, LOCAL_RANK="1", GROUP_RANK="0", GROUP_WORLD_SIZE="1"), 5, "have the same local rank: 1"),
    "another_number_of_ranks": (both(environment(1, WORLD_SIZE="4", LOCAL_WORLD_SIZE="4"),
                                     everywhere(train__global_batch=24)), 5,
                                "rank 1 on {host}: the number of ranks differs from rank 0's: 4 instead of 3"),
    "a_rank_that_does_not_come": (lambda j: (j.absent.add(2), setattr(j, "args", ["--wait", "20"])), 5,
                                  "rank 2 of 3 did not come within 20 s"),
    "batch_does_not_fit": (everywhere(train__global_batch=16), 2, "16 does not divide into 3 ranks"),
    "leaves_do_not_fit": (everywhere(dist__reduction="strict", train__global_batch=16), 2,
                          "8 leaves cannot be dealt to 3 ranks"),
    "shard_size_does_not_fit": (everywhere(dist__mode="hybrid", dist__shard_size=2), 2, "dist.shard_size: 2"),
    "uneven_nodes": (uneven_nodes, 2, "rank 2 on {host}: the shard group of a node (dist.shard_size: 0) differs from rank 0's: "
                     "1 rank instead of 2 ranks"),
    "slow_links": (lambda j: j.args.extend(["--link", "100000"]), 0, "slowest: rank "),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_a_fault_between_ranks_is_found_and_named(tmp_path, model, name):
    seed, code, words = TOGETHER[name]
    job = Job(tmp_path, model)
    seed(job)
    codes, out = job.start()
    report = out[0][0]
    assert codes == [code] * len(codes), (report, out)
    assert words.format(host=os.uname().nodename) in report, report
    assert all(not other[0] for other in out[1:])  # one list
    assert lines(report, "FAIL" if code else "warn")


def test_nothing_is_wrong_with_healthy_ranks(tmp_path, model):
    job = Job(tmp_path, model)
    job.values["dist.mode"] = "zero3"
    pretrained(job)
    codes, out = job.start()
    report = out[0][0]
    assert codes == [0, 0, 0], out
    assert not lines(report, "FAIL") and not [w for w in lines(report, "warn") if " cores" not in w], report
    for words in ("all agree on the program, torch", "all agree on the data set", "right sums, gathers and exchanges in 3 groups",
                  "GB/s from rank to rank"):
        assert words in report
    assert list((tmp_path / "shared" / "runs").iterdir()) == []


def test_a_rank_that_hangs_is_named_and_not_waited_for_longer_than_said(tmp_path, model):
    job = Job(tmp_path, model)
    (tmp_path / "shared" / "data.json").write_text(json.dumps(RECORDS[:12] * 300))
    # Rank 1 alone builds samples: it is stopped while it does.
    for rank, local in enumerate((1, 0, 2)):
        job.env[rank] = {"LOCAL_RANK": str(local), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
    job.values["dist.timeout_s.start"] = 6
    job.args = ["--wait", "5", "--samples", "all"]
    job.stopped.add(1)

    def stop(processes):
        while not list((tmp_path / "shared" / "runs").glob("x/.shared_*_1")):
            assert processes[1].poll() is None
            time.sleep(0.001)
        processes[1].send_signal(signal.SIGSTOP)

    job.during = stop
    codes, out = job.start()
    assert codes == [5, -9, 5], out
    assert (f"rank 1 on {os.uname().nodename} came and then went silent: not through with its files within 6 s of rank 0 "
            "(the longer of --wait and dist.timeout_s.start)") in out[0][0], out
    assert "links       not tried" in out[0][0]


def test_the_first_rank_that_hangs_is_named_by_the_others(tmp_path, model):
    job = Job(tmp_path, model, world=2)
    job.values["dist.timeout_s.start"] = 3
    job.args = ["--wait", "3"]
    job.stopped.add(0)
    job.during = lambda processes: processes[1].wait(timeout=40)
    with held(tmp_path / "shared" / "runs" / "x" / ".lock"):
        codes, out = job.start()
    assert codes == [-9, 5], out
    assert (f"rank 0 on {os.uname().nodename} came and then went silent: rank 0 did not come to 'connect' within 6 s"
            in out[1][1]), out


def test_faults_are_at_least_thirty():
    assert len(ALONE) + len(TOGETHER) >= 30


# ---- the short form at every start --------------------------------------------------------------

AT_START = {name: TOGETHER[name] for name in (
    "another_config_value", "another_data_file", "another_tokenizer", "another_program", "another_run_dir_mount",
    "same_local_rank", "uneven_nodes", "other_weights_by_header", "other_weights_by_content")}


@pytest.mark.parametrize("name", AT_START)
def test_a_start_is_refused(tmp_path, model, name):
    seed, code, words = AT_START[name]
    job = Job(tmp_path, model)
    seed(job)
    codes, out = job.start("train", args=[])
    assert codes == [code] * job.world, out
    assert words.format(host=os.uname().nodename) in out[0][1], out
    assert not list(tmp_path.glob("*/runs/x/checkpoints")) and not list(tmp_path.glob("*/runs/x/metrics.jsonl"))


def test_a_start_without_room_for_checkpoints_is_refused(tmp_path):
    done = mgm("train", "configs/tiny/stage1.yaml", *sets({"run.dir": str(tmp_path / "run"),
                                                           "checkpoint.keep": 100_000_000}), code=1)
    assert "100000001 checkpoints" in done.stderr


@pytest.mark.parametrize("world", [1, 2])
def test_a_start_without_enough_memory_is_warned_of_and_goes_on(tmp_path, world):
    """A run that is complete, so that the memory is not taken."""
    launch = ["launch", "--nproc", world, "--", "train"] if world > 1 else ["train"]
    values = {"run.dir": tmp_path / "run", "train.max_steps": 1, "train.global_batch": 2, "train.micro_batch": 1,
              "train.threads": 1, "data.workers": 1}
    fits = mgm(*launch, "configs/tiny/stage1.yaml", *sets(values)).stderr
    assert "host memory" not in fits
    values |= {"train.global_batch": 131072, "train.micro_batch": 65536, "data.prefetch": 1024}
    told = mgm(*launch, "configs/tiny/stage1.yaml", *sets(values), "--accept-changes").stderr
    who = rf"rank 0 on {os.uname().nodename}: host memory: 2 ranks need" if world > 1 else "host memory: 1 rank needs"
    assert len(re.findall(rf"W {who} [\d.]+ TiB .*; ask for more memory", told)) == 1, told
    assert "complete at step 1 of 1" in told
