import io
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from poa.training.progress import Bars, StepReport, TrainingDisplay, bar, duration, gigabytes, memory_in_use, summary

PANEL_LINES = 7


def plain() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=80), output


def terminal(*, width: int = 80, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=output, width=width, force_terminal=True, legacy_windows=False), output


def text_of(output: io.TextIOWrapper) -> str:
    output.flush()
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue().decode()


def visible(output: io.TextIOWrapper) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text_of(output))


def last_frame(output: io.TextIOWrapper) -> list[str]:
    return visible(output).splitlines()[-PANEL_LINES:]


def report(step: int, *, num_branches: int = 2) -> StepReport:
    return StepReport(
        step=step,
        epoch=step / 40,
        losses={f"branch{i}": 5.1234 + i for i in range(num_branches)},
        lr=0.00125,
        images_per_second=1812.34,
        data_wait=0.034,
        memory_bytes=12_340_000_000,
        size="64x2",
        scores={"k-NN 64x2": 71.234} if step > 1 else {},
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_speed_that_is_not_known_yet_is_not_shown() -> None:
    console, output = plain()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(1)._replace(images_per_second=0.0, data_wait=0.0))
    assert "size 64x2  memory 12.3 GB" in output.getvalue()


def test_where_one_size_is_trained_none_is_named() -> None:
    console, output = plain()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(1)._replace(size=""))
    assert "lr 1.25e-03  1,812.3 images/s" in output.getvalue()


def test_a_plain_line_says_everything() -> None:
    console, output = plain()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(20))
    assert output.getvalue() == (
        "step 20/1,000  epoch 0.5/25.0  loss branch0 5.123  branch1 6.123  lr 1.25e-03  size 64x2  "
        "1,812.3 images/s  data-wait 3%  memory 12.3 GB  scores k-NN 64x2 71.23  ETA ?\n"
    )


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    console, output = plain()
    clock = Clock()
    with TrainingDisplay(100, steps_per_epoch=40, start_step=0, console=console, clock=clock) as display:
        for step in range(1, 101):
            clock.now += 1
            display.update(report(step))
    assert [line.split()[1] for line in output.getvalue().splitlines()] == [
        "1/100",
        "31/100",
        "61/100",
        "91/100",
        "100/100",
    ]


def test_the_time_that_remains_leaves_out_the_start_up() -> None:
    console, _ = plain()
    clock = Clock()
    display = TrainingDisplay(1000, steps_per_epoch=40, start_step=500, console=console, clock=clock)
    estimates = []
    for step in range(501, 506):
        clock.now += 60 if step <= 502 else 2
        display.update(report(step))
        estimates.append(display.remaining_seconds())
    assert estimates == [None, None, 497 * 2, 496 * 2, 495 * 2]


def test_the_time_that_remains_follows_the_recent_pace() -> None:
    console, _ = plain()
    clock = Clock()
    display = TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console, clock=clock)
    for step in range(1, 401):
        clock.now += 10 if step <= 200 else 1
        display.update(report(step))
    assert display.remaining_seconds() == pytest.approx(600)


@pytest.mark.parametrize("num_branches", [2, 30])
@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_panel_fits_the_terminal(num_branches: int, width: int) -> None:
    console, output = terminal(width=width)
    with TrainingDisplay(123_456, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(54_321, num_branches=num_branches))
    frame = last_frame(output)
    assert frame[0].startswith("╭─ poa pretrain")
    assert [len(line) for line in frame] == [width - len("^C^C")] * PANEL_LINES, "a Ctrl-C would leave a line of it"


def test_the_panel_says_everything() -> None:
    console, output = terminal()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(19))
        display.update(report(20))
    text = "\n".join(last_frame(output))
    parts = [
        *("step 20/1,000", "2%", "ETA 0:00", "loss branch0 5.123  branch1 6.123", "epoch 0.5/25.0   lr 1.25e-03"),
        *("size 64x2", "1,812.3 images/s   data-wait 3%   memory 12.3 GB", "scores k-NN 64x2 71.23"),
    ]
    assert [part for part in parts if part not in text] == []


def test_a_message_stays_above_the_panel() -> None:
    console, output = terminal()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.message("[saved] step-00000100.pt")
    lines = visible(output).splitlines()
    assert "[saved] step-00000100.pt" in lines
    assert "waiting for the first step" in lines[-2]


def test_output_to_a_file_has_no_control_characters_and_no_folded_lines() -> None:
    console, output = plain()
    with TrainingDisplay(2, steps_per_epoch=1, start_step=0, console=console) as display:
        display.update(report(1, num_branches=20))
        display.message("x" * 300)
        with bar("scoring", total=3, console=console, every_seconds=0.0) as advance:
            advance(1)
            advance(2)
    assert all(character.isprintable() or character == "\n" for character in output.getvalue())
    assert [line.split()[0] for line in output.getvalue().splitlines()] == ["step", "x" * 300, "scoring:", "scoring:"]


def test_a_terminal_that_cannot_show_boxes_gets_plain_lines() -> None:
    console, output = terminal(encoding="ascii")
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(20))
        with bar("scoring", total=2, console=console) as advance:
            advance()
    assert "\x1b" not in text_of(output)


def test_a_bar_counts_in_a_terminal() -> None:
    console, output = terminal()
    with bar("indexing images", total=1000, console=console) as advance:
        advance()
        advance(999)
    assert "1000/1000" in visible(output).splitlines()[-1]
    assert visible(output).splitlines()[-1].startswith("indexing images")


@pytest.mark.parametrize("is_lively", [True, False])
def test_a_bar_shows_the_latest_note(is_lively: bool) -> None:
    console, output = terminal() if is_lively else plain()
    with bar("images", total=4, console=console, every_seconds=0.0) as advance:
        advance(1, "loss 2.500")
        advance(3, "loss 1.250")
    shown = visible(output) if is_lively else output.getvalue().splitlines()[-1]
    assert "loss 1.250" in shown
    assert "loss 2.500" not in shown.splitlines()[-1]


@pytest.mark.parametrize("is_lively", [True, False])
def test_names_in_bars_and_messages_are_no_markup(is_lively: bool) -> None:
    console, output = terminal() if is_lively else plain()
    with bar("a[/b]c\n:car: images", total=1, console=console) as advance:
        advance(1, "loss [/x]")
    shown = visible(output) if is_lively else output.getvalue()
    assert r"a[/b]c\n:car: images" in shown
    assert "loss [/x]" in shown


def test_a_bar_is_shown_below_the_panel() -> None:
    console, output = terminal()
    with TrainingDisplay(1000, steps_per_epoch=40, start_step=0, console=console) as display:
        display.update(report(20))
        with bar("scoring", total=10, console=console) as advance:
            advance(10)
    assert "10/10" in visible(output)
    assert last_frame(output)[0].startswith("╭─ poa pretrain")


def test_plain_bar_lines_show_count_rate_and_remaining_time() -> None:
    console, output = plain()
    clock = Clock()
    with Bars(console, clock=clock) as bars:
        advance = bars.add("indexing", 3000)
        for _ in range(30):
            clock.now += 0.5
            advance(100)
    assert output.getvalue() == "indexing: 2,000/3,000  200.0/s  ETA 0:05\nindexing: 3,000/3,000 in 0:15\n"


def test_a_plain_bar_needs_no_total() -> None:
    console, output = plain()
    with bar("indexing", total=None, console=console, every_seconds=0.0) as advance:
        advance(3)
        advance(4)
    first, second, end = output.getvalue().splitlines()
    assert first == "indexing: 3"
    assert second.startswith("indexing: 7  ")
    assert second.endswith("/s")
    assert end == "indexing: 7 in 0:00"


def test_several_counts_in_plain_lines() -> None:
    console, output = plain()
    clock = Clock()
    with Bars(console, clock=clock) as bars:
        for done in range(5):
            bars("a", done, 4)
            bars("b", 2 * done, 20)
            clock.now += 5
        bars("a", 1, 4)
        clock.now += 5
        bars("b", 9, 20, "loss 0.5")
    assert output.getvalue().splitlines() == [
        "a: 2/4  0.2/s  ETA 0:10",
        "b: 4/20  0.4/s  ETA 0:40",
        "a: 4/4 in 0:20",
        "b: 8/20  0.4/s  ETA 0:30",
        "a: 1/4",
        "b: 9/20  0.3/s  ETA 0:40  loss 0.5",
        "a: 1/4 in 0:05",
        "b: 9/20 in 0:30  loss 0.5",
    ]


def test_several_counts_in_a_terminal() -> None:
    console, output = terminal()
    with Bars(console) as bars:
        bars("a", 4, 4)
        bars("b", 20, 20)
        bars("a", 1, 4)
    first, second = visible(output).splitlines()[-2:]
    assert first.startswith("a ")
    assert "1/4" in first
    assert "20/20" in second


def test_an_error_ends_no_count() -> None:
    console, output = plain()
    with pytest.raises(KeyboardInterrupt), bar("scoring", total=3, console=console):
        raise KeyboardInterrupt
    assert output.getvalue() == ""


def test_the_summary_keeps_paths_whole() -> None:
    console, output = plain()
    models = Path("/", *["folder"] * 20, "models")
    console.print(
        summary(
            "done",
            seconds={"training": 7200.0, "waiting for data": 1800.0, "scoring": 0.0},
            num_images=900_000,
            memory_bytes=2_000_000_000,
            scores={"64x2": 71.234},
            files={"models": models},
            said={"best": "RankMe 12 at step 9", "next": "poa extract runs/a --size 64x2"},
        ),
        soft_wrap=True,
    )
    rule, *lines = output.getvalue().splitlines()
    assert rule.startswith("done ─")
    assert lines == [
        "time    2:30:00 (training 80%, waiting for data 20%, scoring 0%)",
        "speed   900,000 images, 100.0 images/s",
        "memory  2.0 GB at most",
        "scores  64x2 71.23",
        f"models  {models}",
        "best    RankMe 12 at step 9",
        "next    poa extract runs/a --size 64x2",
    ]


def test_the_summary_of_a_run_without_steps_is_no_error() -> None:
    console, output = plain()
    empty = summary(
        "stopped", seconds={"training": 0.0}, num_images=0, memory_bytes=0, scores={}, files={}, said={"next": "poa"}
    )
    console.print(empty, soft_wrap=True)
    assert [line.split()[0] for line in output.getvalue().splitlines()] == ["stopped", "memory", "next"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_in_use_is_the_peak_of_the_process_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    assert memory_in_use(torch.device("cpu")) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00"), (90_061.0, "1 d 01:01")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_gigabytes_are_decimal() -> None:
    assert gigabytes(12_340_000_000) == "12.3 GB"
