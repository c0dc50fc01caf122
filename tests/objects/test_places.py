"""Objects by name, in a folder and in a bucket: created once, whole or not at all, whatever the store answers."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from faulty_store import puts

from tasks.core import objects
from tasks.core.errors import StoreError
from tasks.core.objects import Absent, Unreachable, place


@pytest.fixture(params=["folder", "bucket"])
def where(request, tmp_path):
    return place(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def test_an_object_is_created_once(where):
    assert where.put_once("receipts/a/0", b"one")
    assert not where.put_once("receipts/a/0", b"two")
    assert where.read("receipts/a/0") == b"one"
    assert where.names("receipts/") == ["receipts/a/0"]
    assert where.names("parts/") == []
    where.delete("receipts/a/0")
    where.delete("receipts/a/0")
    assert where.entry("receipts/a/0") is None
    with pytest.raises(Absent, match="receipts/a/0"):
        where.read("receipts/a/0")


def test_of_twenty_at_once_one_wins(where):
    with ThreadPoolExecutor(20) as threads:
        won = list(threads.map(lambda n: where.put_once("commit", str(n).encode()), range(20)))
    assert won.count(True) == 1
    assert where.read("commit") == str(won.index(True)).encode()


def test_files_are_put_again_and_read_in_ranges(where, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "CHUNK", 5 * 2**20)  # the least that a piece of a large object may have
    file = tmp_path / "file"
    for content in (b"", b"short", os.urandom(11 * 2**20)):
        file.write_bytes(content)
        where.put_file("parts/x", file)
        assert where.entry("parts/x").bytes == len(content)
        assert where.read("parts/x") == content
        assert where.read("parts/x", 3, 3) == b""
        assert where.read("parts/x", 1, 4) == content[1:4]
        assert where.sha256("parts/x") == objects.hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "."])
def test_names_stay_in_their_place(where, name):
    with pytest.raises(ValueError, match="no name"):
        where.put_once(name, b"")


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/x",
        "s3://",
        "s3://me:secret@bucket/x",
        "s3://me:my/secret/key@bucket/x",
        "s3://bucket/x?versionId=1",
        "s3://[x",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(StoreError, match="s3://bucket/prefix") as error:
        place(url)
    assert "secret" not in str(error.value)


def test_listings_of_many_pages_are_whole(bucket, monkeypatch):
    names = [f"parts/{n:02}" for n in range(7)]
    for name in names:
        bucket.put_once(name, b"")
    retried = type(bucket)._retried

    def of_three(place, operation, name, **arguments):  # a page has a thousand else
        assert operation == "list_objects_v2"
        return retried(place, operation, name, MaxKeys=3, **arguments)

    monkeypatch.setattr(type(bucket), "_retried", of_three)
    assert bucket.names() == names
    assert bucket.names("parts/0") == names


# What a store may answer


@pytest.mark.parametrize("kind", ["503", "409", "500", "cut"])
def test_what_passes_is_tried_again(bucket, faults, kind):
    faults.fault = puts(kind, times=2)
    assert bucket.put_once("a", b"one")
    faults.fault = puts(kind, times=2)
    assert not bucket.put_once("a", b"two")
    assert bucket.read("a") == b"one"


def test_a_put_whose_answer_was_lost_is_ones_own(bucket, faults):
    faults.fault = puts("lost")
    assert bucket.put_once("a", b"mine")
    assert bucket.read("a") == b"mine"


def test_a_put_that_somebody_else_made_while_the_answer_was_lost_is_not(bucket, faults):
    def other_first(environ):
        faults.fault = None
        assert place(bucket.url).put_once("a", b"theirs")
        return "503"

    faults.fault = other_first
    assert not bucket.put_once("a", b"mine")
    assert bucket.read("a") == b"theirs"


@pytest.mark.parametrize("kind", ["503", "409", "cut"])
def test_what_lasts_is_said_and_leaves_nothing(bucket, faults, tmp_path, kind):
    faults.fault = puts(kind, times=1000)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    for put in (lambda: bucket.put_once("a", b"x" * 100_000), lambda: bucket.put_file("a", tmp_path / "file")):
        with pytest.raises(Unreachable, match=f"{bucket.url}/a") as error:
            put()
        assert error.value.exit_code == 75
    faults.well()
    assert bucket.names() == []


def test_a_large_object_whose_piece_cannot_be_put_is_not_there(bucket, faults, client, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "CHUNK", 5 * 2**20)
    (tmp_path / "file").write_bytes(bytes(12 * 2**20))
    faults.fault = lambda environ: "503" if "partNumber=2" in environ["QUERY_STRING"] else None
    with pytest.raises(Unreachable):
        bucket.put_file("parts/x", tmp_path / "file")
    name = bucket.url.split("/")[2]
    assert bucket.entry("parts/x") is None
    assert not client.list_multipart_uploads(Bucket=name).get("Uploads")


def test_a_large_object_whose_last_answer_was_lost_is_there(bucket, faults, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "CHUNK", 5 * 2**20)
    (tmp_path / "file").write_bytes(bytes(6 * 2**20))
    kinds = ["404", "lost"]  # it is done, and a store that forgets uploads knows none of this id then

    def fault(environ):
        completes = environ["REQUEST_METHOD"] == "POST" and "uploadId=" in environ["QUERY_STRING"]
        return kinds.pop() if completes and kinds else None

    faults.fault = fault
    bucket.put_file("parts/x", tmp_path / "file")
    assert not kinds
    assert bucket.entry("parts/x").bytes == 6 * 2**20


def test_a_store_that_does_not_know_conditions_is_named(bucket, faults):
    faults.fault = puts("501")
    with pytest.raises(StoreError, match="flywheel doctor"):
        bucket.put_once("a", b"")


def test_a_bucket_that_is_not_there(faults):
    with pytest.raises(StoreError, match="no such bucket"):
        place("s3://flywheel-nowhere/x").put_once("a", b"")


def test_a_server_that_is_not_there(keys, monkeypatch):
    monkeypatch.setattr(objects, "PAUSE", 0.001)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        objects._client.cache_clear()
        with pytest.raises(Unreachable, match="127.0.0.1:1 does not answer"):
            place("s3://bucket/x").read("a")
    objects._client.cache_clear()


def test_credentials_are_those_of_the_environment_alone(tmp_path, keys):
    """Neither a user's own file nor the machine's role is asked."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = file\naws_secret_access_key = file\n")
    script = "from tasks.core.objects import place; place('s3://bucket/x').read('a')"
    variables = {k: v for k, v in os.environ.items() if k not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    files = {"HOME": str(tmp_path), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / ".aws/credentials")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables | files, capture_output=True, text=True, check=False
    )
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr


# A folder


WRITER = """
import sys
from tasks.core.objects import place
where, me = place(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for n in range(100_000):
    where.put_once(f"receipts/{n}", me.encode() * 5_000)
"""


@pytest.mark.torture(
    "`kill -9` of one of two processes that leave receipts in a folder", "each receipt is there once, whole"
)
def test_a_killed_writer_leaves_whole_receipts(tmp_path, tries):
    for attempt in tries(40):
        folder = tmp_path / str(attempt)
        started = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(folder), me], stdout=subprocess.PIPE, text=True)
            for me in ("a", "b")
        ]
        for process in started:
            process.stdout.readline()
        try:
            started[0].wait(0.02 + attempt % 7 * 0.03)
        except subprocess.TimeoutExpired:
            for process in started:
                os.kill(process.pid, signal.SIGKILL)
        for process in started:
            process.wait()
            process.stdout.close()
        found = [place(folder).read(name) for name in place(folder).names("receipts/")]
        assert found
        assert all(content in (b"a" * 5_000, b"b" * 5_000) for content in found)
