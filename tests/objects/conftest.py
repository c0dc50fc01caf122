"""A store that speaks S3, on this machine."""

import boto3
import faulty_store
import pytest

from tasks.core import objects


@pytest.fixture(scope="session")
def server():
    """The server of all tests."""
    store = faulty_store.FaultyStore()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def keys(server):
    """Address and credentials, in the environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "flywheel")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "DATA_URL"):
            patch.delenv(variable, raising=False)
        objects._client.cache_clear()
        yield patch
    objects._client.cache_clear()


@pytest.fixture
def faults(server, keys, monkeypatch):
    """The server's faults, off before and after each test; attempts follow each other at once."""
    monkeypatch.setattr(objects, "PAUSE", 0.001)
    server.well()
    yield server
    server.well()


@pytest.fixture
def client(server, keys):
    """A client of its own, to look at what is there and to damage it."""
    return boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")


@pytest.fixture
def url(client) -> str:
    """The URL of a prefix in a bucket of this test."""
    return faulty_store.new_bucket(client)


@pytest.fixture
def bucket(url, faults):
    """The same, opened."""
    return objects.place(url)
