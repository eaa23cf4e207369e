"""Pages of made-up sizes."""

from poa.report.content import Blocks, Command, Content, Cost, Curve, Line, Mark, Point, Score, Subject

MS = Cost("ms 0", "ms", "ms", "ms")
PARAMETERS = Cost("parameters", "params M", "parameters in millions", "M parameters")
KNN, LINEAR = Score("top1@20", "k-NN top-1 accuracy"), Score("linear top1", "linear top1")
HOSTILE = "</script><img src=x onerror='window.hacked=1'>"


def point(name: str, ms: float | None, score: float, *, subject: int = 0, half: float = 1.0) -> Point:
    width, depth = (int(part) for part in name.split("x"))
    return Point(
        subject,
        name,
        depth,
        name == "128x6",
        {"parameters": width * depth / 100} | ({} if ms is None else {"ms 0": ms}),
        {"top1@20": score} | ({"linear top1": 100 - score} if subject == 0 else {}),
        {"top1@20": (score - half, score + half)},
        [Blocks(6, tuple(range(depth)))],
    )


def page(*points: Point, others: tuple[str, ...] = ()) -> Content:
    commands = [Command("Write", ("poa extract mine --size ", ""))]
    line = Line("intact", [1, 2, 3], [4.0, 3.0, 2.0])
    return Content(
        [MS, PARAMETERS],
        [KNN, LINEAR],
        [Subject("mine", "About mine.", commands), *(Subject(name, HOSTILE, commands) for name in others)],
        points,
        [HOSTILE],
        [Curve("Loss: global", [line], Mark("ln(prototypes)", 4.2))],
    )


FEW = page(
    point("64x3", 1.0, 70.0),
    point("64x6", 2.0, 69.0),
    point("96x3", 1.5, 72.0),
    point("96x6", 3.0, 74.6),
    point("128x6", 4.0, 75.0),
    point("128x3", None, 73.0),
)
MANY = page(
    *(
        point(f"{width}x{depth}", width * depth / 100, 60 + depth)
        for width in range(64, 126, 2)
        for depth in range(3, 18)
    )
)
"""465 sizes."""
