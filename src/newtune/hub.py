"""What is wrong with a repository of a hub, asked of the hub itself and said in words that help.

Libraries wrap what a hub answers in errors of their own; after one of them, `diagnose` asks again.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported by __getattr__

from newtune.lookup import did_you_mean, sentence

HubError = httpx.HTTPError
"""What the hub's client raises when the hub refuses, answers nonsense, or cannot be reached."""

LOCAL = "A file or folder of this machine is written with `./` in front."
LISTED = 200
"""Repositories of one owner that are looked through for a similar name."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that HF_ENDPOINT names, at a branch, tag or commit."""

    id: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    """None: the main branch."""

    @property
    def page(self) -> str:
        """Return the address of its page."""
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{constants.ENDPOINT}/{folder}{self.id}"


def diagnose(repository: Repository) -> str | None:
    """Return why a repository cannot be read, or None when the hub lets this user read it."""
    if constants.is_offline_mode():
        return _offline(repository)
    api, id, kind = HfApi(), repository.id, repository.kind
    try:
        api.auth_check(id, repo_type=kind)
        api.repo_info(id, repo_type=kind, revision=repository.revision)
    except HFValidationError as error:
        return f"`{id}` is no hub id: {first_line(error)}"
    except GatedRepoError:
        return (
            f"the {kind} `{id}` is gated: accept its terms at {repository.page} with the account "
            f"of your token; {token_in_use()}."
        )
    except RepositoryNotFoundError:
        return (
            f"{constants.ENDPOINT} has no {kind} `{id}`, or it is private and not for this user "
            f"({token_in_use()}).{_similar(repository)} {LOCAL}"
        )
    except RevisionNotFoundError:
        return f"`{id}` has no revision `{repository.revision}`.{_revisions(repository)}"
    except HfHubHTTPError as error:
        return _refused(error)
    except (HubError, OfflineModeIsEnabled, OSError) as error:
        return (
            f"{constants.ENDPOINT} cannot be reached ({first_line(error)}), and the cache "
            f"({constants.HF_HUB_CACHE}) does not hold all of `{id}`. Check the network; "
            "HF_ENDPOINT names another hub or a mirror, HF_HUB_OFFLINE=1 uses the cache only."
        )
    return None


def is_unreachable(error: BaseException) -> bool:
    """Tell a network's fault, or a hub out of order, from a refusal: trying again may help."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, HubError | ConnectionError)


def token_in_use() -> str:
    """Say which token is sent and whose it is; never the token itself."""
    token = get_token()
    if token is None:
        return "no token is given (`hf auth login` stores one, or set HF_TOKEN)"
    stored = Path(constants.HF_TOKEN_PATH)
    is_stored = stored.is_file() and stored.read_text(encoding="utf-8").strip() == token
    source = "the token that `hf auth login` stored" if is_stored else "the token in HF_TOKEN"
    with contextlib.suppress(HubError, OSError):
        return f"{source} (of `{HfApi().whoami(token=token)['name']}`) is used"
    return f"{source} is used, which the hub does not know"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the token should it stand there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    token = get_token()
    return text.replace(token, "<token>") if token else text


def _offline(repository: Repository) -> str:
    at = f" --revision {repository.revision}" if repository.revision else ""
    fill = f"hf download {repository.id}{at}"
    if repository.kind == "dataset":
        fill = "newtune preprocess CONFIG"  # what was read of it, which the library finds again
    return (
        f"HF_HUB_OFFLINE is set, and the cache under {constants.HF_HOME} does not hold all of the "
        f"{repository.kind} `{repository.id}`{at.replace(' --', ' at ')}. Fill it where there is a "
        f"network, with the same HF_HOME (`{fill}`), or unset HF_HUB_OFFLINE."
    )


def _refused(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        return f"{constants.ENDPOINT} does not accept the token: {token_in_use()}."
    if status == 403:
        return f"{constants.ENDPOINT} refuses: {first_line(error)} {token_in_use()}."
    return f"{constants.ENDPOINT} answers {status}: {first_line(error)} Try again later."


def _similar(repository: Repository) -> str:
    """Return the nearest name that the hub lists, as a question, or nothing."""
    owner, _, name = repository.id.rpartition("/")
    known: list[str] = []
    with contextlib.suppress(HubError, OSError):
        known += _listed(repository.kind, author=owner) if owner else []
        known += _listed(repository.kind, search=name)
    same_name = [id for id in known if id.rpartition("/")[2] == name]
    hint = f"did you mean `{same_name[0]}`?" if same_name else did_you_mean(repository.id, known)
    return f" {sentence(hint)}" if hint else " Check the spelling."


def _listed(kind: str, *, author: str | None = None, search: str | None = None) -> list[str]:
    api = HfApi()
    if kind == "model":
        return [found.id for found in api.list_models(author=author, search=search, limit=LISTED)]
    return [found.id for found in api.list_datasets(author=author, search=search, limit=LISTED)]


def _revisions(repository: Repository) -> str:
    with contextlib.suppress(HubError, OSError):
        refs = HfApi().list_repo_refs(repository.id, repo_type=repository.kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        hint = did_you_mean(repository.revision or "", names)
        said = f" {sentence(hint)}" if hint else ""
        return f" It has: {', '.join(names[:20])}.{said}"
    return ""
