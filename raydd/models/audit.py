"""Is this teacher any good on this source? Rule 4 of the evaluation: measured before it scores, labels or judges.

A teacher below the smaller of five times chance and the midpoint of chance and 1 is refused; one declared `early` is
only warned about. The best one-to-one assignment of outputs to classes is solved too: where it beats the plain accuracy
by `PERMUTED` the class order is wrong, which no loss or label would show.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from raydd.errors import UserError
from raydd.models.teacher import Teacher

BATCH = 256
PERMUTED, SUSPICIOUS = (
    0.1,
    0.01,
)  # gain in accuracy by relabeling: refused above the first, warned about above the second
STATED = 0.02  # tolerated shortfall from the accuracy that the teacher's maker states
SHOWN = 5


@dataclass(frozen=True)
class TeacherReport:
    """Accuracies are 0..1. `mapping[k]` is the output that fits class k best; `entropy` is in nats, of the softmax."""

    top1: float
    chance: float
    best_assignment_top1: float
    mapping: tuple[int, ...]
    entropy: float
    count: int
    classes: tuple[str, ...] = ()


def measure_teacher(teacher: Teacher, data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]) -> TeacherReport:
    """Accuracy, best assignment and label entropy of a teacher on labeled images.

    `data` is one pair (uint8 [N, 3, S, S], int64 [N]) or an iterable of such pairs. Raises `ValueError` without images.
    """
    if isinstance(data, tuple) and isinstance(data[0], Tensor):
        data = zip(data[0].split(BATCH), data[1].split(BATCH))
    outputs = teacher.info.outputs
    confusion, entropy = torch.zeros(outputs, outputs, dtype=torch.int64), 0.0
    for images, labels in data:
        log_p = teacher.logits(images.contiguous(memory_format=torch.channels_last)).log_softmax(1).cpu().double()
        entropy -= (log_p.exp() * log_p).sum().item()
        cells = labels.cpu() * outputs + log_p.argmax(1)
        confusion += torch.bincount(cells, minlength=outputs * outputs).view(outputs, outputs)
    count = int(confusion.sum())
    if not count:
        raise ValueError("no images to measure the teacher on")
    truth, mapping = linear_sum_assignment(confusion.numpy(), maximize=True)
    return TeacherReport(
        top1=confusion.trace().item() / count,
        chance=1 / outputs,
        best_assignment_top1=confusion[truth, mapping].sum().item() / count,
        mapping=tuple(int(output) for output in mapping),
        entropy=entropy / count,
        count=count,
        classes=teacher.info.classes,
    )


def verdict(report: TeacherReport, *, early: bool = False, stated_top1: float | None = None) -> list[str]:
    """Warnings about a measured teacher, in plain sentences; [] if there is nothing to say.

    Raises `UserError` for a class order that is evidently wrong and, unless `early`, for a teacher that is too weak.
    """
    warnings = []
    gain = report.best_assignment_top1 - report.top1
    if gain > SUSPICIOUS:
        found = (
            f"top-1 is {report.top1:.1%}, but {report.best_assignment_top1:.1%} if outputs are given to other classes "
            f"({_moved(report)})"
        )
        if gain > PERMUTED:
            raise UserError(
                f"the teacher's class order is wrong: {found}; give it the source's class list in this order"
            )
        warnings.append(f"the teacher's class order looks doubtful: {found}")
    least = min(5 * report.chance, (report.chance + 1) / 2)
    if report.top1 < least:
        weak = f"the teacher's top-1 is {report.top1:.1%} on {report.count} images, chance is {report.chance:.1%}"
        if not early:
            raise UserError(f"{weak}, at least {least:.1%} is needed: train it longer, or check data and normalization")
        warnings.append(f"{weak} (it is declared early)")
    if stated_top1 is not None and report.top1 < stated_top1 - STATED:
        warnings.append(
            f"the teacher's top-1 is {report.top1:.1%}, but {stated_top1:.1%} is stated for it: "
            "check image size, normalization and class list"
        )
    return warnings


def _moved(report: TeacherReport) -> str:
    moved = [(k, output) for k, output in enumerate(report.mapping) if k != output]
    name = (lambda k: repr(report.classes[k])) if report.classes else str
    shown = [f"class {k} is output {output}, named {name(output)}" for k, output in moved[:SHOWN]]
    return ", ".join(shown) + (f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else "")
