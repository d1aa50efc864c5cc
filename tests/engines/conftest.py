"""A real `vllm serve` on loopback, for the engine that talks to servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import vllm_serve

SAMPLE_POLICY = Path(__file__).parents[2] / "sample_data" / "policy"


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """`serve(model, name=…, key=…)`: a context with the base URL of a `vllm serve` for that model."""

    def start(model: Path, **settings: str) -> object:
        return vllm_serve(model, tmp_path_factory.mktemp("serve") / "log", **settings)

    return start


@pytest.fixture(scope="session")
def sample_server(serve: Callable[..., object]) -> Iterator[str]:
    """The base URL of a `vllm serve` with the bundled policy, which it calls `policy`; its key is `sk-of-the-tests`."""
    with serve(SAMPLE_POLICY, key="sk-of-the-tests") as url:  # type: ignore[attr-defined]
        yield url
