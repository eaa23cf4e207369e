"""A program that pre-trains for each case in a process of its own, which gets a signal before a step.

It is started once for all cases, as it has to import everything: with one argument, a JSON list of cases. It writes the
exit status of each.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import poa
from poa.data.workers import _script_not_run_again
from poa.pretraining import loop


def pretrain(settings: dict[str, Any], number: int, at: int, whom: str) -> None:
    """Another process sends the signal to this one, or to all of its group SIGUSR1 and that signal."""
    train_step = loop.train_step

    def interrupted(parts: Any, step: int, batch: Any, **options: Any) -> Any:
        if step == at:
            group = f"os.killpg({os.getpgid(0)}, signal.SIGUSR1); os.killpg({os.getpgid(0)}, {number})"
            send = group if whom == "group" else f"os.kill({os.getpid()}, {number})"
            subprocess.run([sys.executable, "-S", "-c", f"import os, signal; {send}"], check=False)
        return train_step(parts, step, batch, **options)

    os.setpgid(0, 0)
    loop.train_step = interrupted
    sys.stderr = Path(settings["out"] + ".err").open("w", buffering=1)  # noqa: SIM115 (until this process ends)
    poa.pretrain(**settings)
    if settings["workers"]:
        check_other_processes()


def check_other_processes() -> None:
    """A process of the user's own code sees signals after a run with data workers."""
    other = get_context("forkserver").Process(target=signal.raise_signal, args=(signal.SIGTERM,))
    with _script_not_run_again():
        other.start()
    other.join()
    assert other.exitcode == -signal.SIGTERM, other.exitcode


def main() -> None:
    """Run the cases, one after the other."""
    torch.set_num_threads(1)
    for case in json.loads(sys.argv[1]):
        child = os.fork()
        if not child:
            status = 1
            try:
                pretrain(*case)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
