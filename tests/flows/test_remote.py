"""DVC's remote, as the README has it: a bucket that speaks S3."""

import subprocess

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server with one bucket; its keys are in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "flywheel")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="flywheel")
    yield client, endpoint
    server.stop()


def test_rounds_are_pushed_to_a_bucket_and_pulled_from_it(made, bucket):
    client, endpoint = bucket

    def dvc(*arguments: str) -> str:
        return subprocess.run(["dvc", *arguments], cwd=made, check=True, capture_output=True, text=True).stdout

    dvc("remote", "add", "-d", "minio", "s3://flywheel")
    dvc("remote", "modify", "minio", "endpointurl", endpoint)
    dvc("push", "gate@r2")
    assert client.list_objects_v2(Bucket="flywheel")["KeyCount"] > 0
    decision = made / "data/round=r2/manifests/gate.json"
    before = decision.read_text()
    decision.unlink()
    subprocess.run(["rm", "-rf", made / ".dvc/cache"], check=True)
    dvc("pull", "gate@r2")
    assert decision.read_text() == before
