"""Pushes an export to the Hugging Face hub through its own client: what `export --to` would write, as one repository.

The repository is private unless it is asked to be public, and one that is public already is refused unless it is. One that
holds anything but an earlier export is refused, for a push replaces all its files. The token is the client's (`HF_TOKEN`, or `hf auth login`), and so is the address
(`HF_ENDPOINT`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tasks.core.errors import FlywheelError, masked
from tasks.views.export import CARD_FILE, TAG

Kind = Literal["dataset", "model"]


def push(repository: str, kind: Kind, write: Callable[[Path], str], message: str, public: bool = False) -> str:
    """Fills a folder by `write` and makes it the content of the hub's `repository` (`owner/name`), which is made where there is
    none; returns a summary with the commit's address.

    Raises:
        FlywheelError: without a token, when the repository is no export or public without `public`, or when the hub refuses or cannot be reached. What
            `write` raises, before the hub is asked for anything.
    """
    from huggingface_hub import HfApi, get_token

    if not (token := get_token()):
        raise FlywheelError("the hub wants a token: `hf auth login`, or set HF_TOKEN to one that may write")
    if repository.count("/") != 1:
        raise FlywheelError(f"--push {repository!r} names no repository; write owner/name, as in me/arithmetic-r2")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with TemporaryDirectory(prefix="flywheel-push-") as place:
        folder = Path(place) / "export"
        summary = write(folder).partition(": ")[2]
        with _named(repository, api.endpoint):
            api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
            info = api.repo_info(repository, repo_type=kind)
            _check(repository, info, public)
            done = api.upload_folder(
                repo_id=repository, repo_type=kind, folder_path=folder, commit_message=message, delete_patterns="*"
            )
    seen = "private" if info.private else "public"
    return f"{masked(str(done.commit_url))}: {summary}; the repository is {seen}"


def _check(repository: str, info: Any, public: bool) -> None:
    names = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
    tags = (info.card_data or {}).get("tags") or ()
    if names and TAG not in tags:
        raise FlywheelError(
            f"{repository} on the hub holds {min(names)!r} and no export (its {CARD_FILE} has no tag {TAG!r}): a push would "
            "replace its files; choose another name"
        )
    if not (info.private or public):
        raise FlywheelError(f"{repository} on the hub is public: push with --public, or choose another name")


@contextmanager
def _named(repository: str, endpoint: str) -> Iterator[None]:
    """What the client raises, as one message: HTTP errors, the network's, a name that the hub does not allow."""
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = {401: "; is the token valid?", 403: "; may the token write there?"}.get(status or 0, "")
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FlywheelError(
            f"{repository} could not be pushed to {masked(endpoint)}: {masked(reason)}{hint}"
        ) from error
