"""The scale by which an interlaced start's tokens differ from InternVL's."""

import pytest
import torch
from PIL import Image

from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.digits.models import configuration
from pvc.tiny.norm_scale import report, sub_block_ratios, token_error


def test_blocks_of_equal_sub_blocks_lose_nothing():
    patches = torch.randn(2, 1, 1, 3).expand(2, 8, 8, 3)
    assert sub_block_ratios(patches) == pytest.approx(torch.ones(2, 4, 4))
    assert token_error(patches) == pytest.approx(0, abs=1e-6)


def test_a_sub_block_of_twice_the_deviation_has_its_own_ratio():
    patches = torch.randn(1, 4, 4, 64, generator=torch.Generator().manual_seed(0))
    patches[:, :2, :2] *= 2
    ratios = sub_block_ratios(patches)[0]  # (2, 2)
    assert ratios[0, 0] > 1.4 > 1 > ratios[1, 1] and (ratios**2).mean() == pytest.approx(1, abs=0.05)
    assert token_error(patches) > 0.1


def test_the_report_has_a_line_for_each_file(tmp_path):
    Image.effect_noise((64, 32), 50).convert("RGB").save(tmp_path / "noise.png")
    text = report(PVCForConditionalGeneration(configuration({})).eval(), [tmp_path / "noise.png"])
    assert text.splitlines()[2].startswith("| noise.png | 3 |")  # two tiles and the thumbnail
