"""One training run as a Hydra job, so that any Hydra launcher can spread many; :mod:`launch` starts it.

python examples/reproduce/job.py --multirun hydra/launcher=joblib jobs=runs/reproduce/jobs.json index=0,1,2
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Job:
    """Which run of which list."""

    jobs: str = MISSING
    index: int = MISSING
    threads: int = 1


def run(cfg: Job) -> int:
    """Run it in a process of its own, with ``output.log`` in its folder; a failure does not stop the others."""
    job = json.loads(Path(cfg.jobs).read_text())[cfg.index]
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(cfg.threads)}
        return subprocess.run(job["command"], stdout=log, stderr=subprocess.STDOUT, env=environment).returncode


if __name__ == "__main__":
    ConfigStore.instance().store(name="job", node=Job)
    hydra.main(version_base="1.3", config_path=None, config_name="job")(run)()
