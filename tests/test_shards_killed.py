"""A run on shards that is killed and goes on ends with the bytes of one that nothing disturbed."""

import pytest
import torch
from processes import begin, curve, encoder, finish
from test_packing import write_folder

from mimkit.data.packing import pack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("then", [1, 2])
def test_a_killed_run_goes_on_amid_the_shards(tmp_path, monkeypatch, then):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "set", each=16)
    assert len(pack(str(tmp_path / "set"), tmp_path / "shards", shard_bytes=10_000)) > 4
    # Without a survey images are read from the shards, and in their order, however small they are.
    settings = [f'data.name="{tmp_path / "shards"}"', "data.survey=false"]

    def go(folder, processes=1, **how):
        return begin(processes, tmp_path / folder, *settings, parallel="ddp", **how)

    finish(go("undisturbed"))
    finish(go("killed", stop=("SIGKILL", 0, 7)), fails=True)
    assert "going on at step 6 of 12" in finish(go("killed", then))
    one, two = encoder(tmp_path / "undisturbed"), encoder(tmp_path / "killed")
    assert one.keys() == two.keys()
    same = torch.equal if then == 1 else torch.allclose  # two processes sum in another order
    assert all(same(value, two[name]) for name, value in one.items())
    logged = curve(tmp_path / "killed"), curve(tmp_path / "undisturbed")
    assert logged[0] == (logged[1] if then == 1 else pytest.approx(logged[1], rel=1e-4, abs=1e-6))
