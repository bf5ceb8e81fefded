"""Where compiled code is cached."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from hpcphotoz.compute.compiler import compiled


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_code_is_kept_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor's default is below /tmp, where a batch job finds nothing of the job before."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere/else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kind in ("AVX512", "AVX2"):  # nodes that share a home must not run each other's code
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        compiled(nn.Linear(1, 1), torch.device("cpu"))
        folder = tmp_path / "hpcphotoz" / f"torch-{torch.__version__}-{kind}" / "inductor"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and folder.is_dir()
    assert os.environ["TRITON_CACHE_DIR"] == "/somewhere/else", "as the user has it"
    # torch writes its own default into the environment, for instance when torch._dynamo is imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    compiled(nn.Linear(1, 1), torch.device("cpu"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled(nn.Linear(1, 1), torch.device("cpu"))
    found = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    assert not found.startswith(str(tmp_path)), "no folder can be made: Inductor's default"
