"""Classifier checkpoints: `NAME.safetensors` with the weights and `NAME.json` with what a user of them must know.

The JSON is written last and holds the weights' hash, so a pair of which only one half was replaced is noticed. Weights
of other origin may be safetensors, or a torch file that `torch.load(weights_only=True)` accepts; nothing is unpickled.
`num_batches_tracked` of batch norm is not required, because many public checkpoints lack it and nothing here uses it.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raydd.config import to_plain
from raydd.errors import UserError
from raydd.models.normalization import IMAGENET, Normalization
from raydd.models.registry import build_model, classifier_layer
from raydd.store import filesystem
from raydd.store.plain import parse_json

WEIGHTS, INFO = ".safetensors", ".json"
TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt")
OPTIONAL = "num_batches_tracked"


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a trained classifier. `classes` are the output names in order, empty if unknown."""

    arch: str
    image_size: int
    outputs: int
    classes: tuple[str, ...] = ()
    norm: str | None = None
    width: int | None = None
    mean: tuple[float, ...] = IMAGENET.mean
    std: tuple[float, ...] = IMAGENET.std
    epoch: int | None = None  # epochs trained
    early: bool = False  # stopped early on purpose: a low top1 is expected
    top1: float | None = None  # 0..1, on `val_count` images of `val_source`
    label_entropy: float | None = None  # mean entropy in nats of the softmax on the same images
    val_source: str | None = None
    val_count: int | None = None
    source: str | None = None  # fingerprint of the training source
    recipe: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # `weights_hash` of the tensors

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std)


def save_checkpoint(directory: str, name: str, model: nn.Module, info: ModelInfo) -> ModelInfo:
    """Write `directory/name.safetensors` and `.json`, each atomically; returns `info` with the weights' hash.

    `directory` is a path or any fsspec URI that can be written. Raises `UserError` when it cannot.
    """
    state = host_state(model)
    info = dataclasses.replace(info, weights=weights_hash(state))
    path = filesystem.join(directory, name)
    filesystem.write_atomic(path + WEIGHTS, safetensors.torch.save(state))
    filesystem.write_atomic(path + INFO, json.dumps(to_plain(info), indent=1).encode())
    return info


def load_checkpoint(directory: str, name: str) -> tuple[nn.Module, ModelInfo]:
    """The network (CPU, evaluation mode) and its description, as `save_checkpoint` wrote them.

    Raises `FileNotFoundError` if there is none, `UserError` if the two files do not belong together.
    """
    path = filesystem.join(directory, name)
    info = read_info(path + INFO)
    state = read_weights(path + WEIGHTS)
    if info.weights != weights_hash(state):
        raise UserError(f"{path}{INFO} does not describe {path}{WEIGHTS}: copy both files together, or train again")
    return model_from_state(state, info, path + WEIGHTS), info


def has_checkpoint(directory: str, name: str) -> bool:
    """Whether `directory` holds a complete checkpoint `name` (the JSON is written last)."""
    return filesystem.exists(filesystem.join(directory, name + INFO))


def read_info(uri: str) -> ModelInfo:
    """Parse a checkpoint's JSON. Raises `FileNotFoundError`, or `UserError` for one that raydd did not write."""
    try:
        plain = parse_json(filesystem.read_bytes(uri))
        known = {f.name for f in dataclasses.fields(ModelInfo)}
        values = {key: tuple(v) if key in ("classes", "mean", "std") else v for key, v in plain.items() if key in known}
        return ModelInfo(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{uri} does not describe a raydd model ({error}): write it with 'raydd train-teacher'"
        ) from error


def read_weights(uri: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file that is readable without unpickling objects; on the CPU.

    The kind is found from the content. A pickle under a name that does not say so is refused with a `UserError`, as is
    a torch file that holds more than tensors in plain containers.
    """
    data = filesystem.read_bytes(uri)
    if _looks_like_safetensors(data):
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise UserError(f"checkpoint {uri} is damaged ({error}): copy or train it again") from error
    if uri.lower().endswith(TORCH_FILES):
        return _read_torch(uri, data)
    looks = "a pickle" if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04") else "something else"
    raise UserError(
        f"checkpoint {uri} is not a safetensors file (it looks like {looks}); convert it with "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'NEW.safetensors')"
    )


def model_from_state(state: Mapping[str, Tensor], info: ModelInfo, origin: str) -> nn.Module:
    """Build `info.arch` and load `state` into it: CPU, float32, evaluation mode.

    Raises `UserError` that names the first tensor that is missing, unknown or of another shape.
    """
    model = build_model(
        info.arch,
        num_classes=info.outputs,
        image_size=info.image_size,
        norm=None if info.norm == "own" else info.norm,
        width=info.width,
    )
    wanted = model.state_dict()
    problem = _first_misfit(wanted, state)
    if problem:
        raise UserError(
            f"{origin} does not fit {info.arch} with {info.outputs} outputs at {info.image_size} px ({problem}): "
            "check the architecture, its norm and width, and the image size"
        )
    model.load_state_dict({name: state.get(name, tensor) for name, tensor in wanted.items()})
    return model.eval()


def count_outputs(state: Mapping[str, Tensor], arch: str, image_size: int, origin: str) -> int:
    """Number of classes of the weights of an `arch`, read off its last layer; `UserError` if that layer is missing."""
    name, _ = classifier_layer(build_model(arch, num_classes=2, image_size=image_size))
    if f"{name}.weight" not in state:
        raise UserError(f"{origin} has no {name}.weight, so it is not {arch}: name its architecture, e.g. resnet18")
    return len(state[f"{name}.weight"])


def host_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy of the model's tensors on the CPU, contiguous in the default memory format."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits of SHA-256 over names, types, shapes and bytes, in order of names, without batch counters."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith(OPTIONAL):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _looks_like_safetensors(data: bytes) -> bool:
    # The format opens with the header's length (8 bytes, little endian), then the header, a JSON object.
    return len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _read_torch(uri: str, data: bytes) -> dict[str, Tensor]:
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises many types on what it refuses, and on damage
        raise UserError(
            f"checkpoint {uri} cannot be read without running code from it: save only its state_dict() as safetensors"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"checkpoint {uri} does not hold named tensors: save the model's state_dict() as safetensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _first_misfit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    for name, tensor in wanted.items():
        if name not in state and not name.endswith(OPTIONAL):
            return f"{name} is missing"
        if name in state and state[name].shape != tensor.shape:
            return f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
    unknown = [name for name in state if name not in wanted]
    return f"{unknown[0]} is unknown" if unknown else ""
