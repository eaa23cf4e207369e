"""The losses once more, in loops over single numbers: slow, and plain enough to check by eye."""

import math
from collections.abc import Sequence

Row = Sequence[float]
Matrix = Sequence[Row]


def dot(left: Row, right: Row) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def logits(features: Matrix, prototypes: Matrix, temperature: float) -> list[list[float]]:
    return [[dot(feature, prototype) / temperature for prototype in prototypes] for feature in features]


def softmax(row: Row) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def sinkhorn(features: Matrix, prototypes: Matrix, temperature: float, num_iterations: int = 3) -> list[list[float]]:
    """As published: probabilities, not logarithms; prototypes share the mass 1 equally, then samples do."""
    q = [[math.exp(value) for value in row] for row in logits(features, prototypes, temperature)]
    num_samples, num_prototypes = len(q), len(q[0])
    total = sum(sum(row) for row in q)
    q = [[value / total for value in row] for row in q]
    for _ in range(num_iterations):
        for j in range(num_prototypes):
            mass = sum(q[i][j] for i in range(num_samples))
            for i in range(num_samples):
                q[i][j] /= mass * num_prototypes
        for i in range(num_samples):
            mass = sum(q[i])
            q[i] = [value / (mass * num_samples) for value in q[i]]
    return [[value * num_samples for value in row] for row in q]


def cross_entropies(targets: Matrix, features: Matrix, prototypes: Matrix, temperature: float = 0.1) -> list[float]:
    """One value a row."""
    rows = []
    for target, row in zip(targets, logits(features, prototypes, temperature), strict=True):
        rows.append(-sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True)))
    return rows


def local_cross_view(targets: Matrix, features: Matrix, prototypes: Matrix, batch: int) -> float:
    """Every local crop of an image with every global view of the same image."""
    total = 0.0
    for crop in range(len(features) // batch):
        for view in range(2):
            for image in range(batch):
                target = targets[view * batch + image]
                feature = features[crop * batch + image]
                total += cross_entropies([target], [feature], prototypes)[0] / batch
    return total


def masked_patch_loss(targets: Matrix, features: Matrix, prototypes: Matrix, masks: Sequence[Sequence[bool]]) -> float:
    """Mean over masked patches of an image, mean over all images; targets and features in row-major order."""
    total, patch = 0.0, 0
    for mask in masks:
        for hidden in mask:
            if hidden:
                total += cross_entropies([targets[patch]], [features[patch]], prototypes)[0] / sum(mask) / len(masks)
                patch += 1
    return total


def koleo(features: Matrix) -> float:
    rows = [[value / math.sqrt(dot(row, row)) for value in row] for row in features]
    total = 0.0
    for i, row in enumerate(rows):
        _, nearest = max((dot(row, rows[j]), j) for j in range(len(rows)) if j != i)
        distance = math.sqrt(sum((a - b + 1e-8) ** 2 for a, b in zip(row, rows[nearest], strict=True)))
        total -= math.log(distance + 1e-8)
    return total / len(rows)


def similarity_distillation(
    student: Matrix, teacher: Matrix, queue: Matrix, student_temperature: float, teacher_temperature: float
) -> float:
    """SEED: candidates are the row's own teacher embedding, then the queue."""
    total = 0.0
    for given, asked in zip(student, teacher, strict=True):
        candidates = [asked, *queue]
        wanted = softmax([dot(asked, candidate) / teacher_temperature for candidate in candidates])
        found = softmax([dot(given, candidate) / student_temperature for candidate in candidates])
        total -= sum(p * math.log(q) for p, q in zip(wanted, found, strict=True))
    return total / len(student)


def feature_distance(given: Row, asked: Row, share: float) -> float:
    """Of one row: cosine distance, and the mean over channels of smooth L1."""
    cosine = dot(given, asked) / math.sqrt(dot(given, given) * dot(asked, asked))
    gaps = [abs(a - b) for a, b in zip(given, asked, strict=True)]
    smooth = sum(gap * gap / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)
    return (1 - share) * (1 - cosine) + share * smooth


def gram_distance(given: Sequence[Matrix], asked: Sequence[Matrix]) -> float:
    """Of the cosines between the patches of each image, squared."""

    def cosines(rows: Matrix) -> list[float]:
        return [dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for a in rows for b in rows]

    squares = [
        (ours - theirs) ** 2
        for image, other in zip(given, asked, strict=True)
        for ours, theirs in zip(cosines(image), cosines(other), strict=True)
    ]
    return sum(squares) / len(squares)


def standardised(rows: Matrix) -> list[list[float]]:
    """Channel by channel, with the variance of all rows."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in column) / len(column) + 1e-5)
        columns.append([(value - mean) / deviation for value in column])
    return [list(row) for row in zip(*columns, strict=True)]


def resized_grid(patches: Matrix, side: int) -> list[list[float]]:
    """Patches of a square grid, row by row, on a grid of ``side`` times ``side``."""
    old, width = math.isqrt(len(patches)), len(patches[0])

    def shares(place: int) -> dict[int, float]:
        """Which old rows (or columns) a new one is made of."""
        if side < old:
            first, end = place * old // side, -(-(place + 1) * old // side)
            return dict.fromkeys(range(first, end), 1 / (end - first))
        at = min(max((place + 0.5) * old / side - 0.5, 0.0), old - 1.0)
        low = min(int(at), old - 1)
        return {low: 1 - (at - low)} | ({low + 1: at - low} if low + 1 < old else {})

    new = []
    for row in range(side):
        for column in range(side):
            value = [0.0] * width
            for i, down in shares(row).items():
                for j, across in shares(column).items():
                    for channel in range(width):
                        value[channel] += down * across * patches[i * old + j][channel]
            new.append(value)
    return new
