"""A prior from a source: trained once, left alone by the same command, refused to another recipe."""

import pytest
from commandline import contents, snapshot

from raydd.errors import UserError
from raydd.models.prior.pipeline import load_prior
from raydd.pipelines import prior
from raydd.pipelines.prior import PriorOptions, PriorUnit, train
from raydd.runtime.work import Resources
from raydd.train.prior_recipe import preset

LOCAL = Resources(executor="local")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Presets keep their names, but no test waits for a real network."""
    from raydd.models.prior.networks import UNetShape

    def shrunk(name, **changes):
        return preset(name, shape=None if "dit" in name else UNetShape((8, 8)), **changes)

    monkeypatch.setattr(prior, "preset", shrunk)


def options(tree, tmp_path, **changes) -> PriorOptions:
    plain = {"data": str(tree), "out": str(tmp_path / "prior"), "size": 8, "steps": 2, "batch": 4}
    return PriorOptions(**(plain | changes))


def test_train_twice(tree, tmp_path, capsys):
    facts = train(options(tree, tmp_path), LOCAL)
    assert "prior: step 2/2, loss" in capsys.readouterr().out
    assert facts["classes"] == ["0", "1", "2"] and facts["image_size"] == 8
    opened = load_prior(str(tmp_path / "prior"), classes=("2", "0"))
    assert opened.labels.tolist() == [2, 0] and opened.image_size == 8
    before = snapshot(tmp_path / "prior")
    assert {name.split("/")[0] for name in before} == {"model_index.json", "raydd.json", "unet", "scheduler", "samples"}
    assert train(options(tree, tmp_path), LOCAL) == facts
    assert snapshot(tmp_path / "prior") == before


def test_another_recipe_is_refused_unless_forced(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    before = contents(tmp_path / "prior")
    with pytest.raises(UserError, match=r"another recipe \(steps: 2 -> 3\)"):
        train(options(tree, tmp_path, steps=3), LOCAL)
    assert contents(tmp_path / "prior") == before
    assert train(options(tree, tmp_path, steps=3, force=True), LOCAL)["recipe"]["steps"] == 3


def test_one_rank_of_a_group_writes_the_same(tree, tmp_path):
    train(options(tree, tmp_path), LOCAL)
    unit = PriorUnit(options(tree, tmp_path, out=str(tmp_path / "other")))
    assert not unit.is_done()
    unit.commit(unit.train("cpu"))
    assert unit.is_done() and contents(tmp_path / "other") == contents(tmp_path / "prior")


def test_latents_need_an_autoencoder(tree, tmp_path):
    with pytest.raises(UserError, match="--preset dit-s learns latents: give --autoencoder"):
        train(options(tree, tmp_path, preset="dit-s"), LOCAL)
    assert not (tmp_path / "prior").exists()


def test_every_option_reaches_the_recipe(tree, tmp_path):
    given = {"steps": 5, "batch": 6, "lr": 0.5, "flip": True, "precision": "fp32", "seed": 9}
    recipe = options(tree, tmp_path, autoencoder="x/y", **given).recipe()
    assert {name: getattr(recipe, name) for name in given} == given
    assert recipe.image_size == 8 and recipe.latent
    assert not options(tree, tmp_path).recipe().latent
