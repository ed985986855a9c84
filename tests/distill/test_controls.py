"""Herding and k-means against brute force on small sets; chosen originals are stored as they are."""

import itertools

import numpy as np
import pytest
import torch

from raydd.data.decode import decode_image
from raydd.distill.controls import ControlConfig, build_class, choose_by_features, choose_herding, choose_kmeans
from raydd.errors import UserError
from raydd.keyed import numpy_rng

FEATURES = numpy_rng("controls").normal(size=(12, 4))


def greedy_herding(features: np.ndarray, ipc: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(ipc):
        rest = [i for i in range(len(features)) if i not in chosen]
        gaps = [np.linalg.norm(features[[*chosen, i]].mean(0) - features.mean(0)) for i in rest]
        chosen.append(rest[int(np.argmin(gaps))])
    return chosen


@pytest.mark.parametrize("ipc", [1, 5, 12])
def test_herding_is_the_greedy_choice(ipc):
    assert choose_herding(FEATURES, ipc) == greedy_herding(FEATURES, ipc)


def test_kmeans_of_separate_groups_takes_the_medoid_of_each():
    rng = numpy_rng("groups")
    centers = np.array([[0, 0], [50, 0], [0, 50]])
    features = np.concatenate([center + rng.normal(size=(6, 2)) for center in centers])
    groups = [features[6 * g : 6 * g + 6] for g in range(3)]
    wanted = {6 * g + int(((group - group.mean(0)) ** 2).sum(1).argmin()) for g, group in enumerate(groups)}
    assert set(choose_kmeans(features, 3, seed=0)) == wanted


def test_kmeans_of_two_is_near_the_best_partition():
    """The best split of ten points by brute force; Lloyd's centers lie within a few percent of its cost."""
    features = FEATURES[:10]

    def cost(rows) -> float:
        parts = [features[list(rows)], np.delete(features, list(rows), axis=0)]
        return sum(((part - part.mean(0)) ** 2).sum() for part in parts)

    best = min(cost(rows) for r in range(1, 6) for rows in itertools.combinations(range(10), r))
    first, second = features[choose_kmeans(features, 2, seed=0)]
    near = [i for i, x in enumerate(features) if ((x - first) ** 2).sum() < ((x - second) ** 2).sum()]
    assert best <= cost(near) < 1.25 * best


def test_no_image_is_taken_twice():
    same = np.ones((6, 3))
    assert sorted(choose_herding(same, 6)) == list(range(6))
    assert sorted(choose_kmeans(same + 1e-3 * FEATURES[:6, :3], 6, 0)) == list(range(6))


@pytest.mark.parametrize("method", ["kmeans", "herding"])
def test_the_seed_decides_kmeans_and_not_herding(method):
    keys = [f"{i}" for i in range(12)]
    draws = {tuple(choose_by_features(method, keys, FEATURES, "cat", 3, seed)) for seed in range(8)}
    assert draws == {tuple(choose_by_features(method, keys, FEATURES, "cat", 3, seed)) for seed in range(8)}
    assert (len(draws) == 1) == (method == "herding")


def test_originals_are_stored_unchanged_and_spares_replace_broken_ones(folder, tmp_path, make_teacher):
    (tmp_path / "set" / "ant" / "1.png").write_bytes(b"no image")
    keys = [f"ant/{i}.png" for i in range(4)]
    teacher = make_teacher(3)
    images = build_class(folder, keys, ControlConfig(), ipc=3, size=16, teacher=teacher)
    assert [image.source_keys for image in images] == [("ant/0.png",), ("ant/2.png",), ("ant/3.png",)]
    for image in images:
        original = (tmp_path / "set" / image.source_keys[0]).read_bytes()
        assert (decode_image(image.data, 16) == decode_image(original, 16)).all()
        assert image.origin == "real" and image.boxes == ((0, 0, 16, 16),)
        pixels = torch.tensor(decode_image(original, 16)).permute(2, 0, 1)[None]
        assert torch.equal(torch.tensor(image.soft_label), teacher.logits(pixels).half().float()[0])
    with pytest.raises(UserError, match="only 3 of 4 chosen images can be read"):
        build_class(folder, keys, ControlConfig(), ipc=4, size=16, teacher=None)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="--mipc 0"):
        ControlConfig(mipc=0).check()
    with pytest.raises(UserError, match="unknown labels 'patch'"):
        ControlConfig(labels="patch").check()
