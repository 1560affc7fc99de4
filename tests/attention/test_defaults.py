"""What layer weights are estimated from by default, on the backbones that come with the package."""

import pytest

from goca import config
from goca.backbones.observable import observable_layers
from goca.method import plan_layers
from goca.method.aggregation.layers import sampled_rows


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", ["scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit"])
def test_bundled_backbones_take_every_row_of_the_reference(name, size):
    cfg = config.compose([f"model={name}", f"model.size={size}"])
    aggregation, backbone = config.build(cfg, "aggregation"), config.build(cfg, "model").sketch()
    reference = plan_layers(backbone, aggregation).reference
    grid = next(layer.grid for layer in observable_layers(backbone) if layer.name == reference)
    assert aggregation.rows == "auto"
    assert sampled_rows(grid, aggregation.rows).tolist() == list(range(grid[0] * grid[1]))
