"""Other families are counted at their published sizes, with the tokens of their own processors."""

import pytest
import torch
from transformers import SmolVLMImageProcessorPil
from transformers.initialization import no_init_weights
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from pvc.benchmarks import families
from pvc.benchmarks.counting import SizedModel, counted
from pvc.benchmarks.models import PVC, prefill
from pvc.benchmarks.peers import PEERS, NativeLlavaOnevision, NativeQwen3VL, NativeQwen25VL, NativeSmolVLM
from pvc.benchmarks.presets import PRESETS, Workload
from pvc.benchmarks.published import NUM_PARAMETERS

TINY = PRESETS["tiny"]
SIZES = [(448, 448), (1792, 1344), (640, 481), (90, 1000), (5000, 3500)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "peer"),
    [(name, peer) for name in NUM_PARAMETERS for peer in PEERS if peer.key in PRESETS[name].peers],
    ids=lambda value: getattr(value, "key", value),
)
def test_peers_have_as_many_parameters_as_published(preset, peer):
    with no_init_weights():
        model = peer("", PRESETS[preset]).build("meta", torch.bfloat16)
    model.tie_weights()
    number = sum(parameter.numel() for parameter in model.parameters())
    assert round(number / 1e9, 2) == NUM_PARAMETERS[preset][peer.key]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("peer", [NativeQwen25VL, NativeQwen3VL])
def test_qwen_has_the_tokens_of_its_processor(peer, size):
    least, most = peer.limits
    limits = {"shortest_edge": least, "longest_edge": most}
    processor = Qwen2VLImageProcessorPil(patch_size=peer.patch, size=limits)
    patches = processor.get_number_of_image_patches(size[1], size[0], {})
    assert peer("", PRESETS["8B"]).num_visual_tokens(Workload(pixels=size)) == patches // 4


@pytest.mark.parametrize("frames", [2, 64, 256, 1024])
def test_qwen3_shrinks_the_frames_of_long_videos_as_its_processor(frames):
    spec = NativeQwen3VL("", PRESETS["8B"])
    least, most = spec.video_limits
    height, width = smart_resize(frames, 480, 640, 2, 32, least, most)
    workload = Workload(frames=frames, pixels=(640, 480))
    assert spec.resized(workload) == (width, height)
    assert spec.unit(workload) == (Workload(frames=2, pixels=(width, height)), frames // 2)


@pytest.mark.slow  # the processor of transformers 5.12 needs torchvision
@pytest.mark.parametrize("size", SIZES)
def test_smolvlm_has_the_tiles_of_its_processor(size):
    longest = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}
    processor = SmolVLMImageProcessorPil(do_image_splitting=True, **longest)
    number, *_ = processor.get_number_of_image_patches(size[1], size[0], {})
    spec = NativeSmolVLM("", PRESETS["2B"])
    assert spec.num_tiles(Workload(pixels=size)) == number
    assert spec.num_visual_tokens(Workload(pixels=size)) == 81 * number


@pytest.mark.parametrize(
    "workload",
    [
        *(Workload(pixels=size) for size in SIZES),
        # transformers 5.12 adds the last token of a video later
        pytest.param(Workload(frames=3), marks=pytest.mark.slow),
    ],
)
def test_llava_onevision_makes_as_many_tokens_as_the_prompt_has(workload):
    spec = NativeLlavaOnevision("", TINY)
    model = spec.build("cpu", torch.float32)
    with torch.no_grad():
        features = spec.encode(model, spec.media(workload, "cpu", torch.float32))
    assert features.flatten(0, -2).shape[0] == spec.num_visual_tokens(workload)


def test_llava_onevision_has_729_tokens_a_tile_and_196_a_frame():
    spec = NativeLlavaOnevision("", PRESETS["8B"])
    square = Workload(pixels=(384, 384))
    assert spec.num_visual_tokens(square) == 729 + 27 * 28
    assert spec.num_visual_tokens(Workload(frames=32)) == 32 * 196 + 1


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.key)
def test_without_memory_peers_count_as_they_run(peer):
    spec = peer("", TINY)
    sized, model = SizedModel(spec), spec.build("cpu", torch.bfloat16)

    def flops_of(function) -> int:
        return sum(cost.flops for cost in counted(model, function).values())

    for workload in (Workload(tiles=3), Workload(frames=4)):
        media = spec.media(workload, "cpu", torch.bfloat16)
        assert sized.encoding_flops(workload) == flops_of(lambda media=media: spec.encode(model, media)) > 0
    assert sized.prefill_flops(40) == flops_of(lambda: prefill(model, 40)) > 0


def test_pvcs_encoding_and_prefill_are_those_of_its_first_token():
    spec = PVC("PVC", TINY)
    sized, model, workload = SizedModel(spec), spec.build("cpu", torch.bfloat16), Workload(frames=4)
    media = spec.media(workload, "cpu", torch.bfloat16)
    encoding = counted(model, lambda: spec.encode(model, media))
    assert sized.encoding_flops(workload) == sum(cost.flops for cost in encoding.values())


@pytest.mark.slow
def test_cost_grows_with_frames_and_the_cache_with_tokens(monkeypatch):
    monkeypatch.setattr(families, "GROWTH_FRAMES", (1, 4))
    monkeypatch.setattr(families, "GROWTH_TILES", (1,))
    tables = families.growth(TINY, lambda _: None)

    image, video, other_image, other_video = tables[families.BY_FRAMES]
    assert (image["visual tokens"], other_image["visual tokens"]) == (4, 4)
    assert (video["visual tokens"], other_video["visual tokens"]) == (4, 16)
    assert other_video["KV cache MB"] == 4 * video["KV cache MB"]
    assert video["over InternVL2"] == video["TFLOP"] / other_video["TFLOP"]
    assert video["TFLOP"] == video["encoding TFLOP"] + video["prefill TFLOP"]
