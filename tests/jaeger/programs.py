"""Jaeger and the Collector as tests run them: on free ports of loopback, from the start to the end of a test."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.error import URLError
from urllib.request import urlopen

from tests.given import given
from tests.jaeger.search import fetch
from tests.otlp_receiver import free_port

ROOT = Path(__file__).parent.parent.parent
BUILD = 'eval "$(bash .ci/services)" builds it and sets the variable'
_PATIENCE = 90.0  # s; machines are shared


def eventually(condition: Callable[[], bool], timeout: float = _PATIENCE, *, what: str = "") -> None:
    """Return as soon as a condition holds; raise TimeoutError after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {timeout:g} s: {what or condition}")
        time.sleep(0.02)  # nobody tells what happens in another program


class Program:
    """A program with its configuration, in a folder of its own. Its ports stay the same when it is started again."""

    variable: ClassVar[str]

    def __init__(self, folder: Path, configurations: Sequence[Path], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._configurations = configurations
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        chosen = [f"--config=file:{each}" for each in self._configurations]
        return [given(self.variable, BUILD), *chosen]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._variables()
            )
        eventually(self._is_ready, what=f"{self.command} is ready")

    def stop(self) -> None:
        """Let it end in peace: it hands on what it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def is_healthy(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.command} ended with {self._process.returncode}:\n{self.log[-4000:]}")
        return self.is_healthy()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise
            self._process = None

    def _variables(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "COLLECTOR_"))}
        return {**kept, **self._environment}


class Jaeger(Program):
    """All in one: OTLP over gRPC at ``otlp``, queries at ``url``. What it has is gone with it, whatever the storage."""

    variable = "SPANFLOW_TEST_JAEGER"

    def __init__(self, folder: Path, storage: Literal["memory", "badger"] = "memory") -> None:
        self.otlp = f"127.0.0.1:{free_port()}"
        query = f"127.0.0.1:{free_port()}"
        self.url = f"http://{query}"
        kept: dict[str, Any] = {"max_traces": 100_000} if storage == "memory" else {"ephemeral": True}
        configuration: dict[str, Any] = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"kept": {storage: kept}}},
                "jaeger_query": {
                    "storage": {"traces": "kept"},
                    "http": {"endpoint": query},
                    "grpc": {"endpoint": f"127.0.0.1:{free_port()}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.otlp, "max_recv_msg_size_mib": 64}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "kept"}},
        }
        super().__init__(folder, [_written(folder / "jaeger.yaml", configuration)], {})

    def is_healthy(self) -> bool:
        return answers(f"{self.url}/api/v3/services")


class Collector(Program):
    """A configuration of this repository, on free ports: only where it listens is changed, and what a test asks for.

    Attributes:
        grpc: where it takes OTLP over gRPC.
        http: the same over HTTP.
        prometheus: where the figures are that it serves, if its configuration has an exporter for them.
    """

    variable = "SPANFLOW_TEST_COLLECTOR"

    def __init__(
        self,
        folder: Path,
        configuration: str,
        jaeger: str,
        changes: Mapping[str, Any] | None = None,
        **environment: str,
    ) -> None:
        grpc, http, health, figures = (f"127.0.0.1:{free_port()}" for _ in range(4))
        self.grpc, self.http, self.prometheus = f"http://{grpc}", f"http://{http}", f"http://{figures}/metrics"
        self._health = f"http://{health}"
        debug: dict[str, Any] = {"debug": {"verbosity": "detailed"}}
        served: dict[str, Any] = {"prometheus": {"endpoint": figures}} if "production" in configuration else {}
        moved: dict[str, Any] = {
            "extensions": {"health_check": {"endpoint": health}},
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": grpc}, "http": {"endpoint": http}}}},
            "exporters": debug | served,
            "service": {"telemetry": {"metrics": {"level": "none"}}},  # its own would need a port, too
        }
        super().__init__(
            folder,
            [
                ROOT / configuration,
                _written(folder / "moved.yaml", moved),
                _written(folder / "changes.yaml", changes or {}),
            ],
            {"JAEGER_ENDPOINT": jaeger, "COLLECTOR_STORAGE": str(folder / "queue"), **environment},
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point spanflow at it."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.grpc, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}

    def is_healthy(self) -> bool:
        return answers(self._health)

    def exposition(self) -> str:
        """Return its figures as OpenMetrics, the format that has exemplars."""
        return fetch(self.prometheus, Accept="application/openmetrics-text; version=1.0.0")


def validated(program: str, configuration: Path) -> "subprocess.CompletedProcess[str]":
    """Let a program say what it thinks of a configuration, as it is."""
    command = [program, "validate", f"--config=file:{configuration}"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except (URLError, OSError):
        return False


def _written(file: Path, configuration: Mapping[str, Any]) -> Path:
    file.write_text(json.dumps(configuration))  # which is YAML, too
    return file
