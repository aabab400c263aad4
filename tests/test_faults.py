"""Files that are corrupt or cannot be used end in the library's own errors, and take nothing else with them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mechanex_jax.cli import base, policy_inputs
from mechanex_jax.errors import ArgumentError, MechanexError, StorageError
from mechanex_jax.session import Session
from mechanex_jax.steering import formats
from mechanex_jax.steering.store import Store
from mechanex_jax.steering.vector import SteeringVector, VectorError
from mechanex_jax.storage.atomic import write_whole
from mechanex_jax.storage.json_store import JsonStore, StoreError
from mechanex_jax.storage.json_values import parse_json, plain
from mechanex_jax.validation import check_utf8

DEEP = "[" * 100_000 + "]" * 100_000


def vector() -> SteeringVector:
    return SteeringVector(np.ones((1, 4), np.float32), (1,), "resid_pre", "caa", "toy", "0", "0")


def deep_header() -> bytes:
    header = ('{"a":' + DEEP + "}").encode()
    return len(header).to_bytes(8, "little") + header


def deep_record() -> bytes:
    """A safetensors file whose record of a vector is nested deeply."""
    header = json.dumps({"__metadata__": {"mechanex_jax.steering": DEEP}}).encode()
    return len(header).to_bytes(8, "little") + header


FAULTS = {
    "deep": lambda path: path.write_text(DEEP),
    "deep object": lambda path: path.write_text('{"a":' + DEEP + "}"),
    "deep header": lambda path: path.write_bytes(deep_header()),
    "deep record": lambda path: path.write_bytes(deep_record()),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
    "truncated": lambda path: path.write_bytes(vector().to_bytes()[:-3]),
    "a folder": lambda path: path.mkdir(),
}


def _stored_vector(path: Path) -> object:
    return Store(path.parent).get(path.stem)


def _stored_record(path: Path) -> object:
    return JsonStore("records", "record", "pol_", path.parent).get(path.name.removesuffix(".json"))


READERS = {
    "a stored vector": ("sv_0123abcd.safetensors", _stored_vector),
    "a stored policy": ("pol_1.json", _stored_record),
    "a file of vectors": ("v.safetensors", formats.load),
    "a file of vectors by another name": ("v.json", formats.load),
    "an option's JSON": ("x.json", base.json_file),
    "prompts in lines": ("x.jsonl", lambda path: list(policy_inputs._rows(path))),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_spoiled_file_is_an_error_of_the_library_that_names_it(reader, fault, tmp_path):
    name, read = READERS[reader]
    FAULTS[fault](tmp_path / name)
    if (reader, fault) == ("prompts in lines", "empty"):
        assert read(tmp_path / name) == []
        return
    with pytest.raises(MechanexError) as caught:
        read(tmp_path / name)
    assert Path(name).stem in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_spoiled_file_leaves_the_others_in_a_list(fault, tmp_path):
    vectors, records = Store(tmp_path / "vectors"), JsonStore("records", "record", "pol_", tmp_path / "records")
    id, record = vectors.add(vector()), records.save({"name": "good"})
    FAULTS[fault](vectors.folder / "sv_0123abcd.safetensors")
    FAULTS[fault](records.folder / "pol_spoiled.json")
    with pytest.warns(UserWarning, match="sv_0123abcd"):
        assert [name for name, _ in vectors.items()] == [id]
    with pytest.warns(UserWarning, match="pol_spoiled"):
        assert [item["id"] for item in records.list()] == [record]


WRITERS = {
    "a vector": lambda folder: Store(folder).add(vector()),
    "a policy": lambda folder: JsonStore("records", "record", "pol_", folder).save({}),
    "any file": lambda folder: write_whole(folder / "x", b"", replace=True),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_a_storage_error_that_names_the_place(writer, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="taken"):
        WRITERS[writer](tmp_path / "taken" / "folder")
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize("store", [Store, lambda folder: JsonStore("records", "record", "pol_", folder)])
def test_what_cannot_be_removed_is_a_storage_error(store, tmp_path):
    names = {"sv_0123abcd": "sv_0123abcd.safetensors", "pol_1": "pol_1.json"}
    for name in names.values():
        (tmp_path / name).mkdir()
    kept = store(tmp_path)
    with pytest.raises(StorageError, match="cannot be removed"):
        kept.delete(kept.ids()[0])


def test_values_without_an_end_are_refused_and_not_followed():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    loop: list = []
    loop.append(loop)
    for value in (deep, loop):
        check_utf8("value", value)
        with pytest.raises(ArgumentError, match="deep inside one another"):
            plain("value", value)
    with pytest.raises(ValueError, match="too deeply"):
        parse_json(DEEP)
    while deep:  # an interpreter that frees it level by level would overflow its stack
        deep = deep.pop()


def test_credentials_that_cannot_be_read_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MECHANEX_API_KEY", raising=False)
    (tmp_path / ".mechanex").mkdir()
    (tmp_path / ".mechanex" / "config.json").write_text(DEEP)
    assert Session()._has_credentials() is False


def test_the_errors_of_stores_are_of_the_kinds_that_code_may_expect():
    assert issubclass(StorageError, OSError) and issubclass(StorageError, MechanexError)
    assert issubclass(StoreError, MechanexError) and issubclass(VectorError, MechanexError)
