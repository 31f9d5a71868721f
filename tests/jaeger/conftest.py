"""One Jaeger per storage and one Collector with the development configuration, for all tests that can share them."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.jaeger.programs import Collector, Jaeger
from tests.jaeger.search import Search


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="session")
def badger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with Jaeger(tmp_path_factory.mktemp("badger"), storage="badger") as running:
        yield running


@pytest.fixture(scope="session")
def collector(jaeger: Jaeger, badger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """The Collector of development; what it has goes to both."""
    folder = tmp_path_factory.mktemp("collector")
    second: dict[str, Any] = {
        "exporters": {"otlp_grpc/badger": {"endpoint": badger.otlp, "tls": {"insecure": True}}},
        "service": {"pipelines": {"traces": {"exporters": ["otlp_grpc/jaeger", "otlp_grpc/badger"]}}},
    }
    with Collector(folder, "collector-config.yaml", jaeger.otlp, changes=second) as running:
        yield running


@pytest.fixture(scope="session")
def search(jaeger: Jaeger) -> Search:
    return Search(jaeger.url)


@pytest.fixture
def service() -> str:
    """The name of a service that is this test's alone."""
    return f"service-{uuid4().hex[:8]}"
