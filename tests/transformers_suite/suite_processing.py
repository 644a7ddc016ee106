"""The processor and the image processor in transformers' common tests of them."""

import unittest

import tests.test_processing_common as common
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from pvc import CHECKPOINT
from pvc.configuration_pvc import PVCConfig
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

# as a checkpoint's auto_map does, but these very classes
AutoImageProcessor.register(PVCConfig, slow_image_processor_class=PVCImageProcessor)
AutoTokenizer.register(PVCConfig, slow_tokenizer_class=InternLM2Tokenizer)
AutoProcessor.register(PVCConfig, PVCProcessor)

ASSETS = CHECKPOINT / "assets"
common.MODALITY_INPUT_DATA["images"] = [str(ASSETS / "picture1.png"), str(ASSETS / "picture2.png")]
common.MODALITY_INPUT_DATA["videos"] = [str(ASSETS / "video.mp4")] * 2


class PVCProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = PVCProcessor
    videos_input_name = "pixel_values"
    image_token, video_token = "<image>", "<video>"

    @classmethod
    def _setup_image_processor(cls):
        return PVCImageProcessor(image_size=56, max_tiles=1)  # one row of pixel_values an image

    @classmethod
    def _setup_tokenizer(cls):
        return InternLM2Tokenizer.from_pretrained(CHECKPOINT)

    @classmethod
    def _get_component_class_from_processor(cls, attribute, use_fast=True):
        return {"image_processor": PVCImageProcessor, "tokenizer": InternLM2Tokenizer}[attribute]

    def get_subprocessor_name(self, modality, attributes):
        """Videos are the image processor's too."""
        name = super().get_subprocessor_name(modality, attributes)
        return "image_processor" if name == "video_processor" else name

    @unittest.skip("it would give a video to the image processor as if it were an image")
    def test_subprocessor_defaults_2_videos(self):
        pass

    def _check_modality_outputs(self, inputs, modality):
        """The tests pass rescale_factor=-1 and look for negative pixels: here no option changes the scale."""
        assert inputs["pixel_values"].isfinite().all()


class PVCImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, batch_size=4, max_resolution=120, image_size=56, max_tiles=1)

    def _get_image_processing_classes(self):
        return {"pil": PVCImageProcessor}

    def prepare_image_processor_dict(self):
        return {name: getattr(self, name) for name in ("image_size", "max_tiles")}

    def expected_output_image_shape(self, images) -> tuple[int, ...]:
        return (3, self.image_size, self.image_size)  # of each tile


class PVCImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = PVCImageProcessingTester
