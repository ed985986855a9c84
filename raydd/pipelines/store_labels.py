"""The teacher's logits of every view that a protocol shows, stored with the set for training without the teacher."""

import torch

from raydd.config import content_hash
from raydd.errors import UserError
from raydd.evaluate.views import RECORD, write_views
from raydd.models.normalization import Normalization
from raydd.pipelines.evaluate_request import RecipeOptions, check_complete, recipes
from raydd.pipelines.labels import recorded_teacher
from raydd.pipelines.students import load_training
from raydd.store import distilled, filesystem
from raydd.store.holder import hold
from raydd.store.plain import read_json
from raydd.store.run import Run


def views_hash(run: Run) -> str:
    """Hash of what a run's stored views are; `UserError` if there are none."""
    uri = run.path("distilled", "views", RECORD)
    if not filesystem.exists(uri):
        raise UserError(
            f"{run.uri} holds no stored views: write them with 'raydd store-labels', or use --labels online"
        )
    return content_hash(read_json(uri))


def store_views(run_uri: str, options: RecipeOptions, codec: str) -> int:
    """Store the label teacher's logits of every view of the first soft protocol; returns the bytes."""
    run = Run(filesystem.absolute(run_uri))
    manifest = distilled.read_manifest(run)
    check_complete(run, manifest)
    protocol = next((protocol for _, protocol in recipes(manifest, options) if protocol.labels == "soft"), None)
    if protocol is None:
        raise UserError(f"protocol {options.protocol} needs no soft labels: choose one that does, e.g. --protocol soft")
    train, _ = load_training(run, manifest, protocol)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = recorded_teacher(manifest, options.teacher).load(device)
    seed = manifest["seed"] if options.first_seed is None else options.first_seed
    normalization = Normalization(tuple(manifest["normalization"]["mean"]), tuple(manifest["normalization"]["std"]))
    views = run.path("distilled", "views")
    with hold(run):
        write_views(views, train, protocol, teacher, seed, normalization=normalization, codec=codec, device=device)
    return sum(filesystem.list_sizes(views).values())
