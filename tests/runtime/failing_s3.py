"""An S3-like server on loopback that is slow, answers with errors, loses answers, and cuts what it sends or is sent."""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

WAYS = ("busy", "cut", "slow", "answer lost")


class FailingStore:
    """A WSGI application before moto's: every `every`-th request fails in the next of `WAYS`.

    It answers `left` requests more (None: all), and then that it is busy.
    """

    def __init__(self, app) -> None:
        self.app, self.every = app, 0
        self.left: int | None = None
        self.count, self.ways = itertools.count(1), itertools.cycle(WAYS)
        self.failed: list[tuple[str, str]] = []

    def __call__(self, environ, start_response):
        count, way = next(self.count), None
        if self.left == 0:
            way = "busy"
        elif self.every and count % self.every == 0:
            way = next(self.ways)
        if self.left:
            self.left -= 1
        if way:
            self.failed.append((way, environ["REQUEST_METHOD"]))
        if way == "busy":
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        if way == "slow":
            time.sleep(0.2)
        if way == "cut" and environ["REQUEST_METHOD"] == "PUT":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            self._hang_up(environ)
        body = b"".join(self.app(environ, start_response))
        if way == "answer lost":
            self._hang_up(environ)
        return self._half(environ, body) if way == "cut" else [body]

    def _half(self, environ, body: bytes) -> Iterator[bytes]:
        """The headers have promised the whole."""
        yield body[: len(body) // 2]
        self._hang_up(environ)

    def _hang_up(self, environ) -> NoReturn:
        """End the connection; the server alone would keep it, and the client wait for a minute."""
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


@contextlib.contextmanager
def failing_s3() -> Iterator[FailingStore]:
    """The server, with a bucket `faults`, in this process; clients find it by the environment, and wait briefly."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    import botocore.retryhandler
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    store = FailingStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY_ID": "test"}
    settings |= {"SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("NO_PROXY", ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])))
        # Pauses are random times a power of two; the number of tries stays.
        patch.setattr(botocore.retryhandler.random, "random", lambda: 0.01)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("faults")
        try:
            yield store
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.shutdown()
