"""A real `vllm serve` on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def vllm_serve(model: Path, log: Path, names: Sequence[str] = ("policy",), key: str | None = None) -> Iterator[str]:
    """The base URL of a server that answers to each of `names`; its output goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; its own command asks for a package of the name vllm, which the CPU build does not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", *names, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-num-seqs", "16", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", "67108864"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
    # A server cuts every answer at its model's own default; all other defaults are overruled by the requests.
    command += ["--override-generation-config", '{"max_new_tokens": 1000000}']
    quiet = {"VLLM_NO_USAGE_STATS": "1", **({"VLLM_API_KEY": key} if key else {})}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **quiet}, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve did not start: {log.read_text()[-3000:]}")
