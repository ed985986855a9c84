"""Expert trajectories on disk: `expert-<i>.safetensors`, one per expert, and `experts.json`, which says what they are.

A file holds the parameters before training, `start` float16 [P] (exact: they were rounded before training), and the
displacements after each epoch, `differences` float16 [E, P] (ld3m.md, section 6). Measured on ConvNets trained on the
digits: an error of .02 % on a displacement, .08 % between two snapshots of one epoch's distance; parameters themselves
in float16 would put 1 to 1.5 % on what MTT divides by. No scaling: experts trained at a tenth of the rate are as exact.

The metadata repeats what `experts.json` says and the hash of the configuration, so that a file of other experts is
never read as one of these. Files appear whole or not at all; nothing is unpickled.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raydd.config import content_hash, to_plain
from raydd.errors import UserError
from raydd.store import filesystem
from raydd.store.plain import parse_json, safetensors_header

INDEX, RECORD = "experts.json", "raydd_expert"
HEAD_BYTES = 1 << 16  # what one request fetches of a file to read its header, which is seldom longer
_FILE = re.compile(r"expert-(\d+)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class ExpertFacts:
    """What all experts of a directory share.

    classes: names by label, the position in the group that was trained. mean, std: normalization of pixels in [0, 1].
    epochs: trained, so that snapshots 0 .. epochs can be read. names, shapes: the parameters in the order of the flat
    vector. measured_on: `val` or `train`, the images that accuracies were measured on.
    """

    arch: str
    norm: str
    width: int | None
    num_classes: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    seed: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    measured_on: str
    config_hash: str

    @property
    def parameters(self) -> int:
        """P, the length of a snapshot."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Trajectory:
    """One expert: `start` float16 [P] and `differences` float16 [E, P]; `accuracy` of each snapshot, in [0, 1]."""

    start: Tensor
    differences: Tensor
    accuracy: tuple[float, ...]

    @property
    def epochs(self) -> int:
        return len(self.differences)

    def at(self, epoch: int) -> Tensor:
        """The parameters after `epoch` epochs, a new float32 [P]. Raises `IndexError` outside 0 .. epochs."""
        if not 0 <= epoch <= self.epochs:
            raise IndexError(f"snapshot {epoch} of 0 .. {self.epochs}")
        start = self.start.float()
        return start if epoch == 0 else start + self.differences[epoch - 1].float()


@dataclass(frozen=True, kw_only=True)
class Experts(ExpertFacts):
    """The experts of a directory: `count` of them, numbered from 0; `accuracy` is the mean of each snapshot."""

    uri: str
    count: int
    accuracy: tuple[float, ...]

    @property
    def hash(self) -> str:
        """What a result drawn from these experts depends on: how they were trained, and how many there are."""
        return content_hash((self.config_hash, self.count))

    def load(self, index: int) -> Trajectory:
        """Read one expert. Raises `UserError` for a file that is missing, damaged, or of other experts."""
        uri = _path(self.uri, index)
        again = "run the same 'raydd train-experts' command again to replace it"
        try:
            data = filesystem.read_bytes(uri)
        except FileNotFoundError as error:
            raise UserError(f"{uri} is missing ({self.uri} has experts 0 .. {self.count - 1}): {again}") from error
        try:
            tensors = safetensors.torch.load(data)
            record = _header(data)[RECORD]
            start, differences = tensors["start"], tensors["differences"]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{uri} is no expert, or a damaged one ({reason}): remove it and {again}") from error
        if record.get("config_hash") != self.config_hash or differences.shape != (self.epochs, self.parameters):
            raise UserError(f"{uri} is of other experts than {INDEX} beside it: remove it and {again}")
        return Trajectory(start, differences, tuple(record["accuracy"]))

    def check(
        self,
        *,
        arch: str | None = None,
        size: int | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        epochs: int | None = None,
    ) -> None:
        """Raise `UserError`, in one line with the remedy, unless the experts are what is asked; None is not asked.

        epochs: the last snapshot that will be read.
        """
        if arch is not None and arch != self.arch:
            self._refuse(f"are of {self.arch}, not {arch}", f"--arch {arch}")
        if size is not None and size != self.image_size:
            self._refuse(f"work at {self.image_size} px, not {size} px", f"--size {size}")
        if classes is not None and (said := _differing(self.classes, tuple(classes))):
            self._refuse(said, "the same --data and --classes")
        for name, own, asked in (("mean", self.mean, mean), ("std", self.std, std)):
            if asked is not None and own != tuple(asked):
                said = f"were normalized by {name} {list(own)}, not {list(asked)}"
                self._refuse(said, "the same --teacher (or none, as here)")
        if epochs is not None and epochs > self.epochs:
            self._refuse(f"have {self.epochs} epochs, but epoch {epochs} is to be read", f"--epochs {epochs}")

    def _refuse(self, said: str, option: str) -> None:
        raise UserError(
            f"the experts in {self.uri} {said}: name others, or train them with 'raydd train-experts' and {option}"
        )


def write_expert(uri: str, index: int, snapshots: Tensor, facts: ExpertFacts, accuracy: Sequence[float]) -> None:
    """Write one expert to the directory `uri`, atomically: snapshots float32 [epochs + 1, P] on the CPU.

    Raises `ValueError` for another shape, a first snapshot that is not exact in float16, or numbers out of its range.
    """
    start, differences = snapshots[0].half(), (snapshots[1:] - snapshots[0]).half()
    if snapshots.shape != (facts.epochs + 1, facts.parameters) or not differences.isfinite().all():
        raise ValueError(f"expected finite snapshots [{facts.epochs + 1}, {facts.parameters}]")
    if not torch.equal(start.float(), snapshots[0]):
        raise ValueError("the first snapshot must be rounded to float16 before training")
    tensors = {"start": start, "differences": differences}
    record = to_plain(facts) | {"index": index, "accuracy": list(accuracy)}
    filesystem.write_atomic(_path(uri, index), safetensors.torch.save(tensors, {RECORD: json.dumps(record)}))


def has_expert(uri: str, index: int, config_hash: str) -> bool:
    """Whether expert `index` of this configuration is there, whole."""
    record = _read_record(_path(uri, index))
    return record is not None and record.get("config_hash") == config_hash


def write_index(uri: str, facts: ExpertFacts) -> Experts:
    """Say in `experts.json` what is there: the experts of `facts`, as many as are numbered from 0 without a gap."""
    records = []
    while (record := _read_record(_path(uri, len(records)))) and record.get("config_hash") == facts.config_hash:
        records.append(record)
    accuracy = tuple(sum(values) / len(records) for values in zip(*(record["accuracy"] for record in records)))
    plain = to_plain(facts) | {"count": len(records), "accuracy": [round(value, 6) for value in accuracy]}
    data = json.dumps(plain, indent=1).encode()
    place = filesystem.join(uri, INDEX)
    if not filesystem.exists(place) or filesystem.read_bytes(place) != data:
        filesystem.write_atomic(place, data)
    return _experts(uri, plain)


def open_experts(uri: str) -> Experts:
    """The experts of a directory. Raises `UserError` if there are none, or the index cannot be read."""
    uri = filesystem.absolute(uri)
    remedy = f"train them with 'raydd train-experts --data SRC --out {uri}'"
    try:
        data = filesystem.read_bytes(filesystem.join(uri, INDEX))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"no experts in {uri} (it has no {INDEX}): {remedy}") from error
    try:
        experts = _experts(uri, parse_json(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{uri}/{INDEX} does not describe experts ({error}): {remedy}") from error
    if not experts.count:
        raise UserError(f"no expert in {uri} is finished: {remedy}")
    return experts


def discard(uri: str) -> None:
    """Remove the experts of a directory and their index."""
    filesystem.remove_tree(filesystem.join(uri, INDEX))
    for name in filesystem.list_directory(uri)[1]:
        if _FILE.fullmatch(name):
            filesystem.remove_tree(filesystem.join(uri, name))


def _path(uri: str, index: int) -> str:
    return filesystem.join(uri, f"expert-{index:05d}.safetensors")


def _experts(uri: str, plain: dict[str, Any]) -> Experts:
    known = {field.name for field in dataclasses.fields(Experts)} - {"uri"}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items() if name in known}
    values["shapes"] = tuple(tuple(shape) for shape in plain["shapes"])
    return Experts(uri=uri, **values)


def _differing(own: tuple[str, ...], asked: tuple[str, ...]) -> str:
    """What to say of class names that are not the same in the same order; nothing if they are."""
    if len(own) != len(asked):
        return f"know {len(own)} classes, not {len(asked)}"
    differing = (f"call class {i} {a!r}, not {b!r}" for i, (a, b) in enumerate(zip(own, asked)) if a != b)
    return next(differing, "")


def _read_record(uri: str) -> dict[str, Any] | None:
    """What the metadata of an expert says, read without its tensors; None if it is absent, cut, or something else."""
    try:
        data, size = filesystem.read_bytes(uri, 0, HEAD_BYTES), filesystem.size(uri)
    except FileNotFoundError:
        return None
    length = 8 + int.from_bytes(data[:8], "little")
    if HEAD_BYTES < length <= size:
        data = filesystem.read_bytes(uri, 0, length)
    try:
        header = _header(data)
        whole = length + max(header[name]["data_offsets"][1] for name in ("start", "differences"))
    except (ValueError, KeyError, TypeError):
        return None
    return header[RECORD] if size in (whole, -1) else None


def _header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file, with our record parsed. Raises `ValueError` or `KeyError` for anything else."""
    header = safetensors_header(data)
    return header | {RECORD: parse_json(header["__metadata__"][RECORD])}
