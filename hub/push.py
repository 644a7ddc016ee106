"""Checkpoints on the Hub: the model card of a folder, and `push`, which checks a folder and uploads it.

What goes up is what a checkpoint consists of, found by its own references (`auto_map`, relative imports, the
index of the weights), and nothing that merely lies beside it. Sending, and going on after a broken
connection, is left to `huggingface_hub`.
"""

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from string import Template

import torch
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from pvc import CHECKPOINT
from pvc.configuration_pvc import AUTO_MAP, PVCConfig, llm_family
from pvc.conversion.checks import check_config, check_depth, values_of
from pvc.conversion.files import (
    CONFIG_FILES,
    INDEX,
    SINGLE,
    CheckpointError,
    SourceWeights,
    check_code_within,
    imported_modules,
    is_within,
    read_json,
)
from pvc.conversion.printable import in_a_line
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor

logger = logging.get_logger(__name__)

README = "README.md"
TAGS = ["pvc", "multimodal", "video-text-to-text", "conversational", "custom_code"]
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is needed
OPTIONAL_FILES = (  # patterns of what else may belong to a checkpoint
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
OLD_WEIGHTS = [SINGLE, INDEX, "model-*-of-*.safetensors"]  # on the Hub, where other files take their place
WAYS_OUT = {
    "config.json": "is it the folder of a model?",
    "tokenizer_config.json": "save the tokenizer there too, tokenizer.save_pretrained(FOLDER)",
    **dict.fromkeys(
        ("processor_config.json", "chat_template.jinja"),
        "save the processor there too, processor.save_pretrained(FOLDER); where there is none yet, it is "
        "PVCProcessor(PVCImageProcessor.from_model_config(config), tokenizer, template=config.template)",
    ),
}

CARD = Template("""\
# $name

A vision-language model for images and videos with Progressive Visual Token Compression \
([PVC](https://arxiv.org/abs/2412.09613), CVPR 2025), which takes every visual input for a video.

$facts

## How to use it

The code comes with the weights: nothing has to be installed but what it imports.

```bash
pip install "torch>=2.6" "transformers>=5.12,<6" einops pillow av sentencepiece
```

```python
import torch
from transformers import AutoModel, AutoProcessor

path = $path  # this repository's id, or a folder
revision = "main"  # the hash of a commit pins the code that runs
device = "cuda" if torch.cuda.is_available() else "cpu"
processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(path, revision=revision, trust_remote_code=True).eval().to(device)


def ask(question, *media):
    content = [*media, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    output = model.generate(**inputs.to(device), max_new_tokens=128)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print(ask("What is in the image?", {"type": "image", "path": "image.jpg"}))
print(ask("What happens in the video?", {"type": "video", "path": "video.mp4"}))
```

## Where it comes from

$provenance
""")


def model_card(config, *, base_model: str | None, license: str | None, name: str, notes: str = "") -> str:
    """The README.md of a checkpoint: metadata that the Hub reads, what the model is, how to use it.

    Args:
        config: its `PVCConfig`.
        base_model: Hub id of the checkpoint that its weights come from.
        license: of the weights, as the Hub abbreviates it ("mit", "apache-2.0", "other", ...).
        name: the model's name, or its Hub id: the title, and what the example loads.
        notes: Markdown on how it was made.

    Raises:
        ValueError: where `base_model` is no Hub id (the address of a folder is nobody else's business).
    """
    if base_model is not None:
        validate_repo_id(base_model)
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        license=license,
        pipeline_tag="image-text-to-text",
        tags=TAGS,
    )
    text = CARD.substitute(
        name=name.rpartition("/")[2],
        path=json.dumps(name, ensure_ascii=False),
        facts=_facts(config),
        provenance=_provenance(base_model, license, notes),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _facts(config) -> str:
    vit, llm = config.vision_config, config.llm_config
    pictures = PVCImageProcessor.from_model_config(config)
    tokens, size, block = pictures.tokens_per_tile, pictures.image_size, round(1 / config.downsample_ratio)
    most_tiles = pictures.max_tiles + (pictures.use_thumbnail and pictures.max_tiles > 1)
    temporal = (
        f"the last {vit.num_temporal_layers} attend back in time"
        if vit.num_temporal_layers
        else ("none of them temporal")
    )
    norm = "a norm that knows the time" if config.adaptive_compression else "a LayerNorm"
    llm_name = llm_family(llm).name
    rows = {
        "LLM": f"{llm_name}, {llm.num_hidden_layers} layers of width {llm.hidden_size}",
        "ViT": f"{vit.num_hidden_layers} layers of width {vit.hidden_size}, {temporal}",
        "projector": f"{block} x {block} patches become one visual token, under {norm}",
        "tile": f"{size} x {size} pixels, {tokens} visual tokens each time it is shown",
        "shown": f"an image {_times(config.image_repeats)}, a frame of a video "
        f"{_times(config.video_repeats)}",
        "image": f"at most {most_tiles} tiles: {most_tiles * config.image_repeats * tokens} visual tokens",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {fact} |" for name, fact in rows.items())])


def _times(repeats: int) -> str:
    return "once" if repeats == 1 else f"{repeats} times"


def _provenance(base_model: str | None, license: str | None, notes: str) -> str:
    base = base_model and f"Its weights come from [{base_model}](https://huggingface.co/{base_model})."
    weights = (
        f"the weights under the license {license}" if license else "the license of the weights is not named"
    )
    return "\n\n".join(
        filter(None, [base, notes.strip(), f"The Python files are under the MIT license; {weights}."])
    )


# ---- to the Hub


def push(
    folder,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Uploads the checkpoint in `folder` to the Hub; gives the address of the commit.

    The same call after an interruption sends what had not arrived; where nothing has changed, there is no
    new commit. Weights of an earlier upload that have no file in `folder` are removed from the repository.

    Args:
        repo_id: "org/name"; "name" is in one's own namespace. Made where it does not exist.
        private: make it so that others do not see it.
        revision: branch, made where it does not exist; None: "main".
        token: None: that of `hf auth login` or of HF_TOKEN.
        message: of the commit.

    Raises:
        ValueError: where the folder is not whole (before anything is sent), or `private` is asked of a
            repository that is public.
        OSError: what the Hub refuses (`HfHubHTTPError`); a ConnectionError where the connection broke.
    """
    folder = Path(folder).expanduser()
    validate_repo_id(repo_id)
    files = checked_files(folder)
    if README not in files:
        _write_card(folder, repo_id)
        files.append(README)
    _tell_what_stays(folder, files)
    api = HfApi(token=token)
    with _readable_errors():
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"private: {repo_id} exists and is public; make it private in its settings, or choose another"
            )
        if revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=[escape(name) for name in files],  # patterns to the Hub's client
            delete_patterns=OLD_WEIGHTS,
            commit_message=message or "Upload PVC",
        )
    return commit.commit_url


def _write_card(folder: Path, repo_id: str):
    card = model_card(PVCConfig.from_pretrained(folder), base_model=None, license=None, name=repo_id)
    (folder / README).write_text(card, encoding="utf-8")
    logger.warning(
        f"{folder} had no {README}: one was made; say there what it was trained on, and its license"
    )


def _tell_what_stays(folder: Path, files: list[str]):
    sent = {name.partition("/")[0] for name in files}
    visible = sorted(path.name for path in folder.iterdir() if path.name[0] not in "._")
    if left_out := [name for name in visible if name not in sent]:
        names = ", ".join(map(in_a_line, left_out))
        logger.warning(f"not part of the checkpoint, and not sent: {names}")


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            error.append_to_message("\nA token that may write is set by `hf auth login`, or in HF_TOKEN.")
        raise
    except (HTTPError, RuntimeError) as error:  # the latter wraps what went wrong while a file was sent
        reasons = ": ".join(str(x) for x in (error, error.__cause__) if x is not None)
        raise ConnectionError(
            f"the upload to {constants.ENDPOINT} broke off ({reasons}): push again, what has arrived is not "
            "sent twice"
        ) from error


# ---- whether a folder is whole


def checked_files(folder: Path) -> list[str]:
    """Names of the files that the checkpoint in `folder` consists of.

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
    optional = [
        path.relative_to(folder).as_posix()
        for pattern in OPTIONAL_FILES
        for path in folder.glob(pattern)
        if path.is_file()
    ]
    for name in optional:
        if name.endswith(".json"):
            _read_json(folder, name)
    if README in optional:
        _check_card(folder / README)
    return sorted({*needed, "chat_template.jinja", *code, *weights, *optional})


def _check_links(folder: Path):
    """Refuses links of the folder to files elsewhere, which would be sent, or written, in their place."""
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


def _check_config(folder: Path, values: dict):
    if values.get("model_type") != "pvc":
        raise CheckpointError(
            f"{folder} is no PVC: model_type in its config.json is {values.get('model_type')!r}, not 'pvc'"
        )
    if "quantization_config" in values:
        raise CheckpointError(
            f"{folder} holds quantised weights: push those that they were made from, which are quantised as "
            "they are loaded, or use model.push_to_hub"
        )


def _auto_classes(configs: dict[str, dict]) -> dict[str, tuple[str, str]]:
    """ "module.Class" of each class that transformers' Auto classes must find, with what names it."""
    processor, tokenizer = configs["processor_config.json"], configs["tokenizer_config.json"]
    images = processor.get("image_processor")
    images = images if isinstance(images, dict) else {}
    needs = [
        ("config.json", configs["config.json"], AUTO_MAP),
        ("processor_config.json", processor, ["AutoProcessor"]),
        ("image_processor in processor_config.json", images, ["AutoImageProcessor"]),
    ]
    if "auto_map" in tokenizer or tokenizer.get("tokenizer_class") == "InternLM2Tokenizer":
        needs.append(("tokenizer_config.json", tokenizer, ["AutoTokenizer"]))
    found = {}
    for place, values, names in needs:
        auto_map = values.get("auto_map") or {}
        if absent := [name for name in names if not auto_map.get(name)]:
            raise CheckpointError(
                f"auto_map of {place} lacks {', '.join(absent)}: save it again with save_pretrained of this "
                "package's class"
            )
        for entry in auto_map.values():
            found |= {x: place for x in (entry if isinstance(entry, list) else [entry]) if x}
    return found


def _code_files(folder: Path, auto_classes: dict[str, str]) -> list[str]:
    """The files that `auto_classes` are in, and those that these import."""
    classes_of, seen = {}, {}
    for reference in auto_classes:
        module, _, name = reference.rpartition(".")
        classes_of.setdefault(module, set()).add(name)
    waiting = list(classes_of)
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in seen:
            seen[name] = (folder / name).is_file()
            file = (folder if seen[name] else CHECKPOINT) / name  # the package's tells what else is needed
            waiting += imported_modules(file) if file.is_file() else []
    if missing := sorted(name for name, is_there in seen.items() if not is_there):
        raise CheckpointError(
            f"{folder} lacks code that its auto_map leads to, {', '.join(missing)}: copy the files of these "
            f"names there from the package's folder, {CHECKPOINT}"
        )
    for name in seen:
        _check_code(folder / name, classes_of.get(name.removesuffix(".py"), set()))
    return list(seen)


def _check_code(file: Path, classes: set[str]):
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested deeply
        raise CheckpointError(f"{file} is not Python: {error}") from error
    if absent := classes - {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
        raise CheckpointError(f"{file} has no {', '.join(sorted(absent))}, which auto_map names")


def _weight_files(folder: Path) -> list[str]:
    """The files of the weights, which hold each that the model needs; their values are not read."""
    infos = SourceWeights(folder).infos
    with values_of(folder / "config.json"):
        config = PVCConfig.from_pretrained(folder)
        check_depth(config, len(infos), folder / "config.json")
        check_config(config, folder / "config.json")
        with torch.device("meta"):
            model = PVCForConditionalGeneration(config)
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


def _check_card(file: Path):
    try:
        ModelCard.load(file)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise CheckpointError(f"the metadata at the head of {file} cannot be read: {error}") from error
