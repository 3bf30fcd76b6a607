"""Object stores on this machine: an emulator of Google Cloud Storage and moto's of S3, behind a proxy with faults."""

import contextlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
from proxy import Faults, serve

from vise_jax import artifact

# The emulator accepts 5 connections at a time, and writes what it knows of all objects after each change. gcsfs ends
# the lines of an upload by a line feed alone: the emulator takes a carriage return that ends the content for a part. It
# ignores conditions: the one that gcsfs sets to create an object gets the answer that Google documents.
EMULATOR = """
import http, socketserver, sys, threading
from email.parser import BytesParser
from gcp_storage_emulator import __main__, exceptions, server, storage
from gcp_storage_emulator.handlers import objects
class Parser(BytesParser):
    def parsebytes(self, text):
        return super().parsebytes(text.replace(b"\\n--==0==", b"\\r\\n--==0=="))
server.BytesParser = Parser
socketserver.TCPServer.request_queue_size = 256
storage.Storage._write_config_to_file = lambda self: None
upload, one_at_a_time = objects._multipart_upload, threading.Lock()
def upload_if(request, response, storage):
    with one_at_a_time:
        if request.query.get("ifGenerationMatch") == ["0"]:
            try:
                storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                response.status = http.HTTPStatus.PRECONDITION_FAILED
                return
            except exceptions.NotFound:
                pass
        upload(request, response, storage)
objects._multipart_upload = upload_if
__main__.main(sys.argv[1:])
"""
COMMANDS = {
    "gs": ["-c", EMULATOR, "start", "--in-memory"],
    "s3": ["-m", "moto.server"],
}


@pytest.fixture
def free_port() -> int:
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _server(scheme: str) -> Iterator[str]:
    port = _free_port()
    hosts = {"gs": ["--host=localhost", f"--port={port}"], "s3": ["-H", "127.0.0.1", "-p", str(port)]}
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[scheme], *hosts[scheme]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                break
            time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


class Store:
    """A bucket. `root` is its URL, `faults` what happens to requests."""

    def __init__(self, scheme: str, faults: Faults):
        self.scheme, self.faults = scheme, faults
        self.root = ""

    def new_bucket(self) -> None:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem(self.scheme).mkdir(name)
        self.root = f"{self.scheme}://{name}"


@pytest.fixture(scope="session", params=["gs", "s3"])
def running(request: pytest.FixtureRequest) -> Iterator[Store]:
    """The store, for all tests; its environment variables are those of this process and of the ones it starts."""
    scheme, faults = request.param, Faults()
    with _server(scheme) as address, serve(address, faults) as proxy, pytest.MonkeyPatch.context() as patch:
        if scheme == "gs":
            patch.setenv("STORAGE_EMULATOR_HOST", proxy)
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", proxy)
            # There are no credentials to look for.
            patch.setenv("FSSPEC_GS_TOKEN", "anon")
            patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anonymous")
            # Asking for the kind of a bucket needs some.
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        else:
            patch.setenv("AWS_ENDPOINT_URL", proxy)
            for name, value in (
                ("ACCESS_KEY_ID", "key"),
                ("SECRET_ACCESS_KEY", "secret"),
                ("DEFAULT_REGION", "us-east-1"),
            ):
                patch.setenv(f"AWS_{name}", value)
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        fsspec.config.set_conf_env(fsspec.config.conf)
        fsspec.filesystem(scheme).clear_instance_cache()
        artifact._store.cache_clear()
        yield Store(scheme, faults)


@pytest.fixture
def store(running: Store) -> Store:
    """A new bucket, and no faults."""
    running.faults.latency = running.faults.refused = running.faults.cut = 0.0
    running.new_bucket()
    return running
