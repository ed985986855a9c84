"""Bytes of a plan against those of files: exact for tables and states, near for what holds encoded images."""

import math

import pytest
import safetensors.torch
from pipelines.plan.plan_counter import LOCAL, planned
from pipelines.small_ld3m import method as ld3m
from pipelines.small_ld3m import options as ld3m_options
from priors import write_tiny_prior

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.plan.bytes import crop_row
from raydd.pipelines.plan.make import PlanOptions
from raydd.runtime import checkpoints
from raydd.store import scores
from raydd.store.run import LATENTS, Run

# Key and label, which every table has, a key with Arrow's offset.
KEYED = len("0/00.png") + 4 + 4


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"), 8)


def sizes(found) -> dict[str, int]:
    return {item.what: item.size for item in found.bytes}


def row_bytes(run: Run) -> float:
    """Bytes of a row of a table in memory, key and label apart."""
    table = scores.read_label(run, 0)
    return table.drop_columns(["key", "label"]).combine_chunks().nbytes / table.num_rows


CROPS = [{}, {"estimator": "windows", "alpha": 0.0}, {"crop_from": "random_resized", "score": "ce"}]


@pytest.mark.parametrize("crop", [*CROPS, {"crop_from": "random_window"}, {"crop_from": "full", "crops": 1}])
def test_score_tables(digits_tree, tmp_path, digits_teacher, crop):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), teacher=digits_teacher, ipc=2)
    method = InfoUtil("infoutil", InfoUtilConfig(crop=CropConfig(**crop), select=SelectConfig(mipc=12)))
    found = sizes(planned(asked, method))
    distill(asked, method, LOCAL)
    assert crop_row(method.config.at(16).crop) == row_bytes(Run(str(tmp_path)))
    assert found["scores"] == 36 * (row_bytes(Run(str(tmp_path))) + KEYED)


def test_features_and_latents(digits_tree, tmp_path, digits_teacher, prior):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "a"), teacher=digits_teacher, ipc=2)
    method = Control("herding", ControlConfig())
    found = sizes(planned(asked, method))
    distill(asked, method, LOCAL)
    assert found["scores"] == 48 * (row_bytes(Run(str(tmp_path / "a"))) + KEYED)
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path / "b"), prior=prior, ipc=2)
    method = Dsco("dsco", DscoConfig(steps=2, iterations=1))
    found = sizes(planned(asked, method))
    distill(asked, method, LOCAL)
    assert found["latents"] == 48 * (row_bytes(Run(str(tmp_path / "b"), LATENTS)) + KEYED)


def largest_state(monkeypatch, options, method) -> int:
    """Bytes of numbers in the largest state that a distillation saves."""
    found = [0]
    monkeypatch.setattr(checkpoints.UnitWork, "due", lambda self: True)
    real = checkpoints.UnitWork.save_state

    def save(self, tensors, *more):
        found.append(len(safetensors.torch.save({name: t.contiguous().clone() for name, t in tensors.items()})))
        found[-1] -= 8 + int.from_bytes(safetensors.torch.save(dict(tensors))[:8], "little")
        return real(self, tensors, *more)

    monkeypatch.setattr(checkpoints.UnitWork, "save_state", save)
    distill(options, method, LOCAL)
    return max(found)


@pytest.mark.parametrize("changes", [{}, {"chunk": 2}, {"access": "free", "templates": 3, "optimizer": "sgd"}])
def test_states_of_noise_optimization(digits_tree, tmp_path, prior, monkeypatch, changes):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), prior=prior, ipc=5)
    method = Dsco("dsco", DscoConfig(**({"steps": 3, "iterations": 1} | changes)))
    found = sizes(planned(asked, method))["half-done state, per worker"]
    assert found == largest_state(monkeypatch, asked, method)


@pytest.mark.parametrize("changes", [{}, {"learn": "latent"}, {"optimizer": "adam"}])
def test_states_of_learning(digits_tree, tmp_path, small_prior, monkeypatch, changes):
    asked, method = ld3m_options(digits_tree, tmp_path, small_prior), ld3m(**changes)
    found = sizes(planned(asked, method))
    # The last iteration is not saved, and with it its loss.
    assert found["half-done state, per worker"] - 8 == largest_state(monkeypatch, asked, method)
    learned = sum(path.stat().st_size for path in (tmp_path / "learned").glob("*.safetensors"))
    assert 0 < learned - found["what was learned"] < 3 * 2000


def test_images_and_labels(digits_tree, tmp_path, digits_teacher):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), teacher=digits_teacher, ipc=10)
    method = Control("random", ControlConfig(labels="single"))
    guessed, counted = (sizes(planned(asked, method, PlanOptions(calibrate=on))) for on in (False, True))
    manifest = distill(asked, method, LOCAL)
    written = sum(path.stat().st_size for path in tmp_path.glob("distilled/label=*/*.parquet"))
    assert math.isclose(counted["distilled images"], written, rel_tol=0.1)
    assert guessed["distilled images"] > 0 and counted["soft labels"] == manifest["label_bytes"] == 3 * 10 * 3 * 2
