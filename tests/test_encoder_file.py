import pytest
import torch

from mimkit.builtin.encoders import ViT
from mimkit.errors import DataError
from mimkit.parts.records import Geometry, Grid, View
from mimkit.recipe.tables import PartTable
from mimkit.train.encoder_file import load_encoder, save_encoder

OPTIONS = {"embed_dim": 16, "depth": 1, "num_heads": 2}
TABLE = PartTable(
    kind="encoders", name="vit", cls=ViT, options=OPTIONS, distribution="mimkit", version="0"
)


def test_a_saved_encoder_gives_the_same_features(tmp_path):
    geometry = Geometry(Grid(3, 5, 4))
    encoder = ViT(geometry, **OPTIONS).eval()
    save_encoder(tmp_path, encoder, TABLE, geometry, View("image", (12, 20)))
    image = torch.randn(2, 3, 12, 20)
    state = torch.random.get_rng_state()
    loaded = load_encoder(tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not loaded.training
    assert torch.equal(loaded.features(image).patches, encoder.features(image).patches)


def test_a_folder_without_an_encoder_is_told(tmp_path):
    with pytest.raises(DataError, match=r"encoder\.json: not found.*finished run"):
        load_encoder(tmp_path)
