"""One pack of LD3M: its objective, its iterations with saved states, and what it leaves behind."""

import dataclasses
import json

import torch
from torch import Tensor

from raydd.data.tensors import load_images
from raydd.distill.encode import resize
from raydd.distill.ld3m.along import TrajectoryMatching
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.ld3m.generator import Generator, PixelGenerator, PriorGenerator
from raydd.distill.ld3m.loop import Descent, Rates, State
from raydd.distill.ld3m.memory import settle_steps
from raydd.distill.ld3m.objective import ClassMatching, Normalize, Objective
from raydd.distill.ld3m.pack import Pack
from raydd.distill.ld3m.rates import calibrate
from raydd.distill.ld3m.shares import Shares
from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.keyed import hash64
from raydd.models.flat import FlatNet
from raydd.models.registry import build_model, default_students
from raydd.models.teacher import Teacher
from raydd.pipelines.job import Job
from raydd.pipelines.ld3m_start import Start, make_start
from raydd.pipelines.synthetic import from_pixels, open_prior
from raydd.runtime.checkpoints import UnitWork
from raydd.store import events, filesystem
from raydd.store.distilled import DistilledImage
from raydd.store.learned import FOLDER, Learned, write_learned
from raydd.store.plain import read_json
from raydd.store.trajectories import Experts, open_experts

RATES = "rates.json"


def pack_of(job: Job, labels: tuple[int, ...]) -> Pack:
    """The images of some classes of a job."""
    return Pack(tuple(job.classes[i] for i in labels), labels, len(job.classes), job.ipc, job.seed)


def packs(learn: Ld3mConfig, job: Job) -> list[tuple[int, ...]]:
    """All classes for MTT; else as many whole classes as fill a chunk."""
    return job.packs(len(job.classes) if learn.loss == "mtt" else max(1, learn.chunk // job.ipc))


def matcher_of(learn: Ld3mConfig, size: int) -> str:
    """The matching network's architecture: as given, else the literature's ConvNet for the size."""
    return learn.matcher or default_students(size)[0]


def student_of(experts: Experts) -> FlatNet:
    """The network that the experts are points of. Raises `UserError` where raydd builds another of that name."""
    net = build_model(
        experts.arch,
        num_classes=experts.num_classes,
        image_size=experts.image_size,
        norm=experts.norm,
        width=experts.width,
    )
    try:
        flat = FlatNet(net.eval())
    except ValueError as error:
        raise UserError(f"no student follows the experts in {experts.uri}, of {experts.norm} norm: {error}") from error
    if (tuple(flat.names), tuple(flat.shapes)) != (experts.names, experts.shapes):
        raise UserError(
            f"the experts in {experts.uri} have other parameters than raydd's {experts.arch}: train them with "
            "'raydd train-experts'"
        )
    return flat


@dataclasses.dataclass(frozen=True)
class PackWork:
    """The optimization of the classes `labels` of a job by method `name`; what was learned is kept of the `wanted`."""

    name: str
    learn: Ld3mConfig
    output: OutputConfig
    job: Job
    labels: tuple[int, ...]
    wanted: tuple[int, ...]
    work: UnitWork

    def run(self, teacher: Teacher | None) -> list[list[DistilledImage]]:
        """The images of each class, after what was learned is written beside them; of ranks above 0 none."""
        descent, start = self._prepare(self.labels)
        rates = self._rates(descent, start)
        initial = descent.images(start.z, start.c)
        state = descent.run(self._load(start), rates, self._save)
        pixels = descent.images(state.z, state.c)
        if self.shares.rank:
            return [[] for _ in self.labels]
        pictures = None if start.pictures is None else resize(start.pictures, self.job.size)
        for k, label in enumerate(self.labels):
            if label not in self.wanted:
                continue
            some = slice(k * self.job.ipc, (k + 1) * self.job.ipc)
            learned = Learned(
                latents=state.z[some],
                conditions=None if state.c is None else state.c[some],
                start=None if pictures is None else pictures[some],
                initial=initial[some],
                iteration=torch.arange(len(state.losses), dtype=torch.int32),
                # Losses are sums over the classes of a pack.
                loss=torch.tensor(state.losses) / len(self.labels),
                heldout_iteration=torch.tensor([at for at, _ in state.heldout], dtype=torch.int32),
                heldout=torch.tensor([value for _, value in state.heldout]) / len(self.labels),
                facts=self._facts(label, state, rates),
            )
            write_learned(self.work.run, label, learned)
        images = from_pixels(pixels, start.keys, self.job, self.output, teacher)
        return [images[k * self.job.ipc : (k + 1) * self.job.ipc] for k in range(len(self.labels))]

    @property
    def shares(self) -> Shares:
        """What this process computes of the pack."""
        return Shares(self.work.context.rank, self.work.context.world)

    def _facts(self, label: int, state: State, rates: Rates) -> dict[str, object]:
        numbers = {"latent": state.z[0].numel()}
        if state.c is not None:
            numbers["condition"] = state.c[0].numel()
        return {
            "class_name": self.job.classes[label],
            "classes_together": len(self.labels),
            "method": self.name,
            "config_hash": self.work.config_hash,
            "numbers_per_image": numbers,
            "rates": dataclasses.asdict(rates),
        }

    def _prepare(self, labels: tuple[int, ...]) -> tuple[Descent, Start]:
        """Everything that does not change during the iterations of a pack, and where they start."""
        pack = pack_of(self.job, labels)
        generator = self._generator(labels, pack)
        normalize = Normalize(*(tuple(self.job.normalization[name]) for name in ("mean", "std")))
        start = make_start(self.learn, self.job, generator, pack)
        return Descent(generator, self._objective(pack, normalize), normalize, pack, self.learn, self.shares), start

    def _generator(self, labels: tuple[int, ...], pack: Pack) -> Generator:
        if self.learn.generator == "pixels":
            return PixelGenerator(self.job.size, self.work.device, self.learn.clamp)
        generator = PriorGenerator(open_prior(self.job, self.work.device), self.learn, self.job.size)
        c = None if generator.prior.num_classes is None else generator.conditions(torch.tensor(labels[:1]))
        generator.keep_steps = settle_steps(generator, c, len(pack))
        return generator

    def _objective(self, pack: Pack, normalize: Normalize) -> Objective:
        if self.learn.loss == "mtt":
            return _along(pack, self.learn, self.work.device)
        found = [self._reals(label) for label in pack.labels]
        arch = matcher_of(self.learn, self.job.size)
        return ClassMatching(pack, found, arch, self.learn, normalize, self.work.device)

    def _reals(self, label: int) -> Tensor:
        """All readable images of a class at the matcher's size, in key order."""
        return load_images(self.job.source, self.job.size, keys=self.job.keys(label)).images

    def _rates(self, descent: Descent, start: Start) -> Rates:
        """The run's step sizes, where they are not given: measured once, on the first pack by the seed's order.

        Every worker that finds none measures the same pack and gets the same numbers, so results do not depend on who
        wrote them down. `descent` and `start` are this pack's.
        """
        given = self.learn.lr_latent, self.learn.lr_cond
        if self.learn.iterations == 0 or all(rate is not None for rate, on in zip(given, self.learn.learns) if on):
            return Rates(*(rate or 0.0 for rate in given))
        known = self._known_rates()
        if self.shares.agree(known is not None, start.z.device):
            return known or self._known_rates()
        descent, start = self._measured(descent, start)
        rates = calibrate(descent, start.z, start.c)
        if self.shares.rank == 0:
            plain = dataclasses.asdict(rates)
            content = json.dumps(plain | {"config_hash": self.work.config_hash}).encode()
            filesystem.write_atomic(self.work.run.path(FOLDER, RATES), content)
            events.append(self.work.run, "rates_settled", **plain)
        return rates

    def _known_rates(self) -> Rates | None:
        """The run's step sizes, if somebody has measured them."""
        uri = self.work.run.path(FOLDER, RATES)
        known = read_json(uri) if filesystem.exists(uri) else {}
        return Rates(known["latent"], known["cond"]) if known.get("config_hash") == self.work.config_hash else None

    def _measured(self, descent: Descent, start: Start) -> tuple[Descent, Start]:
        """The pack that rates are measured on; `descent` and `start` are this one's, which could be prepared."""
        order = sorted(packs(self.learn, self.job), key=lambda pack: hash64(self.job.seed, "rates", pack))
        for labels in order[: order.index(self.labels)]:
            try:
                return self._prepare(labels)
            except UserError:
                # A class that cannot be made fails its own pack, and no other.
                continue
        return descent, start

    def _load(self, start: Start) -> State:
        """The state that an earlier attempt saved, else the start."""
        saved = self.work.load_state()
        if saved is None:
            return State(0, start.z, start.c)
        tensors = {name: value.to(start.z.device) for name, value in saved.tensors.items()}
        losses = tuple(tensors.pop("losses").tolist())
        heldout = tuple((at, value) for at, value in saved.facts["heldout"])
        return State(saved.step, tensors.pop(":z"), tensors.pop(":c", None), tensors, losses, heldout)

    def _save(self, state: State) -> None:
        if self.shares.rank or state.iteration == self.learn.iterations or not self.work.due():
            return
        tensors = state.memory | {":z": state.z, "losses": torch.tensor(state.losses, dtype=torch.float64)}
        if state.c is not None:
            tensors[":c"] = state.c
        self.work.save_state(tensors, state.iteration, {"heldout": state.heldout})


def _along(pack: Pack, learn: Ld3mConfig, device: str) -> TrajectoryMatching:
    experts = open_experts(learn.experts)
    net = student_of(experts)
    net.net.to(device)
    return TrajectoryMatching(pack, net, lambda index: experts.load(index).at, experts.count, learn, device)
