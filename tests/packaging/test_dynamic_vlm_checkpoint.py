"""A saved Dynamic-VLM in a process that finds nothing else of this repository."""

import json

import torch
from builders import golden
from checkpoint_files import AUTO_MAP, DYNAMIC_VLM_FILES, NEVER_NEEDED, run_python
from PIL import Image
from transformers import AutoTokenizer

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor

SETTINGS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
ASK_ELSEWHERE = """
import json
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

path, save_to = sys.argv[1:]
config = AutoConfig.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
models = [
    auto.from_pretrained(path, trust_remote_code=True) for auto in (AutoModel, AutoModelForImageTextToText)
]
frames = [Image.new("RGB", (40, 30), (60 * i, 0, 0)) for i in range(4)]
content = [{"type": "video", "video": frames}, {"type": "text", "text": "What?"}]
messages = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True
)
settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
print(json.dumps([model.generate(**inputs, **settings)[0].tolist() for model in models]))
models[0].save_pretrained(save_to)
processor.save_pretrained(save_to)
"""


def test_a_saved_folder_works_elsewhere_and_is_saved_there_whole(tmp_path):
    torch.manual_seed(0)
    official = json.loads(golden("dynamic_vlm/model_config.json").read_text())
    config = DynamicVLMConfig(
        vision_config=official["vision_config"] | {"num_hidden_layers": 3},
        llm_config=official["text_config"] | {"model_type": "qwen2"},
        max_video_tokens=60,
        image_token_id=333,
    )
    model = DynamicVLMForConditionalGeneration(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer"))
    processor = DynamicVLMProcessor(DynamicVLMImageProcessor.from_model_config(config), tokenizer)
    folder, again = tmp_path / "saved", tmp_path / "again"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    frames = [Image.new("RGB", (40, 30), (60 * i, 0, 0)) for i in range(4)]
    block = {"type": "video", "video": frames}
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    expected = model.generate(**inputs, **SETTINGS)[0].tolist()

    printed = run_python(ASK_ELSEWHERE, folder, again, cwd=tmp_path, hidden=NEVER_NEEDED)
    assert json.loads(printed) == [expected, expected]
    # what is saved there can be used in turn
    assert json.loads(run_python(ASK_ELSEWHERE, again, tmp_path / "third", cwd=tmp_path)) == [expected] * 2

    for name in DYNAMIC_VLM_FILES:
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert not (folder / "modeling_pvc.py").exists()
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == AUTO_MAP.keys()
    assert {name.partition(".")[0] for name in auto_map.values()} == {
        "configuration_dynamic_vlm",
        "modeling_dynamic_vlm",
    }
