"""The stack's Prefect server: begun on a port of its own, on the same one again after it was ended."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping

from orchestrator.errors import ConfigurationError
from orchestrator.stack.api import StackError, ask
from orchestrator.stack.supervision import Crew


class Server:
    """One server process at a time.

    Args:
        environment: What its process starts with, asked anew at each start.
        wanted_port: TCP port on 127.0.0.1; None: a free one.
        auth: Gives `user:password` of its API; None where it asks for none.
    """

    def __init__(
        self,
        crew: Crew,
        environment: Callable[[], Mapping[str, str]],
        wanted_port: int | None,
        auth: Callable[[], str | None],
    ) -> None:
        self._crew, self._environment, self._auth = crew, environment, auth
        self._wanted_port = wanted_port
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, ended or not; None before the first start."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start and wait until it is healthy.

        Raises:
            ConfigurationError: the wanted port is in use.
            StackError: it ended, or was not healthy in time.
        """
        crew = self._crew
        for last in (False, False, True):
            self.port = self.port or self._wanted_port or _free_port()
            log = crew.log("server")
            begin = log.stat().st_size if log.exists() else 0
            command = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
            self._process = crew.prefect(command, log, self._environment())
            try:
                self._await(begin)
                return
            except StackError:
                taken = "already in use" in crew.tail(log, begin)
                if taken and self._wanted_port:
                    raise ConfigurationError(
                        f"port {self._wanted_port} is in use; choose another", field="port"
                    ) from None
                if last or not taken:
                    raise
                self.port = 0  # somebody was faster on that free port

    def stop(self) -> None:
        """End it in order; its database stays."""
        if self._process:
            self._crew.end([self._process.pid])
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL: what it held in memory is lost."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """It is gone; `is_up` says so from here on."""
        self._process = None

    def _await(self, log_begin: int) -> None:
        process, crew = self._process, self._crew
        assert process is not None
        log = crew.log("server")

        def healthy() -> bool:
            if process.poll() is not None:
                raise StackError(f"the Prefect server ended at its start ({log}):\n{crew.tail(log, log_begin)}")
            try:
                # Healthy is not enough: on a port that somebody else took meanwhile, theirs would answer.
                settings = ask(self.api_url, "GET", "/admin/settings", auth=self._auth())
                return bool(settings["home"] == str(crew.home))
            except StackError:
                return False

        crew.wait_for(healthy, f"the Prefect server was not healthy after {crew.start_seconds:g} s", log)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
