"""The card's front matter is YAML whatever the names are, and its text does not show where it was made."""

import yaml

from raydd.store.card import dataset_card

MANIFEST = {
    "classes": ["a", "b"],
    "images": 20,
    "image_bytes": 1234,
    "method": 'x": [evil',
    "ipc": 10,
    "source": {"uri": "/home/me/secret/birds | <b>", "fingerprint": "f00"},
    "labels": {"form": "online", "teacher": "/home/me/teachers/r18", "teacher_hash": "abc", "early": True},
}


def test_front_matter_is_yaml_that_names_the_data_files():
    _, front, _ = dataset_card(MANIFEST).split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert fields["tags"][-1] == 'x": [evil' and fields["size_categories"] == ["n<1K"]


def test_text_names_the_facts_and_no_path():
    card = dataset_card(MANIFEST)
    assert "/home/me" not in card and "f00" in card and "1,234 bytes" in card
    assert "r18, hash abc, early epoch" in card
    # Markup of a name is shown, not obeyed.
    assert "birds \\| \\<b\\>" in card.split("---\n", 2)[2]


def test_a_manifest_with_few_facts_still_has_a_card():
    card = dataset_card({"classes": ["a"], "images": 2_000_000, "image_bytes": 5})
    assert "1M<n<10M" in card and "None" not in card.split("---\n", 2)[2].replace("None (raydd)", "")
