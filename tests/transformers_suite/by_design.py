"""Tests of transformers that fail by design: (class, name of the test or its first words) -> why.

They are expected failures; one that passes is reported as XPASS and should leave this table.
"""

NO_TRUNCATION = "passes truncation=True, which is an error: it would cut visual tokens off"
NO_PIXELS_WITH_EMBEDDINGS = "pixel_values need input_ids, which say where the visual tokens go"
REMOTE_CODE = "transformers notes auto_map on the object that it saves, and drops it from the one it loads"
NO_MISSING_PARTS = "loads a checkpoint that lacks whole parts, which is an error"
OTHER_ROPE = "sets a type of RoPE that InternLM2 does not have, which is an error"

BY_DESIGN: dict[tuple[str, str], str] = {
    ("PVCModelTest", "test_inputs_embeds"): NO_PIXELS_WITH_EMBEDDINGS,
    ("PVCModelTest", "test_generate_from_inputs_embeds"): NO_PIXELS_WITH_EMBEDDINGS,
    ("PVCModelTest", "test_base_model_prefix_loads_base_weights"): NO_MISSING_PARTS,
    ("PVCModelTest", "test_correct_missing_keys"): NO_MISSING_PARTS,
    ("PVCModelTest", "test_model_weights_reload_no_missing_tied_weights"): NO_MISSING_PARTS,
    ("PVCModelTest", "test_model_rope_scaling_from_config_2_yarn"): OTHER_ROPE,
    ("InternLM2ModelTest", "test_model_rope_scaling_from_config_2_yarn"): OTHER_ROPE,
    ("InternVisionModelTest", "test_model_get_set_embeddings"): "the ViT's embeddings are no nn.Embedding",
    ("PVCProcessorTest", "test_apply_chat_template_image"): NO_TRUNCATION,
    ("PVCProcessorTest", "test_processor_from_and_save_pretrained"): REMOTE_CODE,
    ("PVCProcessorTest", "test_init_arguments_not_in_processor_kwargs"): (
        "num_frames is both the processor's default and an option of a call"
    ),
    ("PVCProcessorTest", "test_apply_chat_template_assistant_mask"): (
        "asks the tokenizer for char_to_token, which only fast tokenizers have"
    ),
    ("PVCImageProcessingTest", "test_new_models_require_torchvision_backend"): (
        "torchvision is no dependency: tiles are cut with PIL, as released"
    ),
    ("InternLM2TokenizerTest", "test_pretokenized_inputs"): (
        "joins words without a space: InternLM2's tokenizer adds no space before a word"
    ),
    ("InternLM2TokenizerTest", "test_tokenizer_store_full_signature"): (
        "transformers drops add_bos_token and add_eos_token from what a tokenizer stores"
    ),
}
