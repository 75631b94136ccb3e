"""Push an exported folder to the Hugging Face Hub: only where the user asks for it."""

from importlib.util import find_spec
from pathlib import Path


def check(repository: str) -> None:
    """Refuse a push that cannot work, before any work.

    Args:
        repository: `user/name`.

    Raises:
        ValueError: if the package is missing, or nobody is logged in.
    """
    if (spec := find_spec("huggingface_hub")) is None or spec.origin is None:
        raise ValueError("push: needs huggingface_hub: pip install 'twoviews[hub]'")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError(f"push={repository}: not logged in at the Hugging Face Hub: type hf auth login")


def push(folder: Path, repository: str) -> None:
    """Create a private repository if it does not exist, and send a folder to it.

    Args:
        folder: to send.
        repository: `user/name`.

    Raises:
        ConnectionError: if that fails; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True, private=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Encoder trained by TwoViews")
    except Exception as error:  # of a library that has its own errors for HTTP, and of the libraries below it
        problem = " ".join(str(error).split())[:200]
        raise ConnectionError(f"push={repository}: failed ({problem}); {folder} is complete: hf upload {repository} {folder}") from None
