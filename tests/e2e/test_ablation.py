"""The small HR ablation with the real binary, everything tiny: its configs plan and train what they say, and run.py goes
from data to a report."""
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image, ImageDraw

from mgm_binary import BUILD, ROOT, mgm

sys.path.insert(0, str(ROOT / "tests/bench/ablation"))
import run

ARMS = [f"configs/ablation/small/{arm}.yaml" for arm in run.ARMS]
TINY = {"model.vision_tower.hidden_size": 16, "model.vision_tower.intermediate_size": 32, "model.vision_tower.num_layers": 2,
        "model.vision_tower.num_heads": 2, "train.device": "cpu", "train.threads": 1, "train.max_steps": 2, "train.global_batch": 4,
        "train.micro_batch": 2, "data.workers": 1, "stages[2].text.template": "v1"}
# The language model of stage 0, as wide as the one below.
TINY |= {f"stages[0].model.llm.{key}": value for key, value in {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48,
                                                                "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}.items()}
TINY_HR = {"model.convnext.depths": [1, 1, 1, 1], "model.convnext.dims": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A random language model with the embedded set's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llm"
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                                      max_position_embeddings=1024)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(ROOT / "data/embedded/tokenizer/tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng, records = random.Random(1), []
    for i in range(12):
        picture = Image.new("RGB", (384, 384), "white")
        x, y = rng.randint(0, 300), rng.randint(0, 300)
        ImageDraw.Draw(picture).ellipse([x, y, x + 60, y + 60], fill=("red", "blue")[i % 2])
        picture.save(folder / f"images/{i}.webp")
        records.append({"id": str(i), "image": f"{i}.webp", "task": "objects", "size": (14, 88)[i // 2 % 2], "conversations": [
            {"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": ("red", "blue")[i % 2]}]})
    for name, of in (("pretrain", records[:8]), ("align", records[:8]), ("train", records[:8]), ("heldout", records[8:])):
        (folder / f"{name}.json").write_text(json.dumps(of))
    return folder


@pytest.mark.parametrize("config", ARMS)
def test_what_an_arm_trains(config, llm):
    """Everything in stages 0 and 2, everything but the language model in stage 1."""
    text = mgm("train", config, "--plan", "--set", f"model.llm.path={llm}", "--set", f"stages[0].text.tokenizer={llm}").stdout
    tables = re.findall(r"^part +parameters +trained\n((?:.+\n)+)", text, re.M)
    assert len(tables) == 3
    for stage, table in enumerate(tables):
        rows = {name.strip(): (count, trained) for name, count, trained in
                re.findall(r"^(\S.*?) +([\d,]+) +([\d,]+|frozen)$", table, re.M)}
        rows.pop("total")
        assert ("HR encoder (convnext)" in rows) == ("patch info mining" in rows) == ("hr_off" not in config)
        for name, (count, trained) in rows.items():
            frozen = stage == 1 and name.startswith("llm")
            assert trained == ("frozen" if frozen else count), f"stage {stage}: {name}"


def test_arms_differ_in_one_thing():
    """What `config show` prints of the arms, without their folders, differs in the one key."""
    shown = {}
    for config in ARMS:
        lines = mgm("config", "show", config, "--plain").stdout.splitlines()
        shown[pathlib.Path(config).stem] = [line for line in lines if "runs/ablation/hr_" not in line]
    on, upsampled, off = (shown[arm] for arm in ("hr_on", "hr_upsampled", "hr_off"))
    assert len(on) == len(upsampled) == len(off)
    changes = {arm: {line.strip() for a, line in zip(on, lines) if a != line} for arm, lines in shown.items()}
    assert changes == {"hr_on": set(), "hr_upsampled": {"hr_source: upsampled_lr"}, "hr_off": {"hr_encoder: none"}}


def test_mining_maps_of_a_real_page(llm, data, tmp_path):
    one = run.Run(run.argparse.Namespace(out=tmp_path, data=data, llm=llm, set=[f"{key}={value}" for key, value in (TINY | TINY_HR | {"stages[1].train.seed": 7}).items()]),
                  "hr_on", 1)
    mgm(*one.train_command())
    # Stage 1 goes on from the towers of stage 0: two steps move no weight far, weights drawn from its own seed would be.
    towers = [torch.load(one.folder / stage / "mm_projector.bin", weights_only=True) for stage in ("stage0", "stage1")]
    assert towers[0].keys() == towers[1].keys() and any("vision_tower_aux" in name for name in towers[0])
    fresh = max((a - b).abs().max().item() for name, a in towers[0].items() if (b := towers[1][name]).dim() > 1)
    assert 0 < fresh < 0.01
    mgm("export", one.folder / "stage2", "--out", tmp_path / "model")
    page = tmp_path / "report.html"
    mgm("report", tmp_path / "model", "--heldin", data / "heldout.json", "--images", data / "images", "--out", page)
    maps = run.mining_maps(page.read_text(encoding="utf-8"))
    assert [name for name, _, _ in maps] == ["8.webp", "9.webp", "10.webp", "11.webp"]
    assert all(uri.startswith("data:image/png;base64,") and len(uri) > 200 for _, *uris in maps for uri in uris)


def test_from_data_to_report(llm, data, tmp_path):
    if "--batch" not in mgm("chat", "--help").stdout:
        pytest.skip("NOT RUN: this mgm has no `chat --batch`")
    shutil.copytree(data, tmp_path / "data")

    def bench(action, *more):
        command = [sys.executable, ROOT / "tests/bench/ablation/run.py", action, "--out", tmp_path, *more]
        done = subprocess.run(command, capture_output=True, text=True, env={**run.os.environ, "MGM_BUILD_DIR": str(BUILD), "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    words = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    hr = [word for key, value in TINY_HR.items() for word in ("--set", f"{key}={value}")]
    assert "3 of 3 runs done" in bench("run", "--seeds", "1", "--llm", llm, "--max-new-tokens", "4", *words, *hr)
    assert "| objects | all | 4 |" in bench("report")
    page = (tmp_path / "report/index.html").read_text()
    assert page.count('<div class="pair">') == 2 * 4 and "Which colour?" in page
