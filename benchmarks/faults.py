"""Disturb trainings, evaluations and extractions at random moments, and see that nothing is lost.

Tiny runs of all families and methods, on one process, and on two with DDP and FSDP; further evaluation, extraction,
fine-tuning and segmentation. Each is first done without interruption. Then it is started again and again, and each
time up to four faults hit it:

- a SIGKILL of the main process, a rank or a worker, at a random moment or before a random file is written;
- one of these stands still for a while (SIGSTOP);
- from a random file on the disk is full, or slow; or the clock of a process makes a step;
- a tar with images becomes zeros, or their folder is gone, for a while or until the command has ended;
- the network between ranks is slow and loses packets, or breaks down for a while.

What has ended is started again at once, sometimes twice at the same time. At the end metrics, checkpoints, scores and
models must be as without interruption, bit for bit; no process may be left over, and what was not killed may not end in
a traceback.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --faults 200 --out runs/faults

The faults depend on --seed alone, but for what the machine's speed decides. `faults.jsonl` in --out says what was done;
the same command continues, as far as `--faults` in all.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from fault_kinds import KINDS, OF_DATA, OF_NETWORK, Command, Data, Outer, draw_faults, may_end, strike
from fault_processes import LEFT_SECONDS, OWN, RANK, SLOW, TRACKER, Inner, log_of, members, network_refused, start, wait
from fault_runs import AS_PROGRAMS, COMMANDS, DATA, SETTINGS, parts_of_command, write_data
from measure import machine
from poa.models.opening import is_begun
from poa.training.checkpoint import load_checkpoint

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""In which first share of the work of an undisturbed command the faults of its first start happen, its second ..."""
OF_TRACKER = re.compile(r"Traceback.*\n  File .*resource_tracker.py.*\n.*\nKeyError: .*\n")
"""What Python's new resource tracker says of what it is to forget, which only the killed one knew."""


class Hit(NamedTuple):
    """A fault that happened."""

    kind: str
    what: str
    """Main process, rank, worker; or the fault itself."""
    phase: str
    command: str
    status: int | None
    """Of the main process, minus the number of a signal; None if it did not end."""


@dataclass
class Episode:
    """One passage through the commands of a subject."""

    number: int
    subject: str
    hits: list[Hit] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cpu: float = 0.0


def main() -> None:
    """Do what is not done yet, and print what all episodes found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--subjects", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, kinds = arguments.out.resolve(), list(arguments.kinds)
    if why := network_refused():
        kinds = [kind for kind in kinds if kind not in OF_NETWORK]
        print(f"Without {' and '.join(OF_NETWORK)}: {why}.")
    os.environ["POA_CACHE"] = str(out / "cache")
    write_data(out / "data")
    log = out / "faults.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    while sum(len(each["hits"]) for each in done) < arguments.faults:
        number = len(done)
        subject = arguments.subjects[number % len(arguments.subjects)]
        draw, before = random.Random(f"{arguments.seed} {number}"), processor_seconds()
        commands = make_reference(subject, out, kinds)
        episode = run_episode(Episode(number, subject), out, commands, draw)
        episode.cpu = round(processor_seconds() - before, 2)
        done.append(json.loads(json.dumps(asdict(episode))))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        hits = ", ".join(f"{kind} ({what}, {phase})" for kind, what, phase, *_ in episode.hits)
        print(f"{number} {subject}: {hits or 'no fault'}; {'; '.join(episode.wrong) or 'as without'}", flush=True)
    report(done)


def report(done: Sequence[dict[str, Any]]) -> None:
    """Print what all episodes found."""
    print(machine(torch.device("cpu")))
    for title, place in (("kinds", 0), ("of", 1), ("in", 2)):
        print(f"{title}:", dict(Counter(hit[place] for each in done for hit in each["hits"])))
    print("hit:", dict(Counter(each["subject"] for each in done for _ in each["hits"])))
    number, wrong = (sum(len(each[what]) for each in done) for what in ("hits", "wrong"))
    seconds = sum(each["cpu"] for each in done)
    print(f"{number} faults in {len(done)} passages, {seconds:.0f} s of processor time, {wrong} differences")


def processor_seconds() -> float:
    """Of this process and all that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def words_of(subject: str, command: str, folder: Path, out: Path) -> list[str]:
    """The words after ``poa``."""
    words = command.split()
    if words[0] != "pretrain":
        return words
    how = ["--resume"] if is_begun(folder / "run") else ["--config", f"{out}/{subject}.yaml"]
    return [*words, "--out", "run", *how]


def make_reference(subject: str, out: Path, kinds: Sequence[str]) -> list[Command]:
    """Do all of a subject without interruption, unless that was done; returns its commands and what can hit each."""
    folder, about = out / "reference" / subject, out / "reference" / f"{subject}.json"
    if not about.exists():
        if subject != "vit poa" and needs_vit(subject):
            make_reference("vit poa", out, kinds)
        if subject in SETTINGS:
            settings = {**SETTINGS[subject], "data": str(out / "data" / DATA[subject])}
            (out / f"{subject}.yaml").write_text(yaml.safe_dump(settings))
        fresh(folder, subject, out)
        taken = []
        for command in COMMANDS[subject]:
            before = processor_seconds()
            pid = start(words_of(subject, command, folder, out), folder, forked=subject != AS_PROGRAMS)
            status, text = wait(pid), log_of(folder, pid).read_text()
            assert status == 0, text
            files = {name: int(number) for name, number in re.findall(r"^files of (.*): (\d+)", text, re.MULTILINE)}
            taken.append((processor_seconds() - before, {name: number for name, number in files.items() if number}))
        about.write_text(json.dumps(taken))
    return [
        Command(cpu, files, parts, possible(subject, command, kinds, parts))
        for command, (cpu, files) in zip(COMMANDS[subject], json.loads(about.read_text()), strict=True)
        for parts in [parts_of_command(subject, command)]
    ]


def needs_vit(subject: str) -> bool:
    """Whether a subject takes the run of the ViT that is not disturbed."""
    return subject not in SETTINGS or "distill" in SETTINGS[subject]


def possible(subject: str, command: str, kinds: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The faults that can hit a command."""
    lacking = set() if RANK in parts else set(OF_NETWORK)
    if command != "pretrain":
        lacking |= set(OF_DATA)
    elif DATA[subject] != "shards":
        lacking.add("corrupt shard")
    return [kind for kind in kinds if kind not in lacking]


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
        shutil.copytree(out / "reference/vit poa/run", folder / "run", ignore=shutil.ignore_patterns("eval", "models"))


def run_episode(episode: Episode, out: Path, commands: Sequence[Command], draw: random.Random) -> Episode:
    """Do all of a subject with faults, and compare."""
    subject, folder = episode.subject, out / "disturbed" / f"{episode.number:04} {episode.subject}"
    data = Data(out / "data" / DATA.get(subject, "folder"))
    fresh(folder, subject, out)
    for text, command in zip(COMMANDS[subject], commands, strict=True):
        sessions = []
        for share in SHARES[: draw.randint(3, len(SHARES))]:
            faults = draw_faults(command, draw, share=share)
            session, status = disturb(episode, text, folder, out, data, faults, draw)
            sessions.append(session)
            if status == 0:
                break
            if draw.random() < 0.7:  # else data stay as they are at the next start
                data.restore()
        data.restore()
        number = 2 if text == "pretrain" and draw.random() < 0.2 else 1
        words, forked = words_of(subject, text, folder, out), subject != AS_PROGRAMS
        last = [start(words, folder, forked=forked) for _ in range(number)]
        statuses = [wait(pid) for pid in last]
        sessions += last
        if 0 not in statuses or not set(statuses) <= {0, 2}:
            episode.wrong.append(f"{text}: ended with {statuses}")
        episode.wrong += [f"{text}: a traceback"] * any(
            "Traceback" in log_of(folder, each).read_text() for each in last
        )
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := [pid for each in sessions for pid in members(each)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        episode.wrong += [f"{text}: {len(left)} processes are left over"] if left else []
    episode.wrong += list(differences(folder, out / "reference" / subject))
    if not episode.wrong:
        clear(folder)
    return episode


def disturb(
    episode: Episode,
    text: str,
    folder: Path,
    out: Path,
    data: Data,
    faults: Sequence[Inner | Outer],
    draw: random.Random,
) -> tuple[int, int | None]:
    """Start a command and let faults hit it; notes those that were in time; returns its session and how it ended."""
    words = words_of(episode.subject, text, folder, out)
    kinds, earlier = {fault.kind for fault in faults}, set(folder.rglob(".step-*.tmp"))
    inner = [fault for fault in faults if isinstance(fault, Inner)]
    network = SLOW if "slow network" in kinds else OWN if "network outage" in kinds else ""
    session = start(words, folder, inner, forked=episode.subject != AS_PROGRAMS, network=network)
    outer = sorted((fault for fault in faults if isinstance(fault, Outer)), key=lambda fault: fault.at)
    found = [(fault.kind, strike(fault, session, data, draw)) for fault in outer]
    half = bool(set(folder.rglob(".step-*.tmp")) - earlier)
    status, said = wait(session), log_of(folder, session).read_text()
    phase = phase_of(words, folder, said, half=half)
    found += [(fault.kind, fault.victim) for fault in inner if f"disturbed: {fault.kind} before" in said]
    in_time = [(kind, what) for kind, what in found if what and (status != 0 or 0 in may_end(kind, what))]
    hits = [Hit(kind, what, phase, text, status) for kind, what in in_time]
    episode.hits += hits
    allowed = {0, *(each for hit in hits for each in may_end(hit.kind, hit.what))}
    allowed |= {2} if data.is_disturbed else set()
    named = " and ".join(hit.kind for hit in hits) or "nothing"
    if status not in allowed:
        episode.wrong.append(f"{text}: ended with {status} after {named}")
    if ("kill", TRACKER) in in_time:
        said = OF_TRACKER.sub("", said)
    if status in (0, 2) and "Traceback" in said:
        episode.wrong.append(f"{text}: a traceback after {named}")
    return session, status


def phase_of(words: Sequence[str], folder: Path, said: str, *, half: bool) -> str:
    """What a command was doing when it was killed, as far as its folder tells."""
    if half or "step-" in said.partition("disturbed: ")[2].partition("\n")[0]:
        return "checkpoint"
    if words[0] == "pretrain":
        return "training" if (folder / "run/metrics.jsonl").exists() else "start"
    return {"extract": "extraction"}.get(words[0], "evaluation")


def differences(folder: Path, reference: Path) -> Iterator[str]:
    """Files that are not the same, bit for bit.

    Hidden ones and the record of the command are not compared. A checkpoint more than is kept may be left over, and the
    list of the images that could not be read meanwhile.
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
            yield from () if name.endswith((".pt", "bad_images.txt")) else (f"{name} is left over",)
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
