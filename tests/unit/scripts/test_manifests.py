"""scripts/k8s against the schemas of Kubernetes 1.31 (kubernetes-validate carries them), and scripts/*.sh against
shellcheck where it is installed. The PyTorchJob is a custom resource whose schema belongs to the training operator:
pytorch_job_schema.json has the part of it that the manifest uses; its pod templates are checked as those of a Job."""
import copy
import json
import pathlib
import re
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
K8S = ROOT / "scripts" / "k8s"
VERSION = "1.31.0"
PYTORCH_JOB = json.loads((pathlib.Path(__file__).parent / "pytorch_job_schema.json").read_text())


def documents(name):
    return list(yaml.safe_load_all((K8S / name).read_text()))


def check(resource):
    kubernetes_validate.validate(resource, VERSION, strict=True)


def check_pytorch_job(resource):
    jsonschema.validate(resource, PYTORCH_JOB, cls=jsonschema.Draft202012Validator)
    for replica in resource["spec"]["pytorchReplicaSpecs"].values():
        check({"apiVersion": "batch/v1", "kind": "Job", "metadata": resource["metadata"],
               "spec": {"template": replica["template"]}})


def changed(resource, path, value):
    """A copy with another value at the end of the path."""
    resource = copy.deepcopy(resource)
    at = resource
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return resource


def misspelt(resource, path, name):
    """A copy whose field at the end of the path has another name."""
    resource = copy.deepcopy(resource)
    at = resource
    for key in path[:-1]:
        at = at[key]
    at[name] = at.pop(path[-1])
    return resource


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
    check_pytorch_job(job)
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
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
    with pytest.raises(kubernetes_validate.ValidationError):
        check(changed(documents("indexed_job.yaml")[1], path, value))


RUN_POLICY, REPLICAS = ("spec", "runPolicy"), ("spec", "pytorchReplicaSpecs")
CONTAINER = (*REPLICAS, "Worker", "template", "spec", "containers", 0)


@pytest.mark.parametrize("path,name", [
    (RUN_POLICY, "runpolicy"),
    ((*RUN_POLICY, "backoffLimit"), "backOffLimit"),
    ((*RUN_POLICY, "cleanPodPolicy"), "cleanPodsPolicy"),
    (REPLICAS, "pyTorchReplicaSpecs"),
    ((*REPLICAS, "Master"), "Main"),
    ((*REPLICAS, "Worker"), "Workers"),
    ((*REPLICAS, "Worker", "replicas"), "replica"),
    ((*REPLICAS, "Master", "restartPolicy"), "restartpolicy"),
    ((*REPLICAS, "Worker", "template"), "templates"),
    ((*REPLICAS, "Worker", "template", "spec"), "specs"),
    ((*CONTAINER, "args"), "arg"),
])
def test_a_misspelt_field_of_the_pytorch_job_is_found(path, name):
    (job,) = documents("pytorch_job.yaml")
    told = f"'{name}' was unexpected|'{path[-1]}' is a required property"
    with pytest.raises(jsonschema.ValidationError, match=told):
        check_pytorch_job(misspelt(job, path, name))


@pytest.mark.parametrize("path,value", [
    (("apiVersion",), "kubeflow.org/v2"),
    (("kind",), "PytorchJob"),
    (("metadata", "name"), "7b"),
    ((*RUN_POLICY, "cleanPodPolicy"), "none"),
    ((*RUN_POLICY, "backoffLimit"), "12"),
    ((*REPLICAS, "Master", "restartPolicy"), "Exitcode"),
    ((*REPLICAS, "Worker", "restartPolicy"), "OnError"),
    ((*REPLICAS, "Master", "replicas"), 2),
    ((*REPLICAS, "Worker", "replicas"), 0),
    ((*CONTAINER, "command"), "mgm"),
])
def test_a_wrong_value_of_the_pytorch_job_is_found(path, value):
    (job,) = documents("pytorch_job.yaml")
    with pytest.raises(jsonschema.ValidationError) as found:
        check_pytorch_job(changed(job, path, value))
    assert path[-1] in found.value.absolute_path


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed (apt-get install shellcheck)")
def test_shell_scripts():
    scripts = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("tests/**/*.sh"), ROOT / ".ci/run"]
    assert ROOT / "scripts/launch_slurm.sh" in scripts
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
