"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Loaded here and not in the forked child, where little is safe. None where there is no prctl (not Linux).
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1

# A server is started in a process group of its own, with a shell in it that waits for the end of our end of a pipe and
# then kills the group: the server's own children too, which would outlive a server that is killed.
_GUARDED = 'exec 3<&0 </dev/null; { read _ <&3; kill -9 0; } & exec "$@" 3<&-'


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends, also by kill -9 (on Linux; elsewhere nothing)."""
    if _LIBC is not None:
        parent = os.getppid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that no server listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server for as long as this process lives: it and its children are killed when this one ends, by kill -9 too."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "sh", *command],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise RuntimeError, with the last line of its log, if the server has ended."""
        if (code := self._process.poll()) is not None:
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"the {self.name} ended with code {code}: {last} (see {self.log})")

    def wait_until_healthy(self, address: str, seconds: float) -> None:
        """Wait until a GET of `address` succeeds; RuntimeError if the server ends first or the time is over."""
        import httpx

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            try:
                if httpx.get(address, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the {self.name} did not answer within {seconds:.0f} s (see {self.log})")

    def stop(self) -> None:
        """End the server, after five seconds by force, and whatever children it leaves."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
