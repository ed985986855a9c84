"""Chosen keys become the pixels that the decoder gives; stored logits are the teacher's own."""

import torch

from raydd.data.decode import decode_image
from raydd.distill.assemble import open_images, stored_logits
from raydd.distill.encode import resize


def test_only_the_chosen_images_are_opened_and_broken_ones_left_out(folder, tmp_path):
    (tmp_path / "set" / "ant" / "3.png").write_bytes(b"no image")
    found = open_images(folder, ["ant/1.png", "bee/2.png", "ant/3.png", "ant/1.png"], 8)
    assert sorted(found) == ["ant/1.png", "bee/2.png"]
    for key, pixels in found.items():
        decoded = decode_image((tmp_path / "set" / key).read_bytes(), 8)
        assert torch.equal(pixels.permute(1, 2, 0), torch.tensor(decoded)) and pixels.is_contiguous()


def test_logits_are_the_teachers_on_the_resized_tiles(make_teacher):
    teacher = make_teacher(3)
    tiles = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stored = torch.tensor(stored_logits(teacher, tiles, 16)).view(4, 3)
    assert torch.equal(stored, teacher.logits(resize(tiles, 16)).half().float())
    assert stored_logits(None, tiles, 16) is None
