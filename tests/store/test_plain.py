"""Guards let good files pass and name bad ones; every Parquet file with an extension type is found, wherever its name
lies in the footer."""

import base64
import io
import json
import random
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from raydd.errors import UserError
from raydd.store import filesystem, plain

TABLE = pa.table({"key": ["a", "b"], "label": [0, 1], "values": [[1.0], [2.0, 3.0]]})


def parquet(table: pa.Table, **options) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def with_type(name: str, metadata: dict | None = None, columns: int = 1) -> bytes:
    marks = {"ARROW:extension:name": name, "ARROW:extension:metadata": "x"}
    fields = [pa.field(f"column{i}", pa.int64(), metadata=marks if i == columns // 2 else None) for i in range(columns)]
    table = pa.table([pa.array([1])] * columns, schema=pa.schema(fields, metadata))
    return parquet(table)


def test_json():
    assert plain.parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    for text in (b"", b"{", b"\xff\xfe\x00", "[" * 100_000):
        with pytest.raises(ValueError):
            plain.parse_json(text)


def test_a_json_file_holds_an_object(tmp_path):
    uri = str(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        plain.read_json(uri)
    for content, said in ((b"[]", "no JSON object"), (b"{", "damaged"), (b"[" * 100_000, "too deeply")):
        filesystem.write_atomic(uri, content)
        with pytest.raises(UserError, match=said):
            plain.read_json(uri)
    filesystem.write_atomic(uri, b'{"a": 1}')
    assert plain.read_json(uri) == {"a": 1}


def test_tensors_come_back_and_damage_is_named():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1], dtype=torch.uint8)}
    data = safetensors.torch.save(tensors, {"raydd": "{}"})
    found = plain.load_tensors(data, "x")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert plain.safetensors_header(data)["__metadata__"] == {"raydd": "{}"}
    for bad in (b"", data[:20], data[:-1], struct.pack("<Q", 1 << 60) + data[8:]):
        with pytest.raises(UserError, match="file of raydd's"):
            plain.load_tensors(bad, "x")
    for bad in (b"", struct.pack("<Q", 2) + b"[]"):
        with pytest.raises(ValueError):
            plain.safetensors_header(bad)


def test_plain_parquet_passes(tmp_path):
    wide = pa.table({f"a column with a long name {i}": [i] for i in range(2000)})
    features = json.dumps({"info": {"features": {"label": {"names": ["x"] * 5000, "_type": "ClassLabel"}}}})
    for table in (TABLE, wide, TABLE.replace_schema_metadata({"huggingface": features}), TABLE.slice(0, 0)):
        data = parquet(table)
        assert plain.open_parquet(data, "x").read().equals(table)
        assert plain.open_parquet(io.BytesIO(data), "x").read().equals(table)
    uri = str(tmp_path / "a.parquet")
    filesystem.write_atomic(uri, parquet(TABLE))
    assert plain.read_parquet(uri, columns=["label"]).to_pydict() == {"label": [0, 1]}
    assert plain.read_parquet(uri, TABLE.schema).schema == TABLE.schema
    assert len(parquet(wide)) > plain.TAIL_BYTES, "a footer that one request does not fetch"


@pytest.mark.parametrize("columns", [1, 2, 3, 2000])
def test_extension_types_are_refused_wherever_they_stand(columns):
    for padding in range(3):
        data = with_type("ray.data.arrow_tensor", {"pad": "x" * padding}, columns)
        with pytest.raises(UserError, match=r"^x declares Arrow extension types"):
            plain.open_parquet(data, "x")


def test_every_place_of_the_name_in_base64_is_found():
    draw = random.Random(0)
    for _ in range(300):
        text = draw.randbytes(draw.randrange(9)) + plain.EXTENSION + draw.randbytes(draw.randrange(9))
        assert plain._declares_extensions(b"?" + base64.b64encode(text) + b"?")
    assert not plain._declares_extensions(base64.b64encode(draw.randbytes(1 << 20)))


def test_damaged_parquet(tmp_path):
    uri, data = str(tmp_path / "a.parquet"), parquet(TABLE)
    for bad in (b"", b"PAR1", data[:-9], data[:40] + bytes(40) + data[80:], b"x" * 100):
        filesystem.write_atomic(uri, bad)
        with pytest.raises(UserError, match="damaged"):
            plain.read_parquet(uri, TABLE.schema)
    filesystem.write_atomic(uri, parquet(TABLE.drop_columns(["label"])))
    with pytest.raises(UserError, match="label"):
        plain.read_parquet(uri, TABLE.schema)
    filesystem.write_atomic(uri, parquet(TABLE.set_column(1, "label", pa.array(["x", "y"]))))
    with pytest.raises(UserError, match="damaged"):
        plain.read_parquet(uri, TABLE.schema)


def test_a_column_of_images_may_not_inflate(monkeypatch):
    table = pa.table({"image": pa.array([bytes(1 << 20)] * 4), "other": pa.array([bytes(1 << 20)] * 4)})
    file = plain.open_parquet(parquet(table, compression="zstd", use_dictionary=False), "x")
    plain.check_inflation(file, 0, "image", "x")
    monkeypatch.setattr(plain, "SMALL", 1 << 20)
    with pytest.raises(UserError, match=r"x inflates \S+ bytes of 'image' to 4,1"):
        plain.check_inflation(file, 0, "image", "x")
