"""Ranks of a job with a folder each, in which what one of them sees can be made to differ."""
import json
import os
import shutil
import subprocess

from mgm_binary import MGM, ROOT, sets
from ranks import free_port

IMAGES = ROOT / "data/embedded/images"
RECORDS = json.loads((ROOT / "data/embedded/stage1_train.json").read_text())


class Job:
    """Ranks with a folder each, in which the same relative paths are links to shared things."""

    def __init__(self, folder, model, world=3):
        self.folder, self.model = folder, model
        self.values = {"run.dir": "runs/x", "data.workers": 1, "train.threads": 1, "train.global_batch": 12,
                       "train.micro_batch": 2, "text.tokenizer": "tokenizer"}
        self.values["data.sources"] = json.dumps([{"annotations": "data.json", "images": str(IMAGES)}])
        self.binary, self.env = [], []
        self.own = []  # --set values of one rank
        self.args = ["--wait", "60"]
        self.absent = set()
        self.stopped = set()  # ranks that end when they are killed
        self.during = lambda processes: None  # while they run
        shared = folder / "shared"
        (shared / "runs").mkdir(parents=True)
        shutil.copytree(ROOT / "data/embedded/tokenizer", shared / "tokenizer")
        (shared / "data.json").write_text(json.dumps(RECORDS[:12]))
        shutil.copytree(model, shared / "model")
        (shared / "config.yaml").write_text(f"extends: {ROOT}/configs/tiny/stage1.yaml\n")
        for rank in range(world):
            self.add(rank)

    def add(self, rank):
        self.world = rank + 1
        self.binary.append(MGM)
        self.env.append({})
        self.own.append({})
        self.at(rank).mkdir()
        for path in (self.folder / "shared").iterdir():
            (self.at(rank) / path.name).symlink_to(path)

    def at(self, rank):
        return self.folder / f"rank_{rank}"

    def replace(self, rank, name):
        """The rank's own copy of a shared thing."""
        path = self.at(rank) / name
        whole = path.resolve()
        path.unlink()
        shutil.copytree(whole, path) if whole.is_dir() else shutil.copy(whole, path)
        return path

    def start(self, command="doctor", args=None):
        port = free_port()
        processes = []
        for rank in range(self.world):
            if rank in self.absent:
                continue
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(self.world), "LOCAL_RANK": str(rank),
                   "LOCAL_WORLD_SIZE": str(self.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "OMP_NUM_THREADS": "1", **self.env[rank]}
            line = [self.binary[rank], command, "config.yaml", *sets({**self.values, **self.own[rank]}),
                    *(self.args if args is None else args)]
            processes.append(subprocess.Popen(list(map(str, line)), cwd=self.at(rank), env=env, text=True,
                                              stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        out = []
        try:
            self.during(processes)
            for rank, process in enumerate(processes):
                if rank in self.stopped:
                    process.kill()
                out.append(process.communicate(timeout=180))
        finally:
            for process in processes:
                process.kill()
        return [p.returncode for p in processes], out
