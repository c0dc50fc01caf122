"""A model folder that is complete, and as small as one can be."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    save_file({"w": np.arange(4, dtype=np.float32)}, folder / "model.safetensors")
    return folder
