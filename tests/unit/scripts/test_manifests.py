"""scripts/k8s against the schemas of Kubernetes 1.31 (kubernetes-validate carries them), and scripts/*.sh against
shellcheck where it is installed. The PyTorchJob is a custom resource whose schema belongs to the training operator:
of it only the pod templates are checked here."""
import copy
import pathlib
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
K8S = ROOT / "scripts" / "k8s"
VERSION = "1.31.0"


def documents(name):
    return list(yaml.safe_load_all((K8S / name).read_text()))


def check(resource):
    kubernetes_validate.validate(resource, VERSION, strict=True)


def as_pod(template):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mgm"}, "spec": template["spec"]}


def exit_codes():
    """{name: number} of base/error.h."""
    text = (ROOT / "csrc/base/error.h").read_text()
    return {name: int(number) for name, number in re.findall(r"^\s+(k\w+) = (\d+),", text, re.M)}


def test_indexed_job():
    service, job = documents("indexed_job.yaml")
    check(service)
    check(job)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
    # Pods find each other by the names that service and subdomain give them.
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--master={job['metadata']['name']}-0.{pod['subdomain']}:29400" in container["args"]
    assert f"--nnodes={spec['completions']}" in container["args"]
    assert f"--nproc={container['resources']['limits']['nvidia.com/gpu']}" in container["args"]
    # The rules speak of our exit codes.
    codes = exit_codes()
    rules = {rule["action"]: rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule}
    assert rules["FailJob"]["values"] == [codes[k] for k in ("kConfig", "kData", "kCheckpoint", "kNonFinite")]
    assert rules["Ignore"]["values"] == [codes[k] for k in ("kSigint", "kSigusr1", "kSigterm")]
    assert {rule["containerName"] for rule in rules.values()} == {container["name"]}


def test_pytorch_job():
    (job,) = documents("pytorch_job.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    for replica in replicas.values():
        check(as_pod(replica["template"]))
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch" and container["ports"][0]["name"] == "pytorchjob-port"
        assert f"--nnodes={sum(r['replicas'] for r in replicas.values())}" in container["args"]
        assert f"--nproc={container['resources']['limits']['nvidia.com/gpu']}" in container["args"]


@pytest.mark.parametrize("path,value", [
    (("spec", "completions"), "two"),
    (("spec", "completionsMode"), "Indexed"),
    (("spec", "template", "spec", "containers", 0, "arg"), ["x"]),
    (("spec", "template", "spec", "volumes", 0, "persistentVolumeClaim"), {}),
    (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), ["2"]),
])
def test_a_mistake_is_found(path, value):
    job = copy.deepcopy(documents("indexed_job.yaml")[1])
    at = job
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed (apt-get install shellcheck)")
def test_shell_scripts():
    scripts = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("tests/**/*.sh"), ROOT / ".ci/run"]
    assert ROOT / "scripts/launch_slurm.sh" in scripts
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
