"""Policies on disk: nothing is lost, nothing half-written is seen, no id reaches out of the folder; and the ready ones."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import mechanex_jax
from mechanex_jax.errors import ArgumentError, MechanexError
from mechanex_jax.policy import presets
from mechanex_jax.policy.validate import read, to_dict
from mechanex_jax.storage.json_store import JsonStore, StoreError

ROOT = Path(mechanex_jax.__file__).parent.parent
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def kept(tmp_path) -> JsonStore:
    return JsonStore("policies", "policy", "pol_", tmp_path / "made" / "on demand")


def test_what_is_kept_comes_back_with_its_id(kept):
    record = {"name": "a \N{SNOWMAN} \ud800", "sampling": {"temperature": 0.1, "top_k": None}, "list": [1, 2.5, True]}
    id = kept.save(record)
    assert id[:4] == "pol_" and len(id) == 12 and kept.ids() == [id]
    assert kept.get(id) == {**record, "id": id} and kept.list() == [kept.get(id)]
    assert json.loads((kept.folder / f"{id}.json").read_text())["record"]["sampling"] == record["sampling"]
    kept.delete(id)
    assert kept.ids() == kept.list() == []


def test_the_folder_is_in_the_users_data_folder_wherever_that_is_by_then(monkeypatch, tmp_path):
    kept = JsonStore("policies", "policy", "pol_")
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path / "one"))
    id = kept.save({})
    assert (tmp_path / "one" / "policies" / f"{id}.json").exists()
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path / "two"))
    assert kept.ids() == []


def test_saving_under_an_id_replaces_and_keeps_the_place_in_the_order(kept):
    ids = [kept.save({"n": 0}), kept.save({"n": 1}, "a.b-c_D"), kept.save({"n": 2}, "A" * 128)]
    assert [record["id"] for record in kept.list()] == ids
    assert kept.save({"n": 3, "id": "other"}, ids[0]) == ids[0]
    assert [(record["id"], record["n"]) for record in kept.list()] == list(zip(ids, [3, 1, 2], strict=True))


def test_a_new_id_never_overwrites(tmp_path):
    draws = iter(["00000000", "00000000", "00000001"])
    kept = JsonStore("policies", "policy", "pol_", tmp_path, random_hex=lambda size: next(draws))
    assert [kept.save({"n": n}) for n in range(2)] == ["pol_00000000", "pol_00000001"]
    assert kept.get("pol_00000000")["n"] == 0


BAD_IDS = [
    "../x",
    "a/b",
    "",
    ".",
    "..",
    "/etc/passwd",
    "a\0b",
    "a" * 129,
    "a\\b",
    "C:x",
    "a.",
    "-a",
    ".a",
    "a\n",
    "con",
    "NUL.txt",
]
BAD_IDS += ["\u0661", "a b", "~", "a" * 100_000, None, 3, b"a"]


@pytest.mark.parametrize("id", BAD_IDS, ids=lambda id: repr(id)[:12])
def test_no_id_reaches_out_of_the_folder(kept, id):
    kept.save({}, "here")
    (kept.folder.parent / "x.json").write_text('{"record": {}, "created": 0, "format": 1}')
    before = sorted(kept.folder.parent.rglob("*"))
    with pytest.raises(ArgumentError, match="policy id: got"):
        kept.get(id)
    with pytest.raises(ArgumentError, match="policy id: got"):
        kept.delete(id)
    if id is not None:  # None asks for a new one
        with pytest.raises(ArgumentError, match="policy id: got"):
            kept.save({}, id)
    assert sorted(kept.folder.parent.rglob("*")) == before


def test_an_unknown_id_lists_those_there_are_and_the_closest(kept):
    with pytest.raises(ArgumentError, match="holds none"):
        kept.get("pol_00000000")
    kept.save({}, "strict-json")
    for call in (kept.get, kept.delete):
        with pytest.raises(ArgumentError, match=r"got 'strict_json'.*stored policy: strict-json\. Did you mean 'strict-json'"):
            call("strict_json")
    for n in range(20):
        kept.save({}, f"p{n:02}")
    with pytest.raises(ArgumentError, match="p11 and 9 more"):
        kept.get("zzz")


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", '{"record": 1}', '{"record": {}}', "\x00", '{"created": 1}', "[" * 99_999]
)
def test_a_corrupt_file_is_named_and_left_and_hides_no_other(kept, content):
    id = kept.save({"n": 1})
    path = kept.folder / "bad.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"bad\.json: not a readable policy") as error:
        kept.get("bad")
    assert isinstance(error.value, MechanexError)
    with pytest.warns(UserWarning, match=r"bad\.json: not a readable policy"):
        assert [record["id"] for record in kept.list()] == [id]
    assert path.read_text() == content
    kept.save({"n": 2}, "bad")
    assert kept.get("bad")["n"] == 2
    path.write_text(content)
    kept.delete("bad")
    assert kept.ids() == [id]


def test_a_file_of_a_later_format_and_bytes_that_are_no_text_are_corrupt_too(kept):
    id = kept.save({})
    path = kept.folder / f"{id}.json"
    for content in (path.read_bytes().replace(b'"format": 1', b'"format": 2'), b"\xff\xfe{"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=id):
            kept.get(id)


@pytest.mark.parametrize("record", [{"a": object()}, {"a": float("nan")}, {(1, 2): 3}, [1], None, "text"])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(kept, record):
    with pytest.raises(ArgumentError, match="policy"):
        kept.save(record)
    assert kept.ids() == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_in_the_middle_leaves_what_was_there(kept, monkeypatch, broken):
    kept.save({"n": 1}, "mine")

    def fails(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fails)
        for id in ("mine", "other"):
            with pytest.raises(OSError, match="no space"):
                kept.save({"n": 2}, id)
    assert kept.get("mine")["n"] == 1
    assert [path.name for path in kept.folder.iterdir()] == ["mine.json"]


WRITER = """
import sys
from mechanex_jax.storage.json_store import JsonStore
kept = JsonStore("policies", "policy", "pol_", sys.argv[1])
for n in range(60):
    print(kept.save({"writer": sys.argv[2], "n": n}))
    kept.save({"writer": sys.argv[2], "n": n, "long": sys.argv[2] * 20_000}, "shared")
"""


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing_and_readers_see_whole_files(kept):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(kept.folder)]
    writers = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True, env=environment) for name in ("a", "b", "c")
    ]
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.poll() is None for writer in writers):
            for record in kept.list():
                seen += 1
                assert "long" not in record or record["long"] == record["writer"] * 20_000
    ids = [id for writer in writers for id in writer.communicate()[0].split()]
    assert all(writer.returncode == 0 for writer in writers) and seen
    assert len(set(ids)) == 180 and {*ids, "shared"} == set(kept.ids())
    assert sorted((r["writer"], r["n"]) for r in kept.list() if r["id"] != "shared") == [
        (w, n) for w in "abc" for n in range(60)
    ]
    assert not [path for path in kept.folder.iterdir() if path.suffix != ".json"]


# The contents that the documentation promises: (dotted path, value).
BUILDERS = [
    (
        presets.strict_json_extraction(SCHEMA),
        "strict_json_small_v1",
        "sampling.method=guided-generation sampling.temperature=0.2 sampling.top_p=0.9 constraints.json_mode=true "
        'verifiers.enabled=["syntax","json_schema"] verifiers.repair_on_failure=true optimization.best_of_n=2 '
        "optimization.retry_on_failure=2 constraints.json_schema=" + json.dumps(SCHEMA, separators=(",", ":")),
    ),
    (
        presets.fast_tool_router(),
        "fast_tool_router_qwen",
        "sampling.method=speculative-decoding sampling.temperature=0.1 sampling.top_k=30 sampling.speculative_steps=6 "
        'constraints.json_mode=true constraints.required_fields=["tool_name","arguments"] optimization.retry_on_failure=1 '
        'verifiers.enabled=["syntax","tool_args"] optimization.fallback_methods=["top-k"] objective.latency_budget_ms=1200',
    ),
    (
        presets.diverse_chatbot(),
        "diverse_chatbot_ads",
        "sampling.method=ads sampling.temperature=0.9 sampling.top_p=0.95 sampling.ads_subset_size=16 sampling.ads_beta=0.35 "
        "sampling.num_candidates=3 sampling.diversity_strength=0.7 optimization.best_of_n=3",
    ),
    (
        presets.ensemble_vote(["a", "b"]),
        "ensemble_vote_v1",
        'sampling.method=ensemble-sampling sampling.ensemble_models=["a","b"] sampling.voting=majority '
        'sampling.temperature=0.4 sampling.top_p=0.9 verifiers.enabled=["factuality"]',
    ),
    (
        presets.steering_preset("brevity"),
        "steering_brevity",
        "sampling.method=top-k sampling.temperature=0.7 sampling.top_p=0.9 steering.preset=brevity steering.strength=0.35 "
        "steering.enabled=true optimization.retry_on_failure=1",
    ),
]


@pytest.mark.parametrize(("policy", "name", "contents"), BUILDERS, ids=[name for _, name, _ in BUILDERS])
def test_builders_have_the_documented_contents_and_read(policy, name, contents):
    found = to_dict(read(policy))
    assert policy["name"] == found["name"] == name and json.loads(json.dumps(policy)) == policy
    for line in contents.split():
        path, value = line.split("=", 1)
        section, field = path.split(".")
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        assert policy[section][field] == found[section][field] == value, path


def test_builders_take_names_and_refuse_what_is_wrong():
    assert presets.steering_preset("brevity", "mine", "greedy")["sampling"]["method"] == "greedy"
    assert presets.ensemble_vote(("a",), name="mine")["name"] == presets.diverse_chatbot("mine")["name"] == "mine"
    wrong: Any
    for wrong in ("abc", [], [3]):
        with pytest.raises(ArgumentError, match="models"):
            presets.ensemble_vote(wrong)
    with pytest.raises(ArgumentError, match="brevity"):
        presets.steering_preset("brevty")
