"""Servers that misbehave on purpose, and generators on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import KEY, FakeServer

from prefdata.engines.open import open_generator, remote_model_files
from prefdata.engines.openai import client
from prefdata.specs import ModelSpec


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    found = FakeServer()
    yield found
    found.close()


@pytest.fixture
def connect(fake: FakeServer) -> Iterator[Callable[..., Any]]:
    """`connect(retries=…, …)`: a generator on the fake server, closed with the test."""
    opened = []

    def make(**settings: Any) -> Any:
        spec = ModelSpec(**{"model": "m", "engine": "openai", "base_url": fake.url, "timeout": 120.0, **settings})
        opened.append(open_generator(spec, remote_model_files(spec), "openai"))
        return opened[-1]

    yield make
    for generator in opened:
        generator.close()
