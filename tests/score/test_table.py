"""The table holds what the single scores give, in plain Arrow types, whatever the batches."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.keyed import numpy_rng
from raydd.models.checkpoint import ModelInfo
from raydd.models.teacher import as_teacher
from raydd.score.gradnorm import GradNorm
from raydd.score.outputs import Outputs
from raydd.score.shapley import ShapleyScorer
from raydd.score.table import SCORES, ScoreConfig, Scorer, list_column

COUNT, SIZE = 7, 16
IMAGES = numpy_rng("table").integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(COUNT)]
KEYS = [f"{i}.png" for i in range(COUNT)]


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 5, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)]
    return as_teacher(nn.Sequential(*layers), ModelInfo(arch="test", image_size=SIZE, outputs=3))


def table(teacher, scores, batch: int = 4, **options) -> pa.Table:
    return Scorer(teacher, ScoreConfig(scores=scores, **options), batch=batch)(IMAGES, LABELS, KEYS)


def test_columns_hold_the_single_scores(teacher):
    made = table(teacher, SCORES)
    x = teacher.normalize(torch.tensor(IMAGES).permute(0, 3, 1, 2))
    y = torch.tensor(LABELS)
    out = Outputs(teacher.model)(x, y)
    wanted = {name: out[name] for name in ("features", "gradnorm_last", "el2n", "loss", "margin")}
    wanted["gradnorm"] = GradNorm(teacher.model)(x, y)
    maps = ShapleyScorer(teacher.model)(x, y, KEYS)
    wanted |= {name: maps[name] for name in ("shapley", "heat", "v_full", "v_empty")}
    assert set(made.column_names) == {"key", "label", *wanted}
    assert made["key"].to_pylist() == KEYS and made["label"].to_pylist() == LABELS
    for name, value in wanted.items():
        tolerance = 2e-3 if name == "features" else 1e-4
        np.testing.assert_allclose(np.array(made[name].to_pylist(), float), value, rtol=tolerance, atol=tolerance / 10)


def test_types_are_plain(teacher):
    schema = table(teacher, ("features", "shapley", "loss")).schema
    assert schema.field("key").type == pa.string() and schema.field("label").type == pa.int32()
    assert schema.field("features").type == pa.list_(pa.float16(), 20)
    assert schema.field("shapley").type == pa.list_(pa.float32(), 16)
    assert schema.field("heat").type == pa.list_(pa.float32(), 9)
    assert schema.field("loss").type == pa.float32()


def test_windows_have_no_patch_map(teacher):
    made = table(teacher, ("shapley",), estimator="windows")
    assert "shapley" not in made.column_names and "heat" in made.column_names


def test_split_of_the_images_changes_nothing(teacher):
    scorer = Scorer(teacher, ScoreConfig(scores=("features", "gradnorm", "shapley")), batch=4)
    whole = scorer(IMAGES, LABELS, KEYS)
    parts = [scorer(IMAGES[s], LABELS[s], KEYS[s]) for s in (slice(0, 3), slice(3, COUNT))]
    assert whole.equals(pa.concat_tables(parts).combine_chunks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ("gradnrom",)}, "unknown score 'gradnrom': did you mean 'gradnorm'"),
        ({"scores": ("shapley",), "estimator": "bordr"}, "unknown estimator 'bordr'"),
        ({"scores": ("shapley",), "game": "loss"}, "unknown game 'loss'"),
        ({"scores": ("shapley",), "evaluations": 5}, "evaluations 5"),
        ({"scores": ()}, "no scores"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(UserError, match=message):
        ScoreConfig(**options).check()


def test_list_column_is_the_matrix():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list_column(matrix).to_pylist() == matrix.tolist()
    assert list_column(torch.from_numpy(matrix).T).to_pylist() == matrix.T.tolist()
