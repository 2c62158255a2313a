"""A source of records over HTTP, to try the records example against: it serves the JSON files of a folder as pages.

python deployments/services/pages.py --folder pages --make 8 --port 8901

GET  /pages               {"pages": ["2025-01-01", ...]}
GET  /pages/2025-01-01    that file as it is: a malformed one too
PUT  /faults              {"2025-01-02": "500", ...} instead of the faults before: `500`, `close` (the connection)
                          or `hang` (until the faults are others); "500 2" means the next two requests alone
GET  /requests            {"2025-01-01": 1, ...}: how often each page was asked for
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HANG_SECONDS = 600
FIRST = datetime.date(2025, 1, 1)


def make_pages(folder: Path, days: int, orders: int = 20) -> list[str]:
    """Write a page of orders for each day, the same ones every time; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(days):
        name = (FIRST + datetime.timedelta(days=number)).isoformat()
        chance = random.Random(name)
        made = [
            {
                "id": f"{name}-{n:03}",
                "customer": chance.choice([" Ada", "Grace ", "Edsger", "Barbara"]),
                "currency": chance.choice(["EUR", "usd", "GBP", "sek"]),
                "amount": f"{chance.randint(1, 90_000) / 100:.2f}".replace(".", chance.choice(".,")),
            }
            for n in range(orders)
        ]
        (folder / f"{name}.json").write_text(json.dumps({"page": name, "orders": made}))
        names.append(name)
    return names


class Pages(ThreadingHTTPServer):
    """The server; a thread per request."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.folder = folder
        self.lock = threading.Lock()
        self.requests: dict[str, int] = {}
        self.faults: dict[str, str] = {}
        self.others = threading.Event()  # the faults were replaced

    def asked_for(self, page: str) -> tuple[str, threading.Event]:
        """Count a request; the fault that it meets, "" for none, and what ends a hang."""
        with self.lock:
            self.requests[page] = self.requests.get(page, 0) + 1
            kind, _, times = self.faults.get(page, "").partition(" ")
            if times == "0":
                kind = ""
            elif times:
                self.faults[page] = f"{kind} {int(times) - 1}"
            return kind, self.others

    def replace_faults(self, faults: dict[str, str]) -> None:
        with self.lock:
            self.faults, before, self.others = faults, self.others, threading.Event()
        before.set()


class _Request(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        if self.path == "/pages":
            self._answer(HTTPStatus.OK, {"pages": sorted(p.stem for p in self.server.folder.glob("*.json"))})
        elif self.path == "/requests":
            self._answer(HTTPStatus.OK, self.server.requests)
        elif self.path.startswith("/pages/"):
            self._page(unquote(self.path.removeprefix("/pages/")))
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "no such path"})

    def do_PUT(self) -> None:
        if self.path != "/faults":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "no such path"})
            return
        self.server.replace_faults(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(HTTPStatus.OK, self.server.faults)

    def _page(self, page: str) -> None:
        fault, others = self.server.asked_for(page)
        if fault == "close":
            self.connection.close()
            return
        if fault == "hang":
            others.wait(HANG_SECONDS)
        if fault == "500":
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "told to"})
            return
        known = {path.stem: path for path in self.server.folder.glob("*.json")}
        if page in known:
            self._answer(HTTPStatus.OK, known[page].read_bytes())
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "no such page"})

    def _answer(self, status: HTTPStatus, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def log_message(self, *_: Any) -> None:
        """Nothing: it would fill the terminal."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the JSON files of a folder as pages.")
    parser.add_argument("--folder", type=Path, default=Path("pages"))
    parser.add_argument("--make", type=int, default=0, metavar="DAYS", help="write so many pages first")
    parser.add_argument("--port", type=int, default=8901)
    chosen = parser.parse_args()
    make_pages(chosen.folder, chosen.make)
    with Pages(chosen.folder, chosen.port) as server:
        sys.stdout.write(f"serving {chosen.folder} at http://127.0.0.1:{server.server_port}\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
