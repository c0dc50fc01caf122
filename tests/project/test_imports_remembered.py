"""What a module imports is parsed once for each content of its file."""

import pytest

from tasks.project import closure


@pytest.fixture
def root(tmp_path):
    """A project of three modules, each of which imports the next, that was looked through before."""
    (tmp_path / "tasks").mkdir()
    for name, text in {"a": "from tasks import b\n", "b": "import tasks.c\n", "c": "X = 1\n"}.items():
        (tmp_path / f"tasks/{name}.py").write_text(text)
    modules = closure.Modules(tmp_path)
    assert modules.closure(["tasks.a"]).keys() == {"tasks/a.py", "tasks/b.py", "tasks/c.py"}
    modules.keep()
    return tmp_path


def test_a_module_that_was_not_edited_is_not_parsed_again(root, monkeypatch):
    before = closure.closure(root, ["tasks.a"])
    monkeypatch.setattr(closure, "_scan", lambda content: pytest.fail("parsed again"))
    assert closure.closure(root, ["tasks.a"]) == before


def test_an_edit_is_seen(root):
    before = closure.closure(root, ["tasks.a"])
    (root / "tasks/b.py").write_text("X = 1\n")
    after = closure.closure(root, ["tasks.a"])
    assert after.keys() == {"tasks/a.py", "tasks/b.py"} and after["tasks/b.py"] != before["tasks/b.py"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"by": 1}', b'{"by": "$own", "modules": {"$b": 5}}'])
def test_a_damaged_memory_is_none(root, content):
    before = closure.closure(root, ["tasks.a"])
    own, b = closure._own_digest().encode(), before["tasks/b.py"].encode()
    (root / closure.SCANS).write_bytes(content.replace(b"$own", own).replace(b"$b", b))
    assert closure.closure(root, ["tasks.a"]) == before
