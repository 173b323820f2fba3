"""On a cluster: the SLURM script of docs/scaling.md, and which of several processes says what. Needs no SLURM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import ROOT

SRUN = """#!/bin/bash
echo "$@" >> calls
[ -f training_ends ] && exit 0
trap 'exit 143' TERM
touch started
while :; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node0; else echo "$@" >> calls; fi
"""


def slurm_script(folder: Path) -> Path:
    """The page's first script, and stand-ins for SLURM's commands."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    (lines, *_) = re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", page, re.MULTILINE)
    (folder / "job.sh").write_text("".join(line[4:] for line in lines.splitlines(keepends=True)))
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "job.sh"


def test_a_signalled_job_is_queued_again_and_then_resumes(tmp_path: Path) -> None:
    script = slurm_script(tmp_path)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    here = {"cwd": tmp_path, "env": os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}}
    job = subprocess.Popen(["bash", script], **here)
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    (tmp_path / "results" / "koniq").mkdir(parents=True)
    (tmp_path / "results" / "koniq" / "config.yaml").touch()
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 0
    (tmp_path / "training_ends").touch()
    assert subprocess.run(["bash", script], **here, timeout=60).returncode == 0
    first, requeue, second = (tmp_path / "calls").read_text().splitlines()
    assert "--nnodes 2" in first and "--rdzv_endpoint node0:29500" in first and "--config koniq --name koniq" in first
    assert requeue == "requeue 7" and "--resume results/koniq" in second


def said(**environment: str) -> str:
    script = "import logging; from iqa.system import start_logging; start_logging(); logging.info('note'); "
    script += "logging.error('fault')"
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stderr


def test_the_first_process_speaks_and_the_others_say_which_one_has_an_error() -> None:
    assert said(RANK="0", WORLD_SIZE="8") == "note\nfault\n"
    assert said(RANK="3", WORLD_SIZE="8") == "[process 3 of 8] fault\n"
    assert said(IQA_JOB="job 2") == "[job 2] note\n[job 2] fault\n"
