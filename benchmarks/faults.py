"""Kill trainings, evaluations and extractions at random moments, and see that nothing is lost.

Tiny runs on the embedded digits: ViT, Swin, ResNet, SlimCLR, SEED, a ViT on two ranks, fine-tuning and
segmentation. Each is first done without interruption. Then it is done again and again with SIGKILLs: of the main
process, of a rank, or of a worker, where a command has them; after a random time, or before a random file is written.
Or one of these stands still for a while (SIGSTOP), or from a random file on the disk is full, or slow, or the clock of
the main process has made a step. What has ended is started again at once, sometimes twice at the same time. At the end
metrics, checkpoints, scores and models must be as without interruption, bit for bit; no process may be left over, and
what was not killed may not end in a traceback.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --kills 200 --out runs/faults

The kills depend on --seed alone, but for what the machine's speed decides. `kills.jsonl` in --out says what was done;
the same command continues.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from fault_processes import LEFT_SECONDS, PARTS, Disturbance, log_of, members, parts_of, start, wait, wait_for_part
from fault_runs import COMMANDS, SETTINGS
from measure import machine
from poa.models.opening import is_begun
from poa.training.checkpoint import load_checkpoint

KINDS = ("kill", "pause", "full disk", "slow disk", "clock step")
MAY_END: dict[str, tuple[int, ...]] = {"kill": (-signal.SIGKILL, 2), "full disk": (2,)}
MAY_END |= dict.fromkeys(("pause", "slow disk", "clock step"), (0,))
"""Exit status of a command after each of these."""


class Killed(NamedTuple):
    """What a kill hit."""

    what: str
    """Main process, rank or worker."""
    phase: str
    command: str
    moment: str
    status: int | None
    """Of the main process, minus the number of a signal; None if it did not end."""
    kind: str = "kill"


@dataclass
class Episode:
    """One passage through the commands of a subject."""

    number: int
    subject: str
    kills: list[Killed] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def main() -> None:
    """Do what is not done yet, and print what all episodes found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--subjects", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out.resolve()
    reference = {subject: make_reference(subject, out) for subject in dict.fromkeys(["vit", *arguments.subjects])}
    log = out / "kills.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    while sum(len(each["kills"]) for each in done) < arguments.kills:
        number = len(done)
        subject = arguments.subjects[number % len(arguments.subjects)]
        draw = random.Random(f"{arguments.seed} {number}")
        episode = asdict(run_episode(Episode(number, subject), out, reference[subject], draw, arguments.kinds))
        done.append(episode)
        with log.open("a") as file:
            file.write(json.dumps(episode) + "\n")
        killed = ", ".join(f"{kind} of {what} in {phase}" for what, phase, *_, kind in episode["kills"])
        print(f"{number} {subject}: {killed or 'no kill'}; {'; '.join(episode['faults']) or 'as without'}", flush=True)
    print(machine(torch.device("cpu")))
    for title, place in (("how", -1), ("what", 0), ("when", 1)):
        print(f"{title}:", dict(Counter(kill[place] for each in done for kill in each["kills"])))
    print("of:", dict(Counter(each["subject"] for each in done for _ in each["kills"])))
    print(f"{sum(len(each['kills']) for each in done)} kills, {sum(len(each['faults']) for each in done)} faults")


def words_of(subject: str, command: str, folder: Path, out: Path) -> list[str]:
    """The words after ``poa``."""
    words = command.split()
    if words[0] != "pretrain":
        return words
    how = ["--resume"] if is_begun(folder / "run") else ["--config", f"{out}/{subject}.yaml"]
    return [*words, "--out", "run", *how]


def make_reference(subject: str, out: Path) -> list[dict[str, float]]:
    """Do all of a subject without interruption, unless that was done; returns what each command took."""
    folder, about = out / "reference" / subject, out / "reference" / f"{subject}.json"
    if about.exists():
        found: list[dict[str, float]] = json.loads(about.read_text())
        return found
    print(f"{subject}: without interruption", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if subject in SETTINGS:
        (out / f"{subject}.yaml").write_text(yaml.safe_dump(SETTINGS[subject]))
    write_pairs(out / "pairs")
    fresh(folder, subject, out)
    taken = []
    for command in COMMANDS[subject]:
        began, seen = time.monotonic(), dict[str, float]()
        pid = start(words_of(subject, command, folder, out), folder)
        status, text = wait(pid, seen), log_of(folder, pid).read_text()
        assert status == 0, text
        taken.append(
            {
                "seconds": time.monotonic() - began,
                "files": int(re.findall(r"^files (\d+)", text, re.MULTILINE)[-1]),
                **seen,
            }
        )
    about.write_text(json.dumps(taken))
    return taken


def clear(folder: Path) -> None:
    """Remove a folder, and the output of what was done in it."""
    shutil.rmtree(folder, ignore_errors=True)
    for log in folder.parent.glob(f"{folder.name}.*.log"):
        log.unlink()


def fresh(folder: Path, subject: str, out: Path) -> None:
    """An empty folder, or one with the ViT's run for what starts from it."""
    clear(folder)
    folder.mkdir(parents=True)
    if subject not in SETTINGS:
        shutil.copytree(out / "reference/vit/run", folder / "run", ignore=shutil.ignore_patterns("eval", "models"))


def write_pairs(folder: Path) -> None:
    """Images of noise on one half, and masks of the halves."""
    for part, number in ((part, number) for part in ("train", "test") for number in range(8)):
        draw = np.random.default_rng([number, part == "test"])
        mask = np.zeros((16, 16), np.uint8)
        mask[:, : draw.integers(4, 12)] = 1
        image = (draw.integers(0, 256, (16, 16, 3)) * mask[..., None]).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / kind / f"{number}.png")


def run_episode(
    episode: Episode, out: Path, taken: Sequence[dict[str, float]], draw: random.Random, kinds: Sequence[str]
) -> Episode:
    """Do all of a subject with kills, and compare."""
    folder = out / "killed" / f"{episode.number:04} {episode.subject}"
    fresh(folder, episode.subject, out)
    for command, took in zip(COMMANDS[episode.subject], taken, strict=True):
        sessions = []
        for _ in range(draw.choice([1, 1, 2, 3])):
            session, killed = disturb_once(words_of(episode.subject, command, folder, out), folder, took, draw, kinds)
            sessions.append(session)
            episode.kills += [killed] if killed else []
        words = words_of(episode.subject, command, folder, out)
        last = [start(words, folder) for _ in range(2 if command == "pretrain" and draw.random() < 0.2 else 1)]
        statuses = [wait(pid) for pid in last]
        sessions += last
        if 0 not in statuses or not set(statuses) <= {0, 2}:
            episode.faults.append(f"{command}: ended with {statuses}")
        if any("Traceback" in log_of(folder, pid).read_text() for pid in last):
            episode.faults.append(f"{command}: a traceback")
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := [pid for each in sessions for pid in members(each)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        episode.faults += [f"{command}: {len(left)} processes are left over"] if left else []
    wrong = [killed for killed in episode.kills if killed.status not in MAY_END[killed.kind]]
    episode.faults += [f"{killed.command}: ended with {killed.status} after a {killed.kind}" for killed in wrong]
    episode.faults += list(differences(folder, out / "reference" / episode.subject))
    if not episode.faults:
        clear(folder)
    return episode


def disturb_once(
    words: Sequence[str], folder: Path, took: dict[str, float], draw: random.Random, kinds: Sequence[str]
) -> tuple[int, Killed | None]:
    """Start a command and disturb it, or a part of it; returns its session, and what was hit if that was in time."""
    kind, parts = draw.choice(kinds), [part for part in PARTS if part in took]
    victim, hit = draw.choice(["file", "main", *parts * 4]) if kind == "kill" else "file", list[int]()
    victim = draw.choice(["main", *parts]) if kind == "pause" else victim
    earlier = set(folder.rglob(".step-*.tmp"))
    if victim == "file":
        number = draw.randint(1, int(took["files"]))
        session, moment = start(words, folder, Disturbance(kind, number)), f"file {number}"
    else:
        since = draw.choice(parts) if victim in parts else ""
        seconds = draw.uniform(0, took["seconds"] - took.get(since, 0))
        session, moment = start(words, folder), f"{seconds:.2f} s after the first {since or 'moment'}"
        wait_for_part(session, since)
        time.sleep(seconds)
        hit = parts_of(session, victim)
        with suppress(ProcessLookupError):
            strike(draw.choice(hit) if hit else session, paused=draw.uniform(0.5, 3) if kind == "pause" else None)
    half = bool(set(folder.rglob(".step-*.tmp")) - earlier)
    status = wait(session)
    if status == 0 and kind in ("kill", "full disk"):
        return session, None
    phase = phase_of(words, folder, log_of(folder, session).read_text(), half=half)
    return session, Killed(victim if hit else "main process", phase, " ".join(words), moment, status, kind)


def strike(pid: int, *, paused: float | None) -> None:
    """Kill a process, or let it stand still for some seconds."""
    os.kill(pid, signal.SIGKILL if paused is None else signal.SIGSTOP)
    if paused is not None:
        time.sleep(paused)
        os.kill(pid, signal.SIGCONT)


def phase_of(words: Sequence[str], folder: Path, said: str, *, half: bool) -> str:
    """What a command was doing when it was killed, as far as its folder tells."""
    if half or "step-" in said.partition("killed before: ")[2]:
        return "checkpoint"
    if words[0] == "pretrain":
        return "training" if (folder / "run/metrics.jsonl").exists() else "start"
    return {"extract": "extraction"}.get(words[0], "evaluation")


def differences(folder: Path, reference: Path) -> Iterator[str]:
    """Files that are not the same, bit for bit.

    Hidden ones and the record of the command are not compared; a checkpoint more than is kept may be left over.
    """
    found, expected = (
        {
            str(path.relative_to(each)): path
            for path in sorted(each.rglob("*"))
            if path.is_file() and path.name not in ("env.json", "command.txt")
            if not any(part.startswith(".") for part in path.relative_to(each).parts)
        }
        for each in (folder, reference)
    )
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield from () if name.endswith(".pt") else (f"{name} is left over",)
        elif name.endswith(".pt"):
            yield from () if same(*map(load_checkpoint, (found[name], expected[name]))) else (f"{name} differs",)
        elif without_checksum(found[name]) != without_checksum(expected[name]):
            yield f"{name} differs"


def without_checksum(path: Path) -> bytes:
    """A file, but for a checkpoint's checksum in scores: pickled after a resume, equal tensors have other bytes."""
    content = path.read_bytes()
    return re.sub(rb"sha256 [0-9a-f]{16}", b"sha256", content) if path.suffix == ".json" else content


def same(found: Any, expected: Any) -> bool:
    """Whether the contents of two checkpoints are the same, bit for bit."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else bool(found == expected)


if __name__ == "__main__":
    main()
