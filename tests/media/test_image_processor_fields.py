"""The image processor's fields, which come from a file that a stranger may have made."""

import pytest

from pvc.processing_pvc import PVCImageProcessor


@pytest.mark.attack("F13")
@pytest.mark.parametrize(
    "name", ("image_size", "patch_size", "min_tiles", "max_tiles", "image_repeats", "video_repeats")
)
@pytest.mark.parametrize("value", ("56", None, [], {}, True, 0, -1, 2.5, 10**9, float("nan")))
def test_a_field_that_is_no_whole_number_in_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*: expected a whole number"):
        PVCImageProcessor(**{name: value})


@pytest.mark.attack("F13")
@pytest.mark.parametrize("value", ("0.25", None, [], True, 0, 1.5, float("nan"), float("inf")))
def test_a_downsample_ratio_that_is_no_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="downsample_ratio is .*: expected a number above 0"):
        PVCImageProcessor(downsample_ratio=value)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("text", ("[]", "3", '{"image_processor": ' + "[" * 5000 + "]" * 5000 + "}"))
def test_a_file_that_is_no_flat_object_is_refused_by_name(tmp_path, text):
    (tmp_path / "processor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"processor_config\.json"):
        PVCImageProcessor.from_pretrained(tmp_path)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("text", ("0", "[1]", '"x"', "true"))
def test_an_image_processor_that_is_no_object_is_refused_by_name(tmp_path, text):
    (tmp_path / "processor_config.json").write_text(f'{{"image_processor": {text}}}')
    with pytest.raises(
        ValueError, match=r"processor_config\.json has image_processor of .*: expected an object"
    ):
        PVCImageProcessor.from_pretrained(tmp_path)


@pytest.mark.attack("F13")
@pytest.mark.parametrize(
    "name, value", [("_media_policy", {"files": None}), ("threads", 9), ("image", "x"), ("_tiles", None)]
)
def test_a_file_replaces_neither_the_policy_nor_a_method(name, value):
    fields = PVCImageProcessor().to_dict() | {name: value}
    with pytest.raises(ValueError, match=f"{name} is no field"):
        PVCImageProcessor.from_dict(fields)
