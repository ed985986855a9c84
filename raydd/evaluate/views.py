"""Stored teacher logits of every augmented, mixed view (FKD's idea; format of evaluation.md section 3.3).

    RUN/distilled/views/part-<k>.safetensors    logits of some epochs, [epochs, N, K], row = rank of the image's key
    RUN/distilled/views/views.json              everything they depend on; a mismatch of any field is refused

Augmentation parameters are functions of (label seed, epoch, rank), so only logits are stored and the reader rebuilds
the views. fp32 labels equal online ones bit for bit on one machine, by construction; fp16 halves them; int8 stores one
byte per logit and a scale and an offset per view (fp16).
Limit: there are labels for as many passes over the set as were written; a student of more steps is refused.
"""

import json
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from raydd.errors import UserError, choose
from raydd.evaluate.labels import OnlineLabels
from raydd.models.normalization import Normalization
from raydd.store.filesystem import join, read_bytes, write_atomic
from raydd.store.plain import load_tensors, read_json
from raydd.train.batches import Batch, Batches
from raydd.train.protocol import Protocol
from raydd.train.sets import TrainSet

CODECS = ("fp32", "fp16", "int8")
PART_BYTES = 256 << 20
RECORD = "views.json"


@dataclass(frozen=True)
class ViewsRecord:
    """What stored views depend on, and how they are laid out (`epochs_per_part`, the last part may be shorter)."""

    protocol: str
    batch: int
    precision: str
    label_seed: int
    teacher: str
    normalization: list[list[float]]
    images: str
    n_images: int
    num_classes: int
    epochs: int
    epochs_per_part: int
    codec: str


class ViewLabels:
    """Labels read from stored views; made by `open_views`. Holds one part in memory."""

    kind, teacher_forwards = "soft", 0

    def __init__(self, uri: str, record: ViewsRecord):
        self.uri, self.record, self.seed = uri, record, record.label_seed
        self._part: tuple[int, dict[str, Tensor]] = (-1, {})

    def targets(self, batch: Batch, temperature: float) -> Tensor:
        """Probabilities float32 [B, K] of the views of one batch."""
        return (self.logits(batch).to(batch.images.device) / temperature).softmax(dim=1)

    def logits(self, batch: Batch) -> Tensor:
        """Stored logits float32 [B, K]. Raises `UserError` past the last stored epoch."""
        if batch.epoch >= self.record.epochs:
            raise UserError(
                f"stored views cover {self.record.epochs} epochs, this training needs more: train for fewer steps, "
                "or use labels online"
            )
        part, epoch = divmod(batch.epoch, self.record.epochs_per_part)
        if self._part[0] != part:
            name = join(self.uri, part_name(part))
            self._part = (part, load_tensors(read_bytes(name), name))
        rows = torch.from_numpy(batch.rows)
        return decode({name: values[epoch][rows] for name, values in self._part[1].items()})


def part_name(part: int) -> str:
    """File name of a part."""
    return f"part-{part}.safetensors"


def write_views(
    uri: str,
    train: TrainSet,
    protocol: Protocol,
    teacher,
    seed: int,
    *,
    normalization: Normalization,
    codec: str = "fp16",
    epochs: int | None = None,
    device: str | torch.device = "cpu",
) -> ViewsRecord:
    """Run the teacher on all views of `protocol` and store its logits under `uri`; the record is written last.

    `codec`: `fp32`, `fp16` or `int8`. `epochs` defaults to the protocol's. Raises `UserError` for an unknown codec.
    """
    choose("codec", codec, CODECS)
    epochs = protocol.epochs if epochs is None else epochs
    batches = Batches(train, protocol, seed, normalization, device=device)
    labels = OnlineLabels(teacher, normalization, device)
    num_classes, per_part, part = 0, epochs, []
    for epoch in range(epochs):
        part.append(_epoch_logits(batches, labels, epoch, protocol.precision == "bf16"))
        if epoch == 0:
            num_classes = part[0].shape[1]
            per_part = max(1, min(epochs, PART_BYTES // (part[0].numel() * 4)))
        if len(part) == per_part or epoch == epochs - 1:
            write_atomic(join(uri, part_name(epoch // per_part)), save(encode(torch.stack(part), codec)))
            part = []
    record = _describe(train, protocol, teacher.hash, seed, normalization, num_classes, epochs, per_part, codec)
    write_atomic(join(uri, RECORD), json.dumps(asdict(record), indent=1).encode())
    return record


def open_views(
    uri: str,
    train: TrainSet,
    protocol: Protocol,
    *,
    normalization: Normalization,
    teacher_hash: str | None = None,
    seed: int | None = None,
) -> ViewLabels:
    """Stored views of `train` under `protocol`.

    Raises `UserError` when there are none, or when any recorded field (protocol, batch, teacher, seed if given,
    normalization, images) differs from what this training would use.
    """
    try:
        stored = read_json(join(uri, RECORD))
    except FileNotFoundError as error:
        raise UserError(f"no stored views at {uri}: write them first, or use labels online") from error
    try:
        record = ViewsRecord(**stored)
    except TypeError as error:
        raise UserError(f"{uri} holds no views that this raydd knows ({error}): write them again") from error
    wanted = _describe(
        train,
        protocol,
        record.teacher if teacher_hash is None else teacher_hash,
        record.label_seed if seed is None else seed,
        normalization,
        record.num_classes,
        record.epochs,
        record.epochs_per_part,
        record.codec,
    )
    for name, value in asdict(wanted).items():
        if stored[name] != value:
            raise UserError(
                f"stored views at {uri} were made with {name} {stored[name]}, this training has {value}: "
                "write them again, or use labels online"
            )
    return ViewLabels(uri, record)


def encode(logits: Tensor, codec: str) -> dict[str, Tensor]:
    """Tensors to store for logits float32 [..., K]: `logits`, or for int8 `steps` uint8 [..., K] and `scale` fp16
    [..., 2] (size of a step, lowest value)."""
    if codec != "int8":
        return {"logits": logits.to(torch.float32 if codec == "fp32" else torch.float16).contiguous()}
    low, high = logits.aminmax(dim=-1, keepdim=True)
    # Rounded to fp16 before use, so that encoder and decoder divide and multiply by the same number.
    scale = torch.cat([(high - low) / 255, low], dim=-1).half()
    step, low = scale.float().split(1, dim=-1)
    steps = ((logits - low) / step.clamp_min(1e-8)).round().clamp(0, 255).to(torch.uint8)
    return {"steps": steps, "scale": scale.contiguous()}


def decode(stored: dict[str, Tensor]) -> Tensor:
    """Logits float32 from what `encode` made."""
    if "logits" in stored:
        return stored["logits"].float()
    step, low = stored["scale"].float().split(1, dim=-1)
    return stored["steps"].float() * step + low


def _epoch_logits(batches: Batches, labels: OnlineLabels, epoch: int, bf16: bool) -> Tensor:
    """Logits of one epoch, by row of the set; float32 [N, K] on the CPU."""
    rows, logits = [], []
    for index in range(batches.per_epoch):
        batch = batches.batch(epoch * batches.per_epoch + index)
        with torch.autocast(batches.device.type, torch.bfloat16, enabled=bf16):
            logits.append(labels.logits(batch).cpu())
        rows.append(torch.from_numpy(batch.rows))
    return torch.cat(logits)[torch.cat(rows).argsort()]


def _describe(
    train: TrainSet,
    protocol: Protocol,
    teacher: str,
    seed: int,
    normalization: Normalization,
    num_classes: int,
    epochs: int,
    per_part: int,
    codec: str,
) -> ViewsRecord:
    return ViewsRecord(
        protocol=protocol.hash,
        batch=protocol.batch,
        precision=protocol.precision,
        label_seed=seed,
        teacher=teacher,
        normalization=[list(normalization.mean), list(normalization.std)],
        images=train.fingerprint(),
        n_images=len(train),
        num_classes=num_classes,
        epochs=epochs,
        epochs_per_part=per_part,
        codec=codec,
    )
