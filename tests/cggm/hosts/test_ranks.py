"""Two gloo ranks in every host: what a bare loop under DDP gives, bit for bit."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytest.importorskip("transformers", reason="needs transformers: pip install 'cggm[features]'")

from tests.cggm.contract_hosts import bare_loop
from tests.cggm.hosts.ranks_worker import METHODS
from tests.house import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.cggm.hosts.ranks_worker", place]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.mark.parametrize("name", METHODS)
def test_every_host_trains_like_a_bare_loop_on_both_ranks(folder, name):
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(2))
    for found in (first, second):
        for host in ("lightning", "accelerate", "trainer"):
            assert found[host].keys() == found["bare"].keys()
            for key, value in found["bare"].items():
                other = found[host][key]
                assert torch.equal(torch.nan_to_num(other), torch.nan_to_num(value)), (host, key)
    weights = [key for key in first["bare"] if not key.startswith("reading")]
    assert len(weights) > 10
    for key in weights:
        assert torch.equal(first["bare"][key], second["bare"][key]), key


@pytest.mark.parametrize("name", METHODS)
def test_lightnings_first_rank_records_and_its_checkpoint_goes_on_elsewhere(folder, name):
    log = (folder / name / "balance.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in log] == [1, 2, 3, 4, 5, 6]
    saved = torch.load(folder / f"{name}.ckpt", weights_only=False)
    bare = bare_loop(name, 1)
    bare.balancer.load_state_dict(saved["callbacks"]["BalanceCallback"]["balancer"])
    assert bare.balancer.clock.steps == 6
