"""Files made to do harm: none of them executes anything, each is refused with a message."""

import io
import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save as to_safetensors
from training_helpers import ACTIONS, DIFFUSION, NETWORK, OBSERVATIONS, SELECTION, make_loss, make_policy

from torchrl_edp.data import DatasetError, from_arrays, load_behavior
from torchrl_edp.data.behavior import BEHAVIOR_DIR
from torchrl_edp.training import EDPTargetUpdate, load_policy, save_policy
from torchrl_edp.training.checkpoint import (
    MANIFEST,
    STATE,
    TENSORS,
    CheckpointError,
    CheckpointStore,
    _Content,
    _manifest,
)

HARMLESS = to_safetensors({"weight": torch.ones(2)})
NOT_TENSORS = ("pickle", "torch_save", "object_array", "object_archive", "huge_header", "endless_header", "deep_header",
               "outside", "overflow", "empty")  # fmt: skip
NOT_JSON = ("yaml_tag", "deep", "huge_integer", "nan", "infinite", "twice", "utf16", "pickle", "list", "empty")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """Must not be there after the test; that the payload would make it is checked first."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "a file was executed"


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor_header(**entry) -> bytes:
    return header(json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode())


def fake_tensors(kind: str, marker: Path) -> bytes:
    """Bytes in place of a safetensors file."""
    file = io.BytesIO()
    payload = np.array([Payload(marker)], dtype=object)
    if kind == "torch_save":
        torch.save({"weight": Payload(marker)}, file)
    elif kind == "object_array":
        np.save(file, payload, allow_pickle=True)
    elif kind == "object_archive":
        np.savez(file, weight=payload)
    return (
        file.getvalue()
        or {
            "pickle": pickle.dumps({"weight": Payload(marker)}),
            "huge_header": header(b"{}", 2**63),
            "endless_header": header(b"{}", 10**12),
            "deep_header": header(b'{"a":' * 100_000),
            "outside": tensor_header(data_offsets=[0, 2**40]) + bytes(8),
            "overflow": tensor_header(shape=[2**62, 4]) + bytes(8),
            "empty": b"",
        }[kind]
    )


def fake_json(kind: str, marker: Path, good: bytes) -> bytes:
    """Bytes in place of a JSON file; where it can, it is ``good`` with something added."""
    start = good.rstrip()[:-1] + b', "more": '
    return {
        "yaml_tag": f"!!python/object/apply:os.mkdir ['{marker}']".encode(),
        "deep": start + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "huge_integer": start + b"9" * 100_000 + b"}",
        "nan": start + b"NaN}",
        "infinite": start + b"1e999}",
        "twice": start + b'1, "more": 2}',
        "utf16": good.decode().encode("utf-16"),
        "pickle": pickle.dumps(Payload(marker)),
        "list": b"[" + good + b"]",
        "empty": b"",
    }[kind]


def forge(store: CheckpointStore, tensors: bytes | None = None, state: bytes | None = None) -> Path:
    """Update 2 with contents of one's choice and a manifest that fits them, beside an honest update 1."""
    store.save(1, {"weight": torch.ones(2)}, {})
    good = json.dumps({"step": 2, "info": {}}).encode()
    content = _Content(HARMLESS if tensors is None else tensors, good if state is None else state, best=False)
    directory = store.path / "update_000000002"
    directory.mkdir()
    for name, data in ((TENSORS, content.tensors), (STATE, content.state), (MANIFEST, _manifest(2, content))):
        (directory / name).write_bytes(data)
    return directory


def assert_refused(store: CheckpointStore, found: str) -> None:
    with pytest.raises(CheckpointError, match=f"update_000000002 is not used: .*{found}.* Resume from another"):
        store.load(2)
    checkpoint, skipped = store.newest()
    assert checkpoint.step == 1 and len(skipped) == 1


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_a_forged_checkpoint_is_well_made(store):
    """What is refused below is refused for its content: the forgery itself is a fine checkpoint."""
    forge(store)
    assert store.load(2).tensors["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", NOT_TENSORS)
def test_checkpoints_with_other_things_than_tensors(store, marker, kind):
    forge(store, tensors=fake_tensors(kind, marker))
    assert_refused(store, TENSORS)


@pytest.mark.parametrize("kind", NOT_JSON)
def test_checkpoints_with_other_things_than_json(store, marker, kind):
    forge(store, state=fake_json(kind, marker, b'{"step": 2, "info": {}}'))
    assert_refused(store, STATE)


@pytest.mark.parametrize("kind", NOT_JSON)
def test_manifests_that_are_none(store, marker, kind):
    path = forge(store) / MANIFEST
    path.write_bytes(fake_json(kind, marker, path.read_bytes()))
    assert_refused(store, MANIFEST)


def test_a_manifest_of_any_length_is_not_read(store):
    path = forge(store) / MANIFEST
    with path.open("ab") as file:
        file.truncate(10**12)
    assert_refused(store, "manifest.json has 1000000000000 bytes")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "state.pt", "./state.safetensors"])
def test_manifests_that_name_other_files(store, tmp_path, name):
    path = forge(store) / MANIFEST
    (tmp_path / "secret.safetensors").write_bytes(HARMLESS)
    path.write_text(path.read_text().replace(TENSORS, name))
    assert_refused(store, "manifest.json names the files")


@pytest.mark.parametrize("files", ["[]", "null", '{"state.safetensors": 1, "state.json": []}'])
def test_manifests_of_another_shape(store, files):
    path = forge(store) / MANIFEST
    path.write_text(f'{{"format": 1, "step": 2, "best": false, "files": {files}}}')
    assert_refused(store, "manifest")


def test_an_extra_pickle_in_the_directory(store, marker):
    (forge(store) / "state.pt").write_bytes(fake_tensors("torch_save", marker))
    assert_refused(store, "state.pt is unexpected there")


@pytest.mark.parametrize("name", ["", TENSORS, STATE, MANIFEST])
def test_links_out_of_the_folder(store, tmp_path, name):
    path = forge(store) / name
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    assert_refused(store, "is a link")


def test_directories_in_place_of_files_and_files_in_place_of_directories(store):
    directory = forge(store)
    (directory / STATE).unlink()
    (directory / STATE).mkdir()
    assert_refused(store, "state.json is a link or a directory")
    shutil.rmtree(directory)
    directory.write_text("")
    assert_refused(store, "it is a link or a file")


@pytest.fixture(scope="module")
def honest_policy(tmp_path_factory):
    loss = make_loss()
    EDPTargetUpdate(loss)
    path = tmp_path_factory.mktemp("honest") / "policy"
    save_policy(path, make_policy(loss), network=NETWORK, diffusion=DIFFUSION, selection=SELECTION)
    load_policy(path)
    return path


@pytest.fixture
def policy(honest_policy, tmp_path):
    """The path of a policy that may be spoiled."""
    shutil.copytree(honest_policy.parent, tmp_path / "copy")
    return tmp_path / "copy" / "policy"


@pytest.mark.parametrize("kind", NOT_TENSORS)
def test_policies_with_other_things_than_tensors(policy, marker, kind):
    card = json.loads(policy.with_suffix(".json").read_text())
    del card["weights_sha256"]  # it would be enough to refuse them
    policy.with_suffix(".json").write_text(json.dumps(card))
    policy.with_suffix(".safetensors").write_bytes(fake_tensors(kind, marker))
    with pytest.raises(ValueError, match="policy.safetensors .*Get both files again"):
        load_policy(policy)


@pytest.mark.parametrize("kind", NOT_JSON)
def test_policies_with_other_things_than_json(policy, marker, kind):
    path = policy.with_suffix(".json")
    path.write_bytes(fake_json(kind, marker, path.read_bytes()))
    with pytest.raises(ValueError, match="policy.json"):
        load_policy(policy)


@pytest.mark.parametrize("kind", NOT_TENSORS)
def test_behaviours_with_other_things_than_tensors(tmp_path, marker, kind):
    shutil.copy(BEHAVIOR_DIR / "hopper-medium.json", tmp_path)
    (tmp_path / "hopper-medium.safetensors").write_bytes(fake_tensors(kind, marker))
    with pytest.raises(DatasetError, match="behaviour policy hopper-medium.*Restore both files"):
        load_behavior("hopper", "medium", tmp_path)


@pytest.mark.parametrize("kind", ["yaml_tag", "deep", "huge_integer", "utf16", "pickle", "empty"])
def test_behaviours_with_other_things_than_json(tmp_path, marker, kind):
    shutil.copy(BEHAVIOR_DIR / "hopper-medium.safetensors", tmp_path)
    good = (BEHAVIOR_DIR / "hopper-medium.json").read_bytes()
    (tmp_path / "hopper-medium.json").write_bytes(fake_json(kind, marker, good))
    with pytest.raises(DatasetError, match="behaviour policy hopper-medium.*Restore both files"):
        load_behavior("hopper", "medium", tmp_path)


def test_behaviours_by_a_path_are_not_looked_for(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    for path in BEHAVIOR_DIR.glob("hopper-medium.*"):
        shutil.copy(path, tmp_path)
    for task in ("../hopper", str(tmp_path / "hopper")):
        with pytest.raises(DatasetError, match="expected one of"):
            load_behavior(task, "medium", folder)


def test_object_arrays_are_no_data(marker):
    objects = np.array([[Payload(marker)] * OBSERVATIONS] * 4, dtype=object)
    with pytest.raises(DatasetError, match="observations"):
        from_arrays(objects, np.zeros((4, ACTIONS)), np.zeros(4), [0, 0, 0, 1], [0] * 4)


def test_yaml_tags_in_a_config_are_refused(tmp_path, marker):
    text = f"a: !!python/object/apply:os.mkdir ['{marker}']"
    yaml.load(text, yaml.UnsafeLoader)
    marker.rmdir()  # so it would have worked
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
        OmegaConf.load(tmp_path / "config.yaml")
