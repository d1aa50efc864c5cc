"""What vLLM finds in a model's folder: the weights that the model's id names, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prefdata.engines.vllm.launch import folder_of_its_weights
from prefdata.models.files import identify


@pytest.mark.parametrize("other", ["z.safetensors", "consolidated.safetensors"])
def test_vllm_finds_no_weights_but_those_of_the_id(tiny_policy: Path, tmp_path: Path, other: str) -> None:
    """vLLM 0.32 reads all safetensors files of a folder, the last one counts; `consolidated*` before all others."""
    folder = shutil.copytree(tiny_policy, tmp_path / "policy")
    before = identify(str(folder), "causal-lm")
    with folder_of_its_weights(folder, before.weights()) as given:
        assert given == folder
    shutil.copy(folder / "model.safetensors", folder / other)
    model = identify(str(folder), "causal-lm")
    assert model.revision == before.revision
    with folder_of_its_weights(folder, model.weights()) as given:
        assert [file.name for file in given.glob("*.safetensors")] == ["model.safetensors"]
        names = {file.name for file in folder.iterdir()} - {other}
        assert {file.name for file in given.iterdir()} == names
        assert all((given / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert not given.exists()
    assert (folder / other).exists()
