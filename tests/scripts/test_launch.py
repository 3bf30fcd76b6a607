"""The launch files: what they mention exists, and what they decide, with stand-ins for Slurm, Kubernetes and gcloud."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from vise_jax import config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
PAGE = ROOT / "docs" / "pods.md"
FILES = [*sorted(LAUNCH.iterdir()), PAGE]
MANIFESTS = list(yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text()))
JOBSET = next(manifest for manifest in MANIFESTS if manifest["kind"] == "JobSet")
JOB = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
POD = JOB["template"]["spec"]
CONTAINER = POD["containers"][0]


def stand_in(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def start(command: list[str], directory: Path, **variables: str) -> subprocess.Popen:
    """Start a command in a directory whose `bin` holds the stand-ins."""
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(directory), **variables}
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode()


def terminate_when_started(process: subprocess.Popen, directory: Path) -> None:
    while not (directory / "started").exists():
        assert process.poll() is None, end(process)
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("path", [LAUNCH / "slurm.sbatch", LAUNCH / "tpu_vm.sh"], ids=lambda path: path.name)
def test_scripts_parse(path):
    result = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_keys_that_are_mentioned_exist(path):
    known = config.flat(config.base())
    text = path.read_text()
    mentioned = set(re.findall(r"--config\.([a-z_.]+)", text))
    if path == PAGE:
        sections = "|".join(config.base().keys())
        mentioned |= set(re.findall(rf"`((?:{sections})\.[a-z_]+)", text))
        assert len(mentioned) > 8
    assert mentioned - known.keys() == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_and_flags_that_are_mentioned_exist(path):
    text = path.read_text().replace("\\\n", " ")
    for name in re.findall(r"(?<![\w/])((?:scripts|configs|docs|tests)/[\w./]+\w)", text):
        assert (ROOT / name).exists(), name
    for name, words in re.findall(r"(?<![\w/])scripts/(\w+)\.py([^\n`#&|]*)", text):
        shown = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / f"{name}.py"), "--help"], capture_output=True, text=True, check=True
        ).stdout
        for flag in re.findall(r"\s--([a-z-]+)", words):
            assert f"--{flag}" in shown or f"--[no]{flag}" in shown, (name, flag)


# ---------------------------------------------------------------------------------------------------------------- Slurm


@pytest.mark.parametrize(
    ("srun", "state", "status", "queued"),
    [
        ("mkdir -p run/encoder", "RUNNING", 0, False),
        ("mkdir -p run/checkpoints/9", "RUNNING", 0, True),
        ("true", "RUNNING", 0, True),
        ("mkdir -p run/checkpoints/10; exit 1", "RUNNING", 0, True),
        ("exit 1", "RUNNING", 1, False),
        ("mkdir -p run/checkpoints/9.tmp-3; exit 1", "RUNNING", 1, False),
        ("mkdir -p run/checkpoints/10; exit 1", "COMPLETING", 1, False),
        ("true", "COMPLETING", 0, False),
        ("true", "PENDING", 0, False),
    ],
    ids=[
        "finished",
        "asked to stop",
        "asked to stop before a checkpoint",
        "an error after progress",
        "an error without progress",
        "an error in the first save",
        "canceled, with an error",
        "canceled",
        "preempted: Slurm does it",
    ],
)
def test_slurm_queues_again_what_is_not_finished(tmp_path, srun, state, status, queued):
    (tmp_path / "run" / "checkpoints" / "8").mkdir(parents=True)
    code, output, requeued = slurm(tmp_path, srun, state)
    assert code == status, output
    assert requeued == (["requeue 42"] if queued else [])


def slurm(directory: Path, srun: str, state: str) -> tuple[int, str, list[str]]:
    code, output = end(start_slurm(directory, srun, state))
    log = directory / "scontrol.log"
    return code, output, log.read_text().splitlines() if log.exists() else []


def start_slurm(directory: Path, srun: str, state: str, run: str = "run", **variables: str) -> subprocess.Popen:
    stand_in(directory / "bin", "srun", f"printf '%s\\n' \"$@\" > srun.log; env > srun.env\n{srun}")
    stand_in(directory / "bin", "squeue", f"echo {state}")
    stand_in(directory / "bin", "scontrol", 'echo "$@" >> scontrol.log')
    words = ["configs/c.py", "my shards", run, "--config.training.steps=20"]
    command = ["bash", str(LAUNCH / "slurm.sbatch"), *words]
    return start(
        command, directory, SLURM_JOB_ID="42", SLURM_CPUS_PER_TASK="6", https_proxy="http://proxy", **variables
    )


def environment_of_srun(directory: Path) -> dict[str, str]:
    lines = (directory / "srun.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_slurm_runs_the_same_command_everywhere(tmp_path):
    assert slurm(tmp_path, "mkdir -p run/encoder", "RUNNING")[0] == 0
    words = (tmp_path / "srun.log").read_text().splitlines()
    command = words[words.index("scripts/train.py") + 1 :]
    assert command[:4] == ["--config", "configs/c.py", "--workdir", "run"]
    assert command[4:6] == ["--config.data.shards=my shards", "--config.data.threads=6"]
    assert command[-1] == "--config.training.steps=20"
    environment = environment_of_srun(tmp_path)
    assert environment["SRUN_CPUS_PER_TASK"] == "6"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/vise_jax")
    assert not [name for name in environment if name.lower().endswith("_proxy")]


@pytest.mark.parametrize(("tasks", "devices"), [("8", None), ("1", "0,1,2,3,4,5,6,7")])
def test_slurm_s_processes_share_the_gpus_of_a_node(tmp_path, tasks, devices):
    code, output = end(start_slurm(tmp_path, "mkdir -p run/encoder", "RUNNING", SLURM_NTASKS_PER_NODE=tasks))
    assert code == 0, output
    assert environment_of_srun(tmp_path).get("JAX_LOCAL_DEVICE_IDS") == devices


def test_slurm_s_shell_outlives_a_signal(tmp_path):
    process = start_slurm(tmp_path, "touch started; until [ -e go ]; do sleep 0.01; done; exit 3", "COMPLETING")
    terminate_when_started(process, tmp_path)
    (tmp_path / "go").touch()
    code, output = end(process)
    assert code == 3, output
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize(
    ("states", "srun", "requeued"), [("10 finished", "true", False), ("10 20", "exit 1", True), ("10 10", "true", True)]
)
def test_slurm_asks_python_about_a_run_in_a_bucket(tmp_path, states, srun, requeued):
    (tmp_path / ".venv").mkdir()
    answer = f'echo "$@" >> asked; set -- {states}; [ $(wc -l < asked) = 1 ] && echo $1 || echo $2'
    stand_in(tmp_path / ".venv" / "bin", "python", answer)
    code, output = end(start_slurm(tmp_path, srun, "RUNNING", run="gs://bucket/run"))
    assert code == 0, output
    assert (tmp_path / "scontrol.log").exists() == requeued
    assert set((tmp_path / "asked").read_text().splitlines()) == {"scripts/launch/run_state.py gs://bucket/run"}


def test_the_state_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_state.py", str(tmp_path)])
    state = runpy.run_path(str(LAUNCH / "run_state.py"))["main"]
    state()
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    (tmp_path / "checkpoints" / "10").mkdir()
    state()
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "encoder.json").touch()
    state()
    assert capsys.readouterr().out.splitlines() == ["", "10", "finished"]


def test_slurm_says_how_it_is_called(tmp_path):
    code, output = end(start(["bash", str(LAUNCH / "slurm.sbatch"), "configs/c.py"], tmp_path))
    assert code == 2
    assert "usage" in output


# ----------------------------------------------------------------------------------------------------------- Kubernetes


def pod(directory: Path, python: str, index: int, run: str = "run") -> subprocess.Popen:
    stand_in(directory / "bin", "python", f"printf '%s\\n' \"$@\" > python.log\n{python}")
    command = [*CONTAINER["command"], *CONTAINER["args"], "two words"]
    return start(command, directory, CONFIG="c.py", RUN=run, SHARDS="shards", JOB_COMPLETION_INDEX=str(index))


@pytest.mark.parametrize(
    ("python", "index", "status"),
    [
        ("mkdir -p run/encoder", 0, 0),
        ("true", 0, 75),
        ("true", 1, 0),
        ("exit 1", 0, 1),
        ("exit 1", 1, 1),
        ("kill -KILL $$", 0, 137),
    ],
)
def test_a_pod_says_whether_the_run_is_finished(tmp_path, python, index, status):
    code, output = end(pod(tmp_path, python, index))
    assert code == status, output
    words = (tmp_path / "python.log").read_text().splitlines()
    assert words[:2] == ["-u", "scripts/train.py"]
    assert words[-2:] == [*CONTAINER["args"], "two words"]


@pytest.mark.parametrize(("state", "status"), [("finished", 0), ("100", 75)])
def test_a_pod_asks_python_about_a_run_in_a_bucket(tmp_path, state, status):
    python = f'[ "$1" = scripts/launch/run_state.py ] && [ "$2" = gs://bucket/run ] && echo {state}; true'
    code, output = end(pod(tmp_path, python, 0, run="gs://bucket/run"))
    assert code == status, output


@pytest.mark.parametrize(("index", "status"), [(0, 75), (1, 0)])
def test_a_pod_hands_sigterm_on_and_waits_for_the_save(tmp_path, index, status):
    saves = "trap 'touch saved; exit 0' TERM; touch started; while true; do sleep 0.01; done"
    process = pod(tmp_path, saves, index)
    terminate_when_started(process, tmp_path)
    code, output = end(process)
    assert code == status, output
    assert (tmp_path / "saved").exists()


def test_the_jobset_is_consistent():
    kinds = {manifest["kind"]: manifest for manifest in MANIFESTS}
    assert set(kinds) == {"ServiceAccount", "Role", "RoleBinding", "JobSet"}
    assert kinds["RoleBinding"]["roleRef"]["name"] == kinds["Role"]["metadata"]["name"]
    account = kinds["ServiceAccount"]["metadata"]["name"]
    assert kinds["RoleBinding"]["subjects"][0]["name"] == POD["serviceAccountName"] == account
    # JAX counts the pods of one job, and reads their index.
    assert JOBSET["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert JOB["parallelism"] == JOB["completions"]
    assert JOB["completionMode"] == "Indexed"
    # A pod failure policy asks for pods that are never started again.
    assert POD["restartPolicy"] == "Never"
    codes, disruption = JOB["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["containerName"] == CONTAINER["name"]
    assert codes["onExitCodes"]["values"] == [75]
    assert disruption["onPodConditions"][0]["status"] == "True"
    names = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == names
    places = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    values = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert all(any(values[name].startswith(place) for place in places) for name in ("SHARDS", "RUN"))
    assert set(re.findall(r'"\$([A-Z]+)"', CONTAINER["command"][2])) <= values.keys()


# ------------------------------------------------------------------------------------------------------------------ TPU


def tpu(directory: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Call tpu_vm.sh; what it sends to the VMs is run here."""
    stand_in(directory / "bin", "gcloud", 'printf "%s\\n" "$*" >> gcloud.log; bash -c "${!##--command=}"')
    stand_in(directory / "bin", "sudo", 'printf "%s\\n" "$@" > "$HOME/sudo.log"')
    (directory / "vise_jax").mkdir(exist_ok=True)
    return end(start(["bash", str(LAUNCH / "tpu_vm.sh"), *words], directory, **variables))


def test_tpu_vms_get_the_words_as_they_were_given(tmp_path):
    slice_ = {"TPU": "t", "ZONE": "z"}
    words = ["configs/c.py:resnet50", "/share/my shards", "/share/run", "--config.model.heads=('comments',)"]
    code, output = tpu(tmp_path, "train", *words, **slice_)
    assert code == 0, output
    sent = (tmp_path / "sudo.log").read_text().splitlines()
    assert sent[0] == "systemd-run"
    command = sent[sent.index("scripts/train.py") + 1 :]
    shards = f"--config.data.shards={words[1]}"
    assert command == ["--config", words[0], shards, "--workdir", words[2], words[3]]
    log = (tmp_path / "gcloud.log").read_text()
    assert log.startswith("compute tpus tpu-vm ssh t --zone=z --worker=all --command=")
    assert tpu(tmp_path, "stop", **slice_)[0] == 0
    assert (tmp_path / "sudo.log").read_text().splitlines() == ["systemctl", "stop", "vise"]


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ([], {}, "tpu_vm.sh train CONFIG SHARDS RUN"),
        (["fly"], {"TPU": "t", "ZONE": "z"}, "tpu_vm.sh train CONFIG SHARDS RUN"),
        (["train", "configs/c.py"], {"TPU": "t", "ZONE": "z"}, "tpu_vm.sh train CONFIG SHARDS RUN"),
        (["stop"], {"TPU": "t"}, "ZONE"),
        (["create"], {"TPU": "t", "ZONE": "z"}, "ACCELERATOR"),
    ],
)
def test_tpu_says_what_is_missing(tmp_path, words: list[str], variables: dict[str, Any], said):
    code, output = tpu(tmp_path, *words, **variables)
    assert code != 0
    assert said in output
    assert not (tmp_path / "gcloud.log").exists()
