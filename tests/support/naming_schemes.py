"""Invented naming schemes of a released PVC, and the checkpoints that they give.

A scheme says what the modules of one temporal layer, and of the projector, are called; `released` makes the
checkpoint that it would give, and says which of its names is which of ours. At the sizes of `COINCIDING`,
shapes of different roles are the same.
"""

import random
import re
from functools import cache

import torch
from builders import tiny_config

from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration

OURS_IN_LAYER = {  # name of a module of ours -> what a scheme calls its entry
    "temporal_attn.qkv": "qkv",
    "temporal_attn.proj": "out",
    "temporal_norm.time_embed.0": "time first",
    "temporal_norm.time_embed.2": "time second",
    "temporal_norm.gamma.0": "gamma first",
    "temporal_norm.gamma.2": "gamma second",
    "temporal_norm.beta.0": "beta first",
    "temporal_norm.beta.2": "beta second",
    "temporal_gate": "gate",
}
OURS_IN_PROJECTOR = {
    "norm.time_embed.0": "time first",
    "norm.time_embed.2": "time second",
    "norm.gamma.0": "gamma first",
    "norm.gamma.2": "gamma second",
    "norm.beta.0": "beta first",
    "norm.beta.2": "beta second",
    "mlp.0": "mlp first",
    "mlp.2": "mlp second",
}
LAYER, OUR_LAYER = "vision_model.encoder.layers.", "model.vision_model.encoder.layers."


# ---- schemes


def scheme(
    numbers: str, projector_mlp: str = "mlp1.1 mlp1.3", gate: str = "", **containers: str
) -> dict[str, str]:
    """What each module is called: MLPs by their container and `numbers` ("0 2": `container.0`, `container.2`;
    "_fc1 _fc2" without a dot).
    """
    names = {"gate": gate} | dict(zip(("mlp first", "mlp second"), projector_mlp.split()))
    for role, container in containers.items():
        if role in ("qkv", "out"):
            names[role] = container
            continue
        for place, number in zip(("first", "second"), numbers.split()):
            names[f"{role} {place}"] = f"{container}{number if number[0] == '_' else '.' + number}"
    return names


SCHEMES = {  # of a layer, of the projector
    "nested numbers": (
        scheme(
            "0 2",
            qkv="attn_temporal.qkv",
            out="attn_temporal.proj",
            time="norm_t.t_embedder.mlp",
            gamma="norm_t.gamma_mlp",
            beta="norm_t.beta_mlp",
            gate="gate_t",
        ),
        scheme(
            "0 2", time="mlp1.norm.t_embedder.mlp", gamma="mlp1.norm.gamma_mlp", beta="mlp1.norm.beta_mlp"
        ),
    ),
    "scale and shift": (
        scheme(
            "fc1 fc2",
            qkv="time_attn.qkv",
            out="time_attn.proj",
            time="time_embed",
            gamma="time_norm.scale",
            beta="time_norm.shift",
            gate="alpha",
        ),
        scheme("fc1 fc2", "mlp1.0 mlp1.2", time="time_embed", gamma="ada_norm.scale", beta="ada_norm.shift"),
    ),
    "modulation": (
        scheme(
            "0 2",
            qkv="temporal_attn.qkv",
            out="temporal_attn.proj",
            time="temporal_adaln.time_mlp",
            gamma="temporal_adaln.adaLN_modulation_gamma",
            beta="temporal_adaln.adaLN_modulation_beta",
            gate="temporal_gate",
        ),
        scheme(
            "0 2",
            "compressor.mlp.0 compressor.mlp.2",
            time="compressor.adaln.temb_mlp",
            gamma="compressor.adaln.adaLN_modulation_gamma",
            beta="compressor.adaln.adaLN_modulation_beta",
        ),
    ),
    "diffusers": (
        scheme(
            "linear_1 linear_2",
            qkv="temporal_attention.to_qkv",
            out="temporal_attention.to_out.0",
            time="norm3.timestep_embedder",
            gamma="norm3.scale_mlp",
            beta="norm3.shift_mlp",
            gate="temporal_scale",
        ),
        scheme(
            "linear_1 linear_2",
            "multi_modal_projector.linear_1 multi_modal_projector.linear_2",
            time="adaptive_norm.timestep_embedder",
            gamma="adaptive_norm.scale_mlp",
            beta="adaptive_norm.shift_mlp",
        ),
    ),
    "torch's MultiheadAttention": (
        scheme(
            "1 3",
            qkv="temporal.attn.in_proj_",  # in_proj_weight, in_proj_bias
            out="temporal.attn.out_proj",
            time="temporal.norm.time_embedding",
            gamma="temporal.norm.to_gamma",
            beta="temporal.norm.to_beta",
            gate="temporal.ls.gamma",
        ),
        scheme(
            "1 3",
            "mlp2.0 mlp2.2",
            time="mlp1.adaln.time_embedding",
            gamma="mlp1.adaln.to_gamma",
            beta="mlp1.adaln.to_beta",
        ),
    ),
    "flat": (
        scheme(
            "_in _out",
            qkv="tmha_qkv",
            out="tmha_dense",
            time="te",
            gamma="weight_net",
            beta="bias_net",
            gate="ls3",
        ),
        scheme("_in _out", "mlp_in mlp_out", time="te", gamma="weight_net", beta="bias_net"),
    ),
    "numbered modules": (
        scheme(
            "fc1 fc2",
            qkv="temporal.0.qkv",
            out="temporal.1.proj",
            time="temporal.2.time_embed",
            gamma="temporal.3.scale",
            beta="temporal.4.shift",
            gate="temporal.5.gate",
        ),
        scheme(
            "fc1 fc2",
            "mlp1.3.proj.fc1 mlp1.3.proj.fc2",
            time="mlp1.0.time_embed",
            gamma="mlp1.1.scale",
            beta="mlp1.2.shift",
        ),
    ),
    "capitals": (
        scheme(
            "net.0.proj net.2",
            qkv="temporalAttn.Wqkv",
            out="temporalAttn.outProj",
            time="temporalAdaLN.timeEmbed",
            gamma="temporalAdaLN.Gamma",
            beta="temporalAdaLN.Beta",
            gate="temporalAlpha",
        ),
        scheme(
            "net.0.proj net.2",
            "tokenMLP.fc1 tokenMLP.fc2",
            time="projAdaLN.timeEmbed",
            gamma="projAdaLN.Gamma",
            beta="projAdaLN.Beta",
        ),
    ),
}
LETTERS = (
    scheme("0 2", qkv="x.qkv", out="x.proj", time="y.t", gamma="y.a", beta="y.b", gate="alpha"),
    scheme("0 2", time="mlp1.0.t", gamma="mlp1.0.a", beta="mlp1.0.b"),
)
PLAIN = SCHEMES["nested numbers"]


# ---- checkpoints

SIZES = {
    "different": {},
    "C = H": {"llm_config": {"hidden_size": 32}},
    "C = 256": {"vision_config": {"time_embed_dim": 32}},
    "D = H": {"llm_config": {"hidden_size": 512}},
    "D = H = 256": {"llm_config": {"hidden_size": 512}, "vision_config": {"time_embed_dim": 512}},
    "without ViT's biases": {"vision_config": {"qkv_bias": False}},
    "norms of queries and keys": {"vision_config": {"qk_normalization": True, "norm_type": "rms_norm"}},
    "one temporal layer": {"vision_config": {"num_temporal_layers": 1}},
    "Qwen2": {"llm_config": {"model_type": "qwen2"}},
}
COINCIDING = ("different", "C = H", "C = 256", "D = H", "D = H = 256")


@cache
def our_shapes(size: str = "different") -> dict[str, tuple[int, ...]]:
    return shapes_of(tiny_config(**SIZES[size]))


def shapes_of(config: PVCConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = PVCForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def released_name(ours: str, layer: dict[str, str], projector: dict[str, str]) -> str:
    """What a release under this scheme calls a parameter of ours."""
    module, _, leaf = ours.rpartition(".")
    if module == "model.projector.norm":  # InternVL's, without AdaLN
        return f"mlp1.0.{leaf}"
    if module.startswith("model.projector."):
        name = projector[OURS_IN_PROJECTOR[module.removeprefix("model.projector.")]]
        return name + leaf if name.endswith("_") else f"{name}.{leaf}"
    if match := re.fullmatch(rf"{re.escape(OUR_LAYER)}(\d+)\.(temporal_.*)", ours):
        number, inside = match.groups()
        if inside == "temporal_gate":
            return f"{LAYER}{number}.{layer['gate']}"
        name = layer[OURS_IN_LAYER[inside.rpartition(".")[0]]]
        return f"{LAYER}{number}.{name}{leaf}" if name.endswith("_") else f"{LAYER}{number}.{name}.{leaf}"
    if ours == "lm_head.weight":
        return "language_model.output.weight"
    inside = ours.removeprefix("model.")
    return inside.replace("language_model.", "language_model.model.", 1)


def released(schemes=PLAIN, size: str = "different", seed: int = 0):
    """Shapes of a release in any order, ours, and which name of the first is which of the second."""
    ours = our_shapes(size)
    truth = {released_name(name, *schemes): name for name in ours}
    assert len(truth) == len(ours)
    names = random.Random(seed).sample(list(truth), len(truth))
    return {name: ours[truth[name]] for name in names}, ours, truth
