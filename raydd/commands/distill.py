"""`raydd distill METHOD`: the options of every method, and which object carries it out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tyro

from raydd.commands.parsing import console, parse, take_preset
from raydd.distill.controls import CONTROLS, ControlConfig
from raydd.distill.dsco.config import PRESETS as DSCO_PRESETS
from raydd.distill.dsco.config import DscoConfig
from raydd.distill.infoutil.config import PRESETS, CropConfig, InfoUtilConfig, SelectConfig
from raydd.distill.ld3m.config import PRESETS as LD3M_PRESETS
from raydd.distill.ld3m.config import Ld3mConfig
from raydd.distill.output import OutputConfig
from raydd.errors import choose
from raydd.evaluate.record import FULL
from raydd.pipelines import distill as distilling
from raydd.pipelines.controls import Control
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.ld3m import Ld3m, make
from raydd.pipelines.method import Method
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples
from raydd.pipelines.request import DistillOptions
from raydd.runtime.work import Resources

# How a method's options are parsed: the dataclass, the method's name, the arguments, and other defaults or None.
Read = Callable[..., Any]
METHODS = {
    "dsco": "images from a diffusion prior whose sampling noise is optimized to match each class's distribution",
    "infoutil": "crops where the teacher's Shapley values are high, chosen by gradient norm, tiled to mosaics",
    "rded": "random resized crops with the lowest loss, tiled to mosaics (a setting of InfoUtil's pipeline)",
    "ld3m": "latents and conditions of a diffusion prior, learned through its sampling chain by DM, DC or MTT",
    "random": "whole images at random",
    "kmeans": "the images nearest to k-means centers of the teacher's features",
    "herding": "images whose mean feature stays closest to the class mean",
    "prior": "plain samples of a diffusion prior",
    FULL: "no distillation: the whole source, as the ceiling of a comparison",
}


@dataclasses.dataclass(frozen=True)
class DistillInfoUtil:
    """InfoUtil: crops by Shapley values, selection by gradient norm, mosaics, a teacher's soft labels.

    --preset default|paper|fast|rded|random_windows sets all switches at once; the ones given here are changed on top.
    """

    job: DistillOptions
    crop: CropConfig = CropConfig()
    select: SelectConfig = SelectConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillDsco:
    """DsCo: noise optimization inside a diffusion sampler, with the source or, by --preset dsco-free, without.

    --preset dsco|dsco-fast|dsco-sgd|dsco-free|dsco-released sets all switches at once; the ones given here are changed
    on top. 'raydd dope' then adds selected originals.
    """

    job: DistillOptions
    nopt: DscoConfig = DscoConfig()
    output: OutputConfig = OutputConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillLd3m:
    """LD3M: latents and conditions of a prior, learned through its sampling chain by a matching loss.

    --preset ld3m|ld3m-demo|ld3m-autoencoder|ld3m-pixels|ld3m-released sets all switches at once; the ones given here
    are changed on top. --init RUN starts from the images of a finished run.
    """

    job: DistillOptions
    learn: Ld3mConfig = Ld3mConfig()
    output: OutputConfig = OutputConfig()
    resources: Resources = Resources()
    # Workers that learn the classes of --loss mtt together, each some chunks of the images; the result is the same.
    ddp: int = 1


@dataclasses.dataclass(frozen=True)
class DistillPrior:
    """A control: plain samples of a diffusion prior."""

    job: DistillOptions
    samples: PriorConfig = PriorConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillControl:
    """A control: real images chosen at random, by k-means, or by herding."""

    job: DistillOptions
    control: ControlConfig = ControlConfig()
    resources: Resources = Resources()


@dataclasses.dataclass(frozen=True)
class DistillFull:
    """The whole source as the ceiling: a run without images; `evaluate` trains it for the steps of a set of --ipc."""

    job: DistillOptions


def distill(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        distill_overview()
        return
    name, args = choose("method", args[0], METHODS), args[1:]
    if name == FULL:
        command = parse(DistillFull, f"distill {name}", args)
        manifest = distilling.reference(command.job)
        console.print(f"{FULL}: stands for the whole of {manifest['source']['uri']} in {command.job.out}")
        return
    command, method = read_request(name, args, _read)
    manifest = distilling.distill(command.job, method, command.resources, getattr(command, "ddp", 1))
    console.print(
        f"{manifest['method']}: {manifest['images']} images, {manifest['image_bytes'] / 1e6:.2f} MB, revision "
        f"{manifest['revision']}, in {command.job.out}/distilled"
    )


def read_request(name: str, args: list[str], read: Read) -> tuple[Any, Method]:
    """The options of a method as `read(dataclass, method, args, default)` parses them, and the method itself."""
    if name in CONTROLS:
        command = read(DistillControl, name, args)
        return command, Control(name, command.control)
    if name == "prior":
        command = read(DistillPrior, name, args)
        return command, PriorSamples(name, command.samples)
    if name == "dsco":
        return _dsco(args, read)
    return _ld3m(args, read) if name == "ld3m" else _infoutil(name, args, read)


def _read(kind: Any, name: str, args: list[str], default: Any = None) -> Any:
    return parse(kind, f"distill {name}", args, default)


def distill_overview() -> None:
    """The methods, one line each."""
    print("usage: raydd distill METHOD --data SRC --out RUN --ipc N [options]\n")
    for name, summary in METHODS.items():
        print(f"  {name:10} {summary}")
    print("\n'raydd distill METHOD --help' explains every option of a method.")


def _infoutil(name: str, args: list[str], read: Read) -> tuple[DistillInfoUtil, InfoUtil]:
    preset, args = take_preset(args, "rded" if name == "rded" else "default", PRESETS)
    base = PRESETS[preset]()
    default = DistillInfoUtil(_missing_options(), base.crop, base.select)
    command = read(DistillInfoUtil, name, args, default)
    label = name if preset in ("default", name) else f"{name}-{preset}"
    return command, InfoUtil(label, InfoUtilConfig(crop=command.crop, select=command.select))


def _dsco(args: list[str], read: Read) -> tuple[DistillDsco, Dsco]:
    preset, args = take_preset(args, "dsco", DSCO_PRESETS)
    command = read(DistillDsco, "dsco", args, DistillDsco(_missing_options(), DSCO_PRESETS[preset]()))
    name = f"{preset}-free" if command.nopt.access == "free" and not preset.endswith("free") else preset
    return command, Dsco(name, command.nopt, command.output)


def _ld3m(args: list[str], read: Read) -> tuple[DistillLd3m, Ld3m]:
    preset, args = take_preset(args, "ld3m", LD3M_PRESETS)
    command = read(DistillLd3m, "ld3m", args, DistillLd3m(_missing_options(), LD3M_PRESETS[preset]()))
    name = preset if command.learn.loss == "dm" else f"{preset}-{command.learn.loss}"
    return command, make(name, command.learn, command.output)


def _missing_options() -> DistillOptions:
    return DistillOptions(data=tyro.MISSING, out=tyro.MISSING)
