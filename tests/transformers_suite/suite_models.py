"""PVC, its ViT and InternLM2 in transformers' common tests of models and of generation.

The models are tiny. Gates and AdaLN's last layers, zero in a new model, are moved: else nothing that is
behind them would be tested.
"""

import unittest
from functools import wraps

import torch
from builders import TINY_LLM, TINY_VIT, tiny_config
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers import AutoConfig
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from pvc.configuration_pvc import InternLM2Config, InternVisionConfig, PVCConfig
from pvc.modeling_intern_vit import AdaLN, InternVisionModel, ProgressiveEncoderLayer
from pvc.modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel, PVCPreTrainedModel

BATCH = 3
TEXT_TOKENS = 7
REPEATS = 4  # of an image, each one visual token
IMAGE_TOKEN_ID = 3
# as few layers and parameters as the tests ask for
VIT = TINY_VIT | {"hidden_size": 16, "num_hidden_layers": 2, "num_temporal_layers": 1}
LLM = TINY_LLM | {"num_hidden_layers": 2}


def _move_zeros(original):
    """The class's `_init_weights`, after which no gate is zero and AdaLN depends on time."""

    @wraps(original)
    def init_weights(self, module):
        original(self, module)
        if isinstance(module, ProgressiveEncoderLayer):
            init.constant_(module.temporal_gate, 0.5)
        if isinstance(module, AdaLN) and module.gamma is not None:
            for layer in (module.gamma[-1], module.beta[-1]):
                init.normal_(layer.weight, std=0.1)

    return init_weights


for config_class in (InternLM2Config, InternVisionConfig, PVCConfig):  # as a checkpoint's auto_map does
    AutoConfig.register(config_class.model_type, config_class)

# the tests tell by name which classes are bodies, and which have a loss
modeling_auto.MODEL_MAPPING_NAMES.update(
    {"internlm2": "InternLM2Model", "intern_vit_6b": "InternVisionModel", "pvc": "PVCModel"}
)
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["internlm2"] = "InternLM2ForCausalLM"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["pvc"] = "PVCForConditionalGeneration"

for model_class in (InternVisionModel, PVCPreTrainedModel):
    model_class._init_weights = _move_zeros(model_class._init_weights)


class PVCTester:
    """One image of one tile in each of the prompts."""

    batch_size = BATCH
    seq_length = TEXT_TOKENS + REPEATS
    is_training = True
    vocab_size = LLM["vocab_size"]
    hidden_size = LLM["hidden_size"]
    num_hidden_layers = LLM["num_hidden_layers"]
    num_attention_heads = LLM["num_attention_heads"]
    image_token_id = IMAGE_TOKEN_ID

    def get_config(self) -> PVCConfig:
        return tiny_config(vision_config=VIT, llm_config=LLM, image_token_id=self.image_token_id)

    def prepare_config_and_inputs(self):
        return self.prepare_config_and_inputs_for_common()

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 4) + 4
        input_ids[:, :REPEATS] = self.image_token_id

        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([self.batch_size, 3, 56, 56]),
            "clip_grid": torch.tensor([[1, 1, REPEATS]] * self.batch_size),
        }
        return self.get_config(), inputs


class PVCModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (PVCForConditionalGeneration, PVCModel)
    all_generative_model_classes = (PVCForConditionalGeneration,)
    _is_composite = True
    skip_test_image_features_output_shape = True  # rows are time steps: tiles times repeats

    def setUp(self):
        self.model_tester = PVCTester()
        self.config_tester = ConfigTester(self, config_class=PVCConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _image_features_prepare_config_and_inputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {name: inputs[name] for name in ("pixel_values", "clip_grid")}


class InternLM2Tester:
    batch_size = BATCH
    seq_length = TEXT_TOKENS
    is_training = True
    vocab_size = LLM["vocab_size"]
    hidden_size = LLM["hidden_size"]
    num_hidden_layers = LLM["num_hidden_layers"]
    num_attention_heads = LLM["num_attention_heads"]

    def get_config(self) -> InternLM2Config:
        return InternLM2Config(**LLM)

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class InternLM2ModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (InternLM2ForCausalLM, InternLM2Model)
    all_generative_model_classes = (InternLM2ForCausalLM,)

    def setUp(self):
        self.model_tester = InternLM2Tester()
        self.config_tester = ConfigTester(self, config_class=InternLM2Config)

    def test_config(self):
        self.config_tester.run_common_tests()


class InternVisionTester:
    """Three images of one tile, each shown once."""

    batch_size = BATCH
    is_training = True
    seq_length = (VIT["image_size"] // VIT["patch_size"]) ** 2 + 1
    hidden_size = VIT["hidden_size"]
    num_hidden_layers = VIT["num_hidden_layers"]
    num_attention_heads = VIT["num_attention_heads"]

    def get_config(self) -> InternVisionConfig:
        return InternVisionConfig(**VIT)

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, 3, 56, 56])
        return self.get_config(), {
            "pixel_values": pixel_values,
            "clip_grid": torch.tensor([[1, 1, 1]] * self.batch_size),
        }

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class InternVisionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (InternVisionModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = InternVisionTester()
        self.config_tester = ConfigTester(self, config_class=InternVisionConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()
