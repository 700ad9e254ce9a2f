"""Captions by vLLM behind its OpenAI-compatible server, started here or running elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datagen.captions import FIELDS, CaptionsConfig
from datagen.captions_transformers import PromptTokenizer
from datagen.identity import pinned
from shards.processes import ServerProcess, free_port

if TYPE_CHECKING:
    import httpx

SERVED_NAME = "captions"  # what a server started here calls the model
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# A server that is overloaded, starting or failing may answer the same request later; one that refuses it will not.
WORTH_ANOTHER_TRY = {408, 409, 425, 429, 500, 502, 503, 504}


@contextmanager
def open_vllm(config: CaptionsConfig, log: Path) -> Iterator[VllmCaptioner]:
    """A captioner on the server at the set address, or on one that lives as long as this block and writes to `log`."""
    if config.server.address is not None:
        address = config.server.address.rstrip("/").removesuffix("/v1")
        yield VllmCaptioner(config, address, _served_name(config, address))
        return
    port = free_port()
    # Before the server starts, since what the Hub says of gated weights is clearer here than in the server's log.
    captioner = VllmCaptioner(config, f"http://127.0.0.1:{port}", SERVED_NAME)
    revision = [f"--{name}={value}" for name, value in pinned(config.model, "captions.model").items()]
    command = [config.server.python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", config.model, *revision, "--served-model-name", SERVED_NAME, "--dtype", config.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), *config.server.arguments]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
    captioner.server = ServerProcess("vLLM server", command, log, os.environ | quiet)
    try:
        try:
            captioner.server.wait_until_healthy(f"{captioner.address}/health", config.server.start_seconds)
        except RuntimeError as error:
            advice = "captions.server.python names the Python of an environment with vLLM, .address a running server"
            raise RuntimeError(f"captions: {error}; {advice}") from None
        yield captioner
    finally:
        captioner.server.stop()


def _served_name(config: CaptionsConfig, address: str) -> str:
    """The name by which the server at an address knows the model."""
    import httpx

    try:
        response = httpx.get(f"{address}/v1/models", timeout=30, trust_env=False).raise_for_status()
        served = [str(model["id"]) for model in response.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        advice = "start a vLLM server there, or set captions.server.address to null to have one started"
        raise RuntimeError(f"captions: no OpenAI-compatible server answers at {address} ({error}); {advice}") from None
    for name in (config.model, SERVED_NAME):
        if name in served:
            return name
    raise ValueError(f"captions: the server at {address} serves {', '.join(served)}, not {config.model}")


class VllmCaptioner:
    """A client that keeps a bounded number of requests under way and asks again, ever later, where one fails.

    What the server reads are tokens made here, so that both engines read the same. vLLM's sampling depends on what else
    is in its batch, so a seed alone does not bring a caption back: captions are kept, not made again.
    """

    def __init__(self, config: CaptionsConfig, address: str, model: str) -> None:
        self.config = config
        self.address = address
        self.server: ServerProcess | None = None
        self.prompts = PromptTokenizer(config)
        self.request: dict[str, Any] = {
            "model": model,
            "max_tokens": config.max_new_tokens * config.captions_per_request,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        if config.reply == "schema":
            schema = {"name": "captions", "schema": reply_schema(config.captions_per_request)}
            self.request["response_format"] = {"type": "json_schema", "json_schema": schema}

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Replies in the order of the prompts.

        Raises RuntimeError if the server ended, or refused a request, or failed at it as often as it may.
        """
        return asyncio.run(self._write(prompts, seeds))

    async def _write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        import httpx

        server = self.config.server
        free = asyncio.Semaphore(server.concurrency)
        limits = httpx.Limits(max_connections=server.concurrency)
        timeout = httpx.Timeout(server.timeout, pool=None)
        async with httpx.AsyncClient(base_url=self.address, limits=limits, timeout=timeout, trust_env=False) as client:
            requests = map(self.prompts.tokens, prompts)
            replies = (self._reply(client, free, *one) for one in zip(requests, seeds, strict=True))
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(reply) for reply in replies]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    async def _reply(self, client: httpx.AsyncClient, free: asyncio.Semaphore, prompt: list[int], seed: int) -> str:
        import httpx

        content = {**self.request, "prompt": prompt, "seed": seed}
        problem = ""
        for attempt in range(self.config.server.retries + 1):
            if attempt:
                await asyncio.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
            try:
                async with free:
                    response = await client.post("/v1/completions", json=content)
                if response.is_success:
                    text = response.json()["choices"][0]["text"]
                    if isinstance(text, str):
                        return text
                    problem = "a reply without text"
                else:
                    problem = f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}"
                    if response.status_code not in WORTH_ANOTHER_TRY:
                        raise RuntimeError(f"captions: the server at {self.address} refuses a request: {problem}")
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
            except (ValueError, LookupError, TypeError):
                problem = "a reply that is not the protocol's"
            if self.server is not None:
                self.server.check()
        tries = f"{self.config.server.retries + 1} tries"
        raise RuntimeError(f"captions: the server at {self.address} failed at a request in {tries}: {problem}")


def reply_schema(count: int) -> dict[str, Any]:
    """The JSON schema of a reply: one object of subject, class and caption, or an array of `count` such."""
    one = {
        "type": "object",
        "properties": {name: {"type": "string", "minLength": 1} for name in FIELDS},
        "required": list(FIELDS),
        "additionalProperties": False,
    }
    return one if count == 1 else {"type": "array", "items": one, "minItems": count, "maxItems": count}
