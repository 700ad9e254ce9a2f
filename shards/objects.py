"""Objects below a URL, by fsspec: listed, read, put on a condition, copied; what fails for a while is tried again."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds that a store may be away
LONGEST_WAIT = 30.0
AT_ONCE = 500  # objects that are asked for together
# Names of errors, of whatever library, that a later try may not meet. The libraries are not imported to find them.
PASSING = {"HTTPClientError", "ConnectionError", "TimeoutError", "ClientPayloadError", "ResponseParserError"}
PASSING |= {"IncompleteRead", "ServerDisconnectedError", "FSTimeoutError"}
PASSING_STATUS = {408, 409, 429}  # and all from 500 on; 409 is the answer to two conditional puts at once
THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"}
UNKNOWN = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it: size in bytes, ETag if the store has such, and its time in seconds."""

    size: int
    etag: str | None
    changed: float | None


class Objects:
    """The objects below a URL, named by what follows it.

    Raises ValueError, in one line, where the URL's kind, the bucket or the credentials are wrong, and RuntimeError
    where the store fails for `PATIENCE`.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        self._is_s3 = url.partition("://")[0] in ("s3", "s3a")
        # By the address and keys that are in the environment now: a cached instance has those that were.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if self._is_s3:  # botocore's own tries would be made for each of ours
            options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": 1}}
        try:
            self._system, root = fsspec.url_to_fs(url, **options)
        except ImportError as error:
            needed = "pip install 'dreamcache-pipeline[s3]'" if self._is_s3 else error
            raise ValueError(f"{url} needs one more package: {needed}") from None
        except ValueError as error:
            raise ValueError(f"{url}: {error}") from None
        self._root = root.rstrip("/")

    def listing(self, below: str = "") -> dict[str, Listed]:
        """All objects, or those of which the names begin with the folder `below`."""
        place = f"{self._root}/{below}".rstrip("/")
        found = self._ask(lambda: self._system.find(place, detail=True))
        return {name.removeprefix(self._root + "/"): _listed(info) for name, info in found.items()}

    def state(self, name: str) -> Listed | None:
        """An object's size and ETag; None where there is none."""
        with suppress(FileNotFoundError):
            return _listed(self._ask(lambda: self._system.info(self._at(name))))
        return None

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        return next(iter(self.read_all([name]).values()), None)

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of many objects, asked for side by side; of those that are gone, nothing."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), AT_ONCE):
            places = {self._at(name): name for name in names[start : start + AT_ONCE]}
            answers = self._ask(lambda places=places: self._read([*places]))  # type: ignore[misc]
            found |= {places[place]: content for place, content in answers.items()}
        return found

    def _read(self, places: list[str]) -> dict[str, bytes]:
        # One connection an object: else its size is asked for first.
        single = {"max_concurrency": 1} if self._is_s3 else {}
        answers = self._system.cat(places, on_error="return", **single)
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return {place: answer for place, answer in answers.items() if isinstance(answer, bytes)}

    def create(self, name: str, content: bytes) -> bool:
        """Put an object where none is; whether it holds this content then."""
        return self._put_if(name, content, mode="create")

    def replace(self, name: str, content: bytes, seen: Listed) -> bool:
        """Put an object in the place of the one that was seen; whether it holds this content then.

        Where a store can make no such condition, the other is removed and ours created. Should somebody else have
        replaced it between, that goes too: a finished shard is then finished once more, and no reader takes one's bytes
        for the other's, since it compares their digest with the marker's.
        """
        if self._is_s3:
            return self._put_if(name, content, IfMatch=f'"{seen.etag}"')
        self.remove(name)
        return self.create(name, content)

    def _put_if(self, name: str, content: bytes, **condition: Any) -> bool:
        try:
            self._ask(lambda: self._system.pipe_file(self._at(name), content, **condition))
            return True
        except FileNotFoundError:  # nothing is there any more that could match
            return False
        except OSError as error:
            if not isinstance(error, FileExistsError) and _response(error)[0] != 412:
                raise
        # An answer that was lost is asked for again, and then our own object is in the way.
        return self.read(name) == content

    def upload(self, path: Path, name: str) -> None:
        """Put a file's bytes as an object; there is the whole object or none."""
        self._ask(lambda: self._system.put_file(str(path), self._at(name)))

    def download(self, name: str, path: Path) -> bool:
        """Write an object's bytes into a file; False where there is no such object."""
        try:
            self._ask(lambda: self._system.get_file(self._at(name), str(path)))
            return True
        except FileNotFoundError:
            return False

    def copy(self, name: str, to: str) -> bool:
        """Copy an object within the store, over what is there; False where it is gone."""
        try:
            self._ask(lambda: self._system.cp_file(self._at(name), self._at(to)))
            return True
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> None:
        """Remove an object if it is there."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self._system.rm_file(self._at(name)))

    def check_conditions(self) -> None:
        """Raise ValueError for a store that puts an object where there is one though it was told not to."""
        name = f"condition.tmp-{os.urandom(8).hex()}"
        try:
            if not self.create(name, b"first") or self.create(name, b"second"):
                raise ValueError(
                    f"{self.url}: this store does not heed If-None-Match, without which no run is safe there"
                )
        finally:
            self.remove(name)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, action: Callable[[], Answer]) -> Answer:
        """The store's answer; its passing faults are waited for, ever longer, and others come in plain words."""
        deadline, wait, told = time.monotonic() + PATIENCE, 0.5, False
        while True:
            try:
                return action()
            except Exception as error:
                reason = _passing(error)
                if reason is None:
                    if (plain := self._in_words(error)) is None:
                        raise
                    raise plain from None
                if time.monotonic() + wait > deadline:
                    text = f"{self.url} did not answer for {PATIENCE:.0f} s ({reason})"
                    raise RuntimeError(f"{text}: start again when it does, and all goes on where it stood") from None
            if not told:
                log.warning("%s: %s; trying again for up to %.0f s", self.url, reason, PATIENCE)
                told = True
            time.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, LONGEST_WAIT)

    def _in_words(self, error: Exception) -> ValueError | None:
        """A wrong name or key in one line; None for any other error."""
        status, code = _response(error)
        if code in ("NoSuchBucket", "InvalidBucketName"):
            return ValueError(f"{self.url}: there is no such bucket")
        if isinstance(error, PermissionError) and status:
            return ValueError(f"{self.url}: access denied ({code}): check the credentials and the bucket's name")
        if _names(error) & UNKNOWN:
            return ValueError(f"{self.url}: no credentials ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return ValueError(f"{self.url}: {error}") if "BotoCoreError" in _names(error) else None


def _listed(info: Mapping[str, Any]) -> Listed:
    changed, etag = info.get("LastModified"), info.get("ETag")
    return Listed(info["size"], etag and etag.strip('"'), changed and changed.timestamp())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _response(error: BaseException) -> tuple[int, str]:
    """The HTTP status and the code that a store answered with; 0 and nothing where it did not answer."""
    for one in _chain(error):
        if isinstance(response := getattr(one, "response", None), dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def _passing(error: Exception) -> str | None:
    """What is wrong, in a few words, if it may pass by itself; else None."""
    status, code = _response(error)
    if status:
        passing = status >= 500 or status in PASSING_STATUS or code in THROTTLED
        return f"{status} {code if code != str(status) else ''}".strip() if passing else None
    found = next((one for one in _chain(error) if _names(one) & PASSING), None)
    return None if found is None else type(found).__name__
