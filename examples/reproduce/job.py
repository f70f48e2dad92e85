"""One training run as a Hydra job, so that any Hydra launcher can spread many; :mod:`launch` starts it.

python examples/reproduce/job.py --multirun hydra/launcher=joblib jobs=runs/reproduce/jobs.json index=0,1,2
"""

from __future__ import annotations

import json
import os
import subprocess
import time
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
    """Run it in a process of its own, with ``output.log`` in its folder; a failure does not stop the others.

    A file beside the list, with the suffix ``.stop``, stops runs and launcher: each run saves itself, none is begun. A
    signal would not do: joblib kills what its workers have started.
    """
    stop = Path(cfg.jobs).with_suffix(".stop")
    if stop.exists():
        return 1
    job = json.loads(Path(cfg.jobs).read_text())[cfg.index]
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(cfg.threads)}
    with (folder / "output.log").open("a") as log:
        process = subprocess.Popen(job["command"], stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            if stop.exists():
                process.terminate()  # not SIGINT: while Python is importing, that may be caught and lost
                break
            time.sleep(0.5)
        return process.wait()


if __name__ == "__main__":
    ConfigStore.instance().store(name="job", node=Job)
    hydra.main(version_base="1.3", config_path=None, config_name="job")(run)()
