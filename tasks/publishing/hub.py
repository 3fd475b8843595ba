"""Upload of an exported folder to a model hub, in one commit: whoever downloads a revision finds it whole.

Token and endpoint are huggingface_hub's own affair (`hf auth login`, `HF_TOKEN`, `HF_ENDPOINT`); neither is printed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import InputError, StageError
from models.publishing import Export

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def check_push(repo: str, public: bool) -> None:
    """Check, before anything is written, that the hub answers, knows the user, and would not show the model to all.

    Args:
        repo: The repository as `owner/name`, or a name of the user's own.
        public: Whether everybody may see it.

    Raises:
        InputError: no token or a wrong one, a name that cannot be, or a public repository without `public`.
        StageError: the hub cannot be reached or refuses.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explaining(repo, "nothing was written"):
        api = _api()
        user = api.whoami()["name"]
        try:
            is_private = api.model_info(repo if "/" in repo else f"{user}/{repo}").private
        except RepositoryNotFoundError:
            return
    if not is_private and not public:
        raise InputError(f"--push {repo}: the repository is public; add --public to upload to it all the same")


def push(folder: Path, export: Export, repo: str, public: bool) -> str:
    """Upload the files of an exported folder in one commit to a repository, which is made where it is missing.

    Returns:
        The commit's address.

    Raises:
        InputError, StageError: as for `check_push`.
    """
    from huggingface_hub import CommitOperationAdd

    remedy = f"{folder} is whole: upload it with `hf upload {repo} {folder}`, or remove it and export again"
    with _explaining(repo, remedy):
        api = _api()
        made = api.create_repo(repo, private=not public, exist_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        message = f"{export.source}, {export.weights} weights in {export.dtype}"
        return str(api.create_commit(made.repo_id, operations, commit_message=message).commit_url)


def _api() -> "HfApi":
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(library_name="alignment-pipeline")


@contextmanager
def _explaining(repo: str, remedy: str) -> Iterator[None]:
    """Turn whatever the library raises into one message.

    Args:
        repo: The repository.
        remedy: What became of the folder, and what to do.
    """
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(f"--push {repo}: there is no token for the hub; {_LOG_IN}; {remedy}") from None
    except HFValidationError as error:
        raise InputError(f"--push {repo}: not the name of a repository ({_first_line(error)}); {remedy}") from None
    except OfflineModeIsEnabled:
        raise InputError(f"--push {repo}: HF_HUB_OFFLINE forbids it; unset it; {remedy}") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise InputError(f"--push {repo}: the hub does not accept the token; {_LOG_IN}; {remedy}") from None
        raise StageError(f"--push {repo}: the hub refused it ({_first_line(error)}); {remedy}") from None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = (
            error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        )  # of one file's upload
        why = f"{type(cause).__name__}: {_first_line(cause)}"
        raise StageError(f"--push {repo}: the hub cannot be reached or failed ({why}); {remedy}") from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
