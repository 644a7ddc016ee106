"""Uploads a checkpoint to the Hub: the folder is checked, given a model card where it has none, and sent.

`huggingface_hub` sends the files and goes on after a broken connection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from pvc.conversion.files import INDEX, SINGLE
from pvc.conversion.printable import in_a_line
from pvc.hub.card import README, model_card, write_card
from pvc.hub.check import checked_files

__all__ = ["checked_files", "model_card", "push"]

logger = logging.get_logger(__name__)

OLD_WEIGHTS = [SINGLE, INDEX, "model-*-of-*.safetensors"]  # on the Hub; removed where the upload has others


def push(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Uploads the checkpoint in `folder` to the Hub and returns the address of the commit.

    The same call after an interruption sends what had not arrived. Where nothing has changed, there is no
    new commit. Weights of an earlier upload that have no file in `folder` are removed from the repository.

    Args:
        repo_id: "org/name"; "name" is in the user's namespace. Created where it does not exist.
        private: create it as a private repository.
        revision: branch, created where it does not exist; None: "main".
        token: None: the one of `hf auth login` or of HF_TOKEN.
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
        write_card(folder, repo_id)
        files.append(README)
        logger.warning(
            f"{folder} had no {README}: one was made; say there what it was trained on, and its license"
        )
    _warn_of_files_left_out(folder, files)

    api = HfApi(token=token)
    with _readable_errors():
        repo_id = _create(api, repo_id, private, revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            allow_patterns=[escape(name) for name in files],  # patterns to the Hub's client
            delete_patterns=OLD_WEIGHTS,
            commit_message=message or "Upload PVC",
        )
    return commit.commit_url


def _create(api: HfApi, repo_id: str, private: bool, revision: str | None) -> str:
    """Creates repository and branch where they do not exist; returns the full id."""
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"private: {repo_id} exists and is public; make it private in its settings, or choose another"
        )

    is_branch = revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/")
    if is_branch:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _warn_of_files_left_out(folder: Path, files: list[str]) -> None:
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
    except (HTTPError, RuntimeError) as error:  # a RuntimeError wraps what failed while a file was sent
        reasons = ": ".join(str(x) for x in (error, error.__cause__) if x is not None)
        raise ConnectionError(
            f"the upload to {constants.ENDPOINT} broke off ({reasons}): push again, what has arrived is not "
            "sent twice"
        ) from error
