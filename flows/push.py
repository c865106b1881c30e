"""`raft push`: a released folder goes to the hub as it was judged, or not at all."""

from pathlib import Path

from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.evidence import NAME, replay


def push(folder: Path, repository: str, public: bool) -> str:
    """Make the repository of the hub hold the folder's files and no others; returns the commit's address.

    Raises:
        InputError: the folder's gate.json does not say that these files passed.
        OperationalError: the hub refuses, or the repository is public without being meant to.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    verdict = replay(folder / NAME, folder)[1]
    if not verdict.promoted:
        raise InputError(f"{folder}: the gate did not pass this model: {verdict.reason} Nothing was pushed")
    disable_progress_bars()
    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        if not public and not hub.repo_info(repository).private:
            raise OperationalError(
                f"{repository} is public on {hub.endpoint}; expected a private repository. Nothing was pushed: say "
                "--public, or make it private"
            )
        commit = hub.upload_folder(
            folder_path=folder, repo_id=repository, commit_message=verdict.reason[:200], delete_patterns="*"
        )
    except OperationalError:  # a RuntimeError, too
        raise
    except HFValidationError as error:
        raise InputError(f"got the repository {repository!r}, expected OWNER/NAME: {error}") from error
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RuntimeError) as error:  # RuntimeError: of one file
        raise OperationalError(
            f"{hub.endpoint}: pushing to {repository} failed: {error}. Check the token (`hf auth login`, HF_TOKEN: it "
            "needs write access) and the network, then push again"
        ) from error
    return str(commit.commit_url)
