"""moto's S3 server with a bucket, which fails when it is told to, and mirrors that know nothing of each other."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from shards import store
from shards.processes import free_port

STATUS = {"away": "503 Service Unavailable", "lost": "503 Service Unavailable", "forbidden": "403 Forbidden"}
STATUS |= {"conflict": "409 Conflict", "throttled": "400 Bad Request"}
BODY = {"throttled": b"<Error><Code>RequestTimeout</Code></Error>"}


class ObjectStore:
    """A server of objects; `requests` are its answered ones, "GET some/key".

    `fault(method, key)` says of a request what goes wrong with it: "away" (503, and nothing is done), "lost" (it is
    done, and 503), "forbidden" (403), "conflict" (409), "throttled" (400, and its code says so), "heedless" (it may put
    over what is there), or None.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.fault: Callable[[str, str], str | None] = lambda method, key: None
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        # Of several conditional puts at once, moto would let more than one through.
        self._one_at_a_time = threading.Lock()
        self._moto = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._moto.start()
        self._app, self._moto._server.app = self._moto._server.app, self._answer
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=self.address, **keys)
        self.client.create_bucket(Bucket="bucket")

    def _answer(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, key = environment["REQUEST_METHOD"], environment["PATH_INFO"].removeprefix("/bucket").lstrip("/")
        with self._one_at_a_time:
            fault = self.fault(method, key)
            if fault == "heedless":
                environment.pop("HTTP_IF_NONE_MATCH", None)
            if fault not in STATUS or fault == "lost":
                self.requests.append(f"{method} {key}")
                statuses: list[Any] = []
                body = b"".join(self._app(environment, lambda *answer: statuses.append(answer)))
            else:
                environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            if fault in STATUS:
                body = BODY.get(fault, b"")
                start(STATUS[fault], [("Content-Length", str(len(body)))])
                return [body]
            start(*statuses[0])
            return [body]

    def objects(self, run: str) -> dict[str, bytes]:
        """All objects of a run by key, read past the code under test; markers aside, which hold times."""
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=f"{run}/").get("Contents", [])
        keys = [one["Key"] for one in found if not one["Key"].endswith("done.json")]
        return {key.removeprefix(f"{run}/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket="bucket", Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket="bucket", Key=key)

    def stop(self) -> None:
        self._moto.stop()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server, known to this process and its children by their environment."""
    server, patch = ObjectStore(), pytest.MonkeyPatch()
    own = {"AWS_ENDPOINT_URL": server.address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (own | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        patch.setenv(name, value)
    try:
        yield server
    finally:
        patch.undo()
        server.stop()


def open_anew(url: str, cache: Path, writing: bool = True) -> Path:
    """The mirror of a run in a cache of its own, as in a process that has just started."""
    store._stores.clear()
    os.environ["DREAMCACHE_CACHE"] = str(cache)
    return store.open_store(url, writing)
