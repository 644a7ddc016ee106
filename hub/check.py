"""Checks that a folder is a whole checkpoint, and lists the files that it consists of.

The list follows the checkpoint itself (`auto_map`, relative imports, the index of the weights): a file
that merely lies in the folder is not in it. No value of a weight is read.
"""

import ast
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from pvc import CHECKPOINT
from pvc.configuration_dynamic_vlm import AUTO_MAP as DYNAMIC_VLM_AUTO_MAP
from pvc.configuration_pvc import AUTO_MAP
from pvc.conversion.checks import check_config, check_depth, values_of
from pvc.conversion.files import (
    CONFIG_FILES,
    INDEX,
    CheckpointError,
    SourceWeights,
    check_code_within,
    imported_modules,
    is_within,
    read_json,
)
from pvc.conversion.plan import meta_model
from pvc.hub.card import README, read_model_config

AUTO_MAPS = {"pvc": AUTO_MAP, "dynamic_vlm": DYNAMIC_VLM_AUTO_MAP}  # by model_type
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is needed
OPTIONAL_FILES = (  # patterns of other files that may belong to a checkpoint
    "generation_config.json",
    "preprocessor_config.json",
    *VOCABULARIES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    README,
    "LICENSE*",
    "NOTICE*",
    "conversion.tsv",
    *(f"assets/*.{suffix}" for suffix in ("png", "jpg", "jpeg", "gif", "webp", "svg", "mp4")),
)
WAYS_OUT = {
    "config.json": "is it the folder of a model?",
    "tokenizer_config.json": "save the tokenizer there too, tokenizer.save_pretrained(FOLDER)",
    **dict.fromkeys(
        ("processor_config.json", "chat_template.jinja"),
        "save the processor there too, processor.save_pretrained(FOLDER); where there is none yet, it is "
        "PVCProcessor(PVCImageProcessor.from_model_config(config), tokenizer, template=config.template)",
    ),
}


def checked_files(folder: Path) -> list[str]:
    """The names of the files that the checkpoint in `folder` consists of.

    Raises:
        CheckpointError: where it is not whole, leads out of the folder, or would not load where `pvc` is not
            installed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"FOLDER is {str(folder)!r}, which is no folder")
    _check_links(folder)
    check_code_within(folder)

    needed = ("config.json", "tokenizer_config.json", "processor_config.json")
    configs = {name: _read_json(folder, name) for name in needed}
    _check_config(folder, configs["config.json"])
    code = _code_files(folder, _auto_classes(configs))

    if not (folder / "chat_template.jinja").is_file():
        raise _lacks(folder, "chat_template.jinja")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise CheckpointError(
            f"{folder} lacks the tokenizer's vocabulary (none of {', '.join(VOCABULARIES)}): "
            f"{WAYS_OUT['tokenizer_config.json']}"
        )

    weights = _weight_files(folder)
    optional = _optional_files(folder)
    return sorted({*needed, "chat_template.jinja", *code, *weights, *optional})


def _optional_files(folder: Path) -> list[str]:
    """The names of the files that may belong to a checkpoint and are in this one."""
    paths = [path for pattern in OPTIONAL_FILES for path in folder.glob(pattern) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]

    for name in names:
        if name.endswith(".json"):
            _read_json(folder, name)
    if README in names:
        _check_card(folder / README)
    return names


def _check_links(folder: Path) -> None:
    """Refuses links to files outside the folder: those files would be sent, or overwritten."""
    patterns = [*CONFIG_FILES, "chat_template.jinja", "*.safetensors", INDEX, *OPTIONAL_FILES]
    entries = list(folder.iterdir())
    entries += (folder / "assets").iterdir() if (folder / "assets").is_dir() else []

    for path in entries:
        name = path.relative_to(folder).as_posix()
        is_sent = any(fnmatch(name, x) for x in patterns if x.count("/") == name.count("/"))
        if is_sent and not is_within(path, folder):
            raise CheckpointError(
                f"{path} is a symbolic link, or in one, that leads out of the folder: put a copy of the file "
                "in its place, if it is meant for everybody"
            )

    if (folder / README).exists() and not (folder / README).is_file():
        raise CheckpointError(f"{folder / README} is no file")


def _lacks(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{folder} lacks {name}: {WAYS_OUT[name]}")


def _read_json(folder: Path, name: str) -> dict:
    try:
        return read_json(folder / name)
    except FileNotFoundError as error:
        raise _lacks(folder, name) from error


def _check_config(folder: Path, values: dict) -> None:
    if values.get("model_type") not in AUTO_MAPS:
        raise CheckpointError(
            f"{folder} is not a PVC: model_type in its config.json is {values.get('model_type')!r}, not 'pvc'"
        )
    if "quantization_config" in values:
        raise CheckpointError(
            f"{folder} holds quantised weights: push those that they were made from, which are quantised as "
            "they are loaded, or use model.push_to_hub"
        )


def _auto_classes(configs: dict[str, dict]) -> dict[str, str]:
    """The classes that transformers' Auto classes must find: "module.Class" -> the file that names it."""
    processor = configs["processor_config.json"]
    tokenizer = configs["tokenizer_config.json"]
    images = processor.get("image_processor")
    images = images if isinstance(images, dict) else {}
    needs = [
        ("config.json", configs["config.json"], AUTO_MAPS[configs["config.json"]["model_type"]]),
        ("processor_config.json", processor, ["AutoProcessor"]),
        ("image_processor in processor_config.json", images, ["AutoImageProcessor"]),
    ]
    # the processor writes its own class into the map of any tokenizer
    others = {"AutoProcessor": None} | (tokenizer.get("auto_map") or {})
    if len(others) > 1 or tokenizer.get("tokenizer_class") == "InternLM2Tokenizer":
        needs.append(("tokenizer_config.json", tokenizer, ["AutoTokenizer"]))

    found: dict[str, str] = {}
    for file, values, names in needs:
        auto_map = values.get("auto_map") or {}
        if absent := [name for name in names if not auto_map.get(name)]:
            raise CheckpointError(
                f"auto_map of {file} lacks {', '.join(absent)}: save it again with save_pretrained of this "
                "package's class"
            )
        for entry in auto_map.values():
            found |= {x: file for x in (entry if isinstance(entry, list) else [entry]) if x}
    return found


def _code_files(folder: Path, auto_classes: dict[str, str]) -> list[str]:
    """The files that `auto_classes` are in, and those that these import."""
    classes_of: dict[str, set[str]] = {}  # by module
    for reference in auto_classes:
        module, _, name = reference.rpartition(".")
        classes_of.setdefault(module, set()).add(name)

    seen: dict[str, bool] = {}  # whether the folder has the file
    waiting = list(classes_of)
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in seen:
            seen[name] = (folder / name).is_file()
            file = (folder if seen[name] else CHECKPOINT) / name  # the package's own file shows its imports
            waiting += imported_modules(file) if file.is_file() else []

    if missing := sorted(name for name, is_there in seen.items() if not is_there):
        raise CheckpointError(
            f"{folder} lacks code that its auto_map leads to, {', '.join(missing)}: copy the files of these "
            f"names there from the package's folder, {CHECKPOINT}"
        )

    for name in seen:
        _check_code(folder / name, classes_of.get(name.removesuffix(".py"), set()))
    return list(seen)


def _check_code(file: Path, classes: set[str]) -> None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested deeply
        raise CheckpointError(f"{file} is not Python: {error}") from error
    if absent := classes - {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
        raise CheckpointError(f"{file} has no {', '.join(sorted(absent))}, which auto_map names")


def _weight_files(folder: Path) -> list[str]:
    """The files of the weights, after a check that they hold each weight of the model in its shape."""
    infos = SourceWeights(folder).infos
    with values_of(folder / "config.json"):
        config = read_model_config(folder)
        check_depth(config, len(infos), folder / "config.json")
        check_config(config, folder / "config.json")
        model = meta_model(config)

    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {name for name in model.all_tied_weights_keys if name not in infos}
    if missing := [name for name in expected if name not in infos and name not in tied]:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(expected)} weights, the first {missing[0]}: is it a part "
            "of a model, or of another configuration?"
        )

    for name, shape in expected.items():
        if name in infos and infos[name].shape != shape:
            raise CheckpointError(
                f"{name} is {infos[name].shape} in the weights of {folder}, but {shape} by its config.json"
            )

    return [file.name for pattern in ("*.safetensors", INDEX) for file in folder.glob(pattern)]


def _check_card(file: Path) -> None:
    try:
        ModelCard.load(file)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise CheckpointError(f"the metadata at the head of {file} cannot be read: {error}") from error
