"""What is remembered of a file that changes while it is read, a moment after the change before: nothing."""

from types import SimpleNamespace

import projects
import pytest

from tasks.core import manifest, remembered, store

GRAIN = 1_000_000
"""Nanoseconds after a change in which another one has the same time."""


@pytest.fixture
def clock(monkeypatch):
    """The time as `is_settled` sees it, to be set."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(manifest, "time", SimpleNamespace(time_ns=lambda: clock.now))
    return clock


def changed(path):
    return max(manifest.stamp(path)[1:3])


def test_a_digest_that_took_long_is_not_remembered_of_a_file_that_had_just_changed(tmp_path, clock, monkeypatch):
    file = tmp_path / "part.parquet"
    file.write_bytes(b"old")
    part = manifest.Part(file=file.name, bytes=3, sha256=store.sha256(file))
    output = manifest.Output(kind="table", digest="", parts=[part])

    def slow(path):
        clock.now += 10**10
        return part.sha256

    monkeypatch.setattr(store, "sha256", slow)
    clock.now = changed(file) + GRAIN
    assert list(remembered.damages(tmp_path, [(tmp_path, output)])) == []
    assert not (tmp_path / remembered.FILE).exists()
    assert list(remembered.damages(tmp_path, [(tmp_path, output)])) == []  # ten seconds later
    assert (tmp_path / remembered.FILE).exists()


def test_a_manifest_that_took_long_is_not_kept_if_it_had_just_changed(made_manifest, clock, monkeypatch):
    parse, reads = manifest._parse, []

    def slow(path):
        clock.now += 10**10
        reads.append(path)
        return parse(path)

    monkeypatch.setattr(manifest, "_parse", slow)
    clock.now = changed(made_manifest) + GRAIN
    for _ in range(3):
        manifest.read_manifest(made_manifest)
    assert len(reads) == 2


@pytest.fixture
def made_manifest(tmp_path, monkeypatch):
    """That of a base."""
    from tasks.project import plan
    from tasks.project.execute import run_stage

    (tmp_path / "project").mkdir()
    root = projects.make(tmp_path / "project", git=False)
    monkeypatch.chdir(root)
    plan.write(root)
    run_stage(root, "r0", "base")
    monkeypatch.setattr(manifest, "_kept", {})
    return root / "data/round=r0/manifests/base.json"
