"""`flywheel browse` over HTTP: who may ask, what a page shows, and what it says when something is not there."""

import re
import shutil
import signal
import threading
import time
from html import unescape

import browsing
import pytest
from browsing import HOSTILE, LONG, PROMPTS, prompt_id, response_id, rows
from starlette.testclient import TestClient

from tasks.core import _parts, labels, store
from tasks.core.errors import FlywheelError, ParamsError
from tasks.project import champion
from tasks.views.browse import _search, serve
from tasks.views.browse._app import Browse

PORT = 4321
HERE = f"http://127.0.0.1:{PORT}"


def client(root, visited=True):
    browse = Browse(root, "secret", PORT)
    made = TestClient(browse.guard, base_url=HERE, follow_redirects=True, raise_server_exceptions=False)
    if visited:
        assert made.get("/?token=secret").status_code == 200
    return made


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Not to be changed."""
    return browsing.make(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def root(stored, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(stored, root)
    return root


@pytest.fixture
def page(root):
    visitor = client(root)
    return lambda address: visitor.get(address)


def text_of(answer):
    return re.sub(
        r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", answer.text.partition("<main")[2].partition("<footer")[0]))
    )


def ids_of(answer):
    return re.findall(r'<a class="open mono"[^>]*>([^<]+)<', answer.text)


def links(answer, rel):
    return [unescape(link) for link in re.findall(rf'<a rel="{rel}"[^>]* href="([^"]+)"', answer.text)]


def every_page(page, address):
    """The ids of all pages, following the link to the next one."""
    ids, pages = [], 0
    while address:
        answer = page(address)
        assert answer.status_code == 200
        ids += ids_of(answer)
        address = next(iter(links(answer, "next")), None)
        pages += 1
        assert pages < 200
    return ids


# Who may ask


def test_without_the_token_nothing_is_shown(root):
    visitor = client(root, visited=False)
    for address in ("/", "/rows", "/style.css", "/?token=wrong", "/nope"):
        assert visitor.get(address).status_code == 403
        assert "r1" not in visitor.get(address).text


def test_the_token_becomes_a_cookie_that_other_sites_cannot_send_and_leaves_the_address(root):
    visitor = client(root, visited=False)
    answer = visitor.get("/rows?token=secret&round=r1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/rows?round=r1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and str(PORT) in cookie
    assert visitor.get("/rows?round=r1").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "127.0.0.1", ""])
def test_another_host_name_is_refused_even_with_the_cookie(root, host):
    assert client(root).get("/", headers={"host": host}).status_code == 403


def test_pages_run_and_load_nothing_of_others(page):
    answer = page("/prompt?round=r1&id=" + prompt_id(0))
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"<script>|<[^>]*\s(?:on\w+|style)=|href=\"(?!/|data:,|#main)", answer.text)


def settled(page, address):
    """A page once what is made beside it is there."""
    for _ in range(600):
        answer = page(address)
        if "being" not in text_of(answer):
            return answer
        time.sleep(0.1)
    raise AssertionError(text_of(answer))


def form(page, n=1, sample=0):
    """The values of an answer's form."""
    answer = page("/prompt?round=r1&id=" + prompt_id(n)).text
    part = answer.partition(f'id="{response_id(n, sample)}"')[2]
    return {k: unescape(v) for k, v in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', part)[:7]}


def said(root):
    return [(e.id, e.label, e.note, e.person) for e in labels.read(root / labels.FOLDER)]


@pytest.mark.parametrize(
    "wrong",
    [{"form": "guess"}, {"headers": {"origin": "http://evil.example"}}, {"headers": {"sec-fetch-site": "cross-site"}},
     {"headers": {"sec-fetch-site": "same-site"}}, {"headers": {"origin": "null"}}],
)  # fmt: skip
def test_a_form_of_another_site_labels_nothing(root, page, wrong):
    values = form(page) | {"label": "right", "note": ""}
    headers = wrong.get("headers", {})
    answer = client(root).post("/label", data=values | {k: v for k, v in wrong.items() if k == "form"}, headers=headers)
    assert answer.status_code == 403
    assert said(root) == []


# Labels


def test_a_label_is_kept_shown_and_taken_back(root):
    visitor = client(root)
    values = form(visitor.get)
    ada, id = "Ada L <Ada@Example.org>", response_id(1, 0)
    answer = visitor.post("/label", data=values | {"label": "wrong", "note": "  off by <one> "})
    assert answer.url.path == "/prompt" and answer.status_code == 200
    assert "You: wrong “ off by <one> ”" in text_of(answer)
    assert said(root) == [(id, "wrong", "off by <one>", ada)]
    visitor.post("/label", data=values | {"label": "note", "note": "sure"})
    assert said(root) == [(id, "wrong", "sure", ada)]
    visitor.post("/label", data=values | {"label": "right", "note": "sure"})
    assert said(root) == [(id, "right", "sure", ada)]
    assert "Ada L" in text_of(visitor.get("/labels"))
    visitor.post("/label", data=values | {"label": "remove", "note": "sure"})
    assert said(root) == []


def test_a_note_and_a_search_come_back_as_they_were_written(root):
    """A mark that cannot be seen is shown by its number, but a form has the text itself, for it is sent again."""
    visitor, text = client(root), 'a\u200bb \u202e <i> "q" & c\nand more'
    visitor.post("/label", data=form(visitor.get) | {"label": "wrong", "note": text})
    page = visitor.get(f"/prompt?round=r1&id={prompt_id(1)}").text
    written = re.findall(r'<textarea name="note"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert text in map(unescape, written)
    assert said(root)[0][2] == text
    rows = visitor.get("/rows", params={"text": text}).text
    assert unescape(re.search(r'name="text" value="([^"]*)"', rows)[1]) == text


def test_a_label_is_shown_at_the_same_text_elsewhere_which_cannot_take_it_back(tmp_path):
    tables = rows()
    for row in tables["responses"][4:8]:
        row["response"] = "the same"
    browsing.make(tmp_path, tables)
    visitor = client(tmp_path)
    answer = visitor.post("/label", data=form(visitor.get) | {"label": "right", "note": ""})
    assert answer.text.count('class="right" aria-pressed="true"') == 4
    assert answer.text.count('value="remove"') == 1
    assert text_of(answer).count("of the same text in another answer") == 3


def test_labels_measure_judges(root):
    visitor = client(root)
    for n in range(1, 4):
        for sample, label in ((0, "right"), (1, "wrong")):
            visitor.post("/label", data=form(visitor.get, n, sample) | {"label": label, "note": ""})
    shown = text_of(settled(visitor.get, "/labels"))
    assert "r1 votes reward 3 3 100.0 %" in shown
    assert "6 labels" in shown


def test_a_row_that_was_made_again_meanwhile_keeps_no_label_of_the_old_text(root):
    visitor = client(root)
    values = form(visitor.get)
    visitor.post("/label", data=values | {"label": "right", "note": ""})
    tables = rows()
    for row in tables["responses"]:
        row["response"] += " again"
    browsing.write(root, "generate", tables)
    answer = visitor.post("/label", data=values | {"label": "wrong", "note": ""})
    assert answer.status_code == 422 and "another text" in text_of(answer)
    assert [e[1] for e in said(root)] == ["right"]
    shown = visitor.get("/prompt?round=r1&id=" + prompt_id(1)).text
    assert "does not count" in shown and 'aria-pressed="true"' not in shown


@pytest.mark.parametrize(
    ("change", "status"),
    [({"round": "r9"}, 404), ({"source": "pairs"}, 404), ({"id": "nope"}, 404), ({"label": "", "note": "x" * 20_000}, 422)],
)  # fmt: skip
def test_a_label_of_what_is_not_there_says_so(root, change, status):
    visitor = client(root)
    answer = visitor.post("/label", data=form(visitor.get) | {"label": "right", "note": ""} | change)
    assert answer.status_code == status
    assert said(root) == []


def test_a_huge_form_is_refused(root):
    assert client(root).post("/label", data={"note": "x" * 200_000}).status_code == 413


def test_a_broken_file_of_labels_is_named_and_the_rest_is_shown(root, page):
    (root / labels.FOLDER).mkdir(parents=True)
    (root / labels.FOLDER / "ada.jsonl").write_text("{\n")
    for address in ("/", "/labels", "/prompt?round=r1&id=" + prompt_id(1)):
        assert page(address).status_code == 200
    assert "ada.jsonl:1" in text_of(page("/labels"))
    assert "4 answers" in text_of(page("/prompt?round=r1&id=" + prompt_id(1)))


# Rows


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of seven rows, parts of sixteen."""
    monkeypatch.setattr(_search, "ROWS", 7)
    monkeypatch.setattr(_parts, "ROWS_PER_GROUP", 8)
    monkeypatch.setattr(_parts, "GROUPS_PER_PART", 2)


def in_order(table, keep):
    return [row["id"] for row in rows()[table] if keep(row)]


VOTES = {row["response_id"] for row in rows()["judgments"] if row["member"] == "votes" and row["verdict"] == "fail"}
GRADED = {row["response_id"] for row in rows()["judgments"] if row["member"] == "grader" and row["verdict"] == "pass"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("table=responses", in_order("responses", lambda r: True)),
        ("table=prompts", in_order("prompts", lambda r: True)),
        ("table=judgments&judge=votes", in_order("judgments", lambda r: r["member"] == "votes")),
        ("table=judgments&verdict=fail", in_order("judgments", lambda r: r["verdict"] == "fail")),
        ("table=filtered&reason=score", in_order("filtered", lambda r: r["reason"] == "score")),
        ("reason=kept", in_order("responses", lambda r: r["sample"] == 0)),
        ("reason=dropped", in_order("responses", lambda r: r["sample"] > 0)),
        ("reason=duplicate", in_order("responses", lambda r: r["sample"] > 1)),
        ("judge=votes", in_order("responses", lambda r: True)),
        ("judge=votes&verdict=fail", in_order("responses", lambda r: r["id"] in VOTES)),
        ("judge=grader&verdict=pass&reason=kept", in_order("responses", lambda r: r["id"] in GRADED and r["sample"] == 0)),
        ("judge=grader&verdict=error", []),
        ("text=sum 1", in_order("responses", lambda r: r["response"].startswith("Sum 1"))),
        ("text=Sum 1", in_order("responses", lambda r: r["response"].startswith("Sum 1"))),
        ("text=SUM 1", []),
        ("text=answer: 2&reason=score", in_order("responses", lambda r: r["sample"] == 1 and "Answer: 2" in r["response"])),
        ("text=[2j", [response_id(0, 0)]),
        ("table=training&text=sum 2", in_order("training", lambda r: r["prompt_id"][:2] in {f"{n:02x}" for n in (2, *range(20, 30))})),
    ],
)  # fmt: skip
def test_pages_together_hold_each_row_that_fits_once(tmp_path, small_pages, asked, expected):
    browsing.make(tmp_path)
    assert len(store.manifests(tmp_path, "r1")["generate"].outputs["responses"].parts) > 5
    visitor = client(tmp_path)
    assert every_page(visitor.get, f"/rows?round=r1&{asked}") == expected


def test_a_page_whose_time_is_over_goes_on_from_where_it_was(tmp_path, small_pages, monkeypatch):
    monkeypatch.setattr(_search, "SECONDS", 0.0)
    browsing.make(tmp_path)
    visitor = client(tmp_path)
    first = visitor.get("/rows?round=r1&text=Sum 29/3")
    assert ids_of(first) == [] and "of 120 responses were looked at" in text_of(first)
    assert re.search(r'http-equiv="refresh" content="0; url=/rows\?[^"]+after=', first.text)
    assert every_page(visitor.get, "/rows?round=r1&text=Sum 29/3") == [response_id(29, 3)]


def test_a_table_that_was_made_again_starts_from_its_first_page(tmp_path, small_pages):
    browsing.make(tmp_path)
    visitor = client(tmp_path)
    [following] = links(visitor.get("/rows?round=r1"), "next")
    tables = rows()
    tables["responses"] = tables["responses"][4:]
    browsing.write(tmp_path, "generate", tables)
    answer = visitor.get(following)
    assert "made again" in text_of(answer)
    assert ids_of(answer)[0] == response_id(1, 0)


def test_a_list_shows_what_became_of_an_answer(page):
    shown = text_of(page("/rows?round=r1&judge=grader"))
    assert "dropped: duplicate" in shown and "grader 0.9 pass" in shown


@pytest.mark.parametrize("table", _search.TABLES_SHOWN)
def test_every_table_can_be_listed_and_every_row_traced(page, table):
    answer = page(f"/rows?round=r1&table={table}")
    assert answer.status_code == 200
    for link in re.findall(r'href="(/(?:row|prompt)\?[^"]+)"', answer.text)[:3]:
        assert page(unescape(link)).status_code == 200


# A prompt and a row


def test_a_prompt_stands_with_its_answers_verdicts_critique_and_refinement(page):
    shown = text_of(page("/prompt?round=r1&id=" + prompt_id(3)))
    for part in ("What is 3 + 3?", "4 answers", "kept, rank 1", "dropped: score", "votes reward", "0.25 fail", "0.9 pass",
                 "The sum of 3 is off", "1 of 1 refinements", "Better 3", "reaches the target", "training"):  # fmt: skip
        assert part in shown


def test_a_trace_leads_both_ways(page):
    shown = text_of(page(f"/row?round=r1&table=responses&id={response_id(3, 1)}"))
    for part in ("Made from", f"prompts r1 {prompt_id(3)}", "votes", "Went into", "critiques r1", "refinements r1"):
        assert part in shown


def test_texts_of_models_are_shown_and_do_nothing(page):
    answer = page("/prompt?round=r1&id=" + prompt_id(0))
    assert "<img src=x" not in answer.text and "<script>document" not in answer.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2066]", answer.text)
    assert "U+202E" in answer.text and "U+001B" in answer.text


def test_a_long_text_is_cut_and_whole_on_a_page_of_its_own(page):
    answer = page("/prompt?round=r1&id=" + prompt_id(0))
    assert len(answer.text) < 100_000 and "1,000,000 characters" in answer.text
    [link] = [unescape(k) for k in re.findall(r'href="(/text\?[^"]+)"', answer.text)]
    whole = page(link)
    assert whole.text == LONG
    assert whole.headers["content-type"].startswith("text/plain")
    hostile = page(f"/text?round=r1&table=responses&id={response_id(0, 0)}&column=response")
    assert hostile.text == HOSTILE and hostile.headers["content-security-policy"] == "sandbox"


def test_many_answers_come_on_several_pages(tmp_path):
    tables = rows()
    one = tables["responses"][4]
    tables["responses"] = [one | {"id": f"{n:016x}", "sample": n} for n in range(60)]
    browsing.make(tmp_path, tables)
    visitor = client(tmp_path)
    first = visitor.get(f"/prompt?round=r1&id={one['prompt_id']}")
    assert "60 answers" in text_of(first) and first.text.count("<article") == 24
    rest = [visitor.get(f"/prompt?round=r1&id={one['prompt_id']}&from={n}").text for n in (24, 48)]
    assert [text.count("<article") for text in rest] == [24, 12]


# Search


def test_a_search_finds_an_id_by_its_first_digits_and_else_a_text(page):
    assert page(f"/find?q={prompt_id(3)}").url.params["table"] == "prompts"
    assert "responses of r1: 031a" in text_of(page("/find?q=031a"))
    assert "near it" in text_of(page("/find?q=031affff")).lower()
    assert ids_of(page("/find?q=Sum 7/2&round=r1")) == [response_id(7, 2)]
    assert "4 of" not in text_of(page("/find?q=zzz%25_&round=r1"))


def test_an_id_is_looked_for_further_when_time_is_over(tmp_path, monkeypatch):
    from tasks.views.browse import _ids

    browsing.make(tmp_path)
    visitor = client(tmp_path)
    monkeypatch.setattr(_ids, "SECONDS", -1.0)
    first = visitor.get(f"/find?q={response_id(3, 1)}")
    assert "No row has such an id in the tables that were looked through" in text_of(first)
    monkeypatch.setattr(_ids, "SECONDS", 60.0)
    assert visitor.get(links(first, "next")[0]).url.params["id"] == response_id(3, 1)


def test_an_answer_at_random_is_one_of_the_rounds(page):
    drawn = {page("/random?round=r1").url.params["id"] for _ in range(12)}
    assert len(drawn) > 1 and drawn <= {prompt_id(n) for n in range(PROMPTS)}


# What is not there


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/rows?round=r11", 404, "did you mean 'r1'"),
        ("/rows?round=r1&table=response", 404, "did you mean 'responses'"),
        ("/rows?round=r1&judge=vote&verdict=pass", 404, "did you mean 'votes'"),
        ("/rows?round=r1&verdict=passed", 404, "did you mean 'pass'"),
        ("/rows?round=r1&reason=scor", 404, "did you mean 'score'"),
        ("/rows?round=r1&table=critiques&verdict=pass", 422, "no verdict"),
        ("/rows?round=r1&table=audits&text=x", 200, "no audits yet"),
        ("/rows?round=r2", 200, "flywheel run r2"),
        ("/rows?round=r1&text=nowhere", 200, "No row fits: 120 responses were looked at"),
        ("/rows?round=r1&after=nonsense", 200, "of 120"),
        ("/rows?round=r1&after=99-1-abc", 200, "made again"),
        ("/prompt?round=r1&id=0a", 404, "near it: "),
        ("/prompt?round=r2&id=0a", 404, "flywheel run r2"),
        ("/prompt?round=r1", 422, "lacks id"),
        ("/row?round=r1&table=responses&id=0a", 404, "no row with the id '0a'"),
        ("/row?round=r1&table=nope&id=0a", 404, "no table 'nope'"),
        ("/text?round=r1&table=responses&id=0a&column=tokens", 404, "no text 'tokens'"),
        ("/text?round=r1&table=nope&id=0a&column=response", 404, "no text"),
        ("/random?round=r2", 422, "no responses yet"),
        ("/nope", 404, "no page /nope"),
        ("/label", 405, "Method"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(page, address, status, words):
    answer = page(address)
    assert answer.status_code == status
    assert words in text_of(answer)


def test_nothing_at_all(tmp_path):
    visitor = client(browsing.empty(tmp_path))
    for address in ("/", "/rows", "/labels"):
        assert visitor.get(address).status_code == 200
    assert "flywheel run r1" in text_of(visitor.get("/"))
    assert "flywheel run r1" in text_of(visitor.get("/rows"))
    assert "Nobody has labelled" in text_of(visitor.get("/labels"))


def test_params_that_cannot_be_read_are_a_message(root, page):
    (root / "params.yaml").write_text("rounds: [")
    answer = page("/")
    assert answer.status_code == 422 and "params.yaml" in text_of(answer)


# Live data


@pytest.mark.parametrize("fault", ["missing", "cut", "scribbled"])
def test_a_damaged_part_is_named_and_the_other_tables_are_shown(root, page, fault):
    [part] = (store.round_folder(root, "r1") / "responses").glob("*.parquet")
    content = part.read_bytes()
    {"missing": part.unlink, "cut": lambda: part.write_bytes(content[:-9]),
     "scribbled": lambda: part.write_bytes(b"x" * len(content))}[fault]()  # fmt: skip
    for address in (
        "/rows?round=r1",
        f"/prompt?round=r1&id={prompt_id(1)}",
        f"/row?round=r1&table=prompts&id={prompt_id(1)}",
    ):
        answer = page(address)
        assert answer.status_code < 500
        assert part.name in text_of(answer)
    assert "What is 1 + 1?" in text_of(page("/rows?round=r1&table=prompts"))
    assert page("/").status_code == page("/labels").status_code == 200


def test_a_new_version_is_shown_at_once(root, page):
    page("/rows?round=r1")
    tables = rows()
    tables["responses"] = [r | {"response": f"fresh {r['id']}"} for r in tables["responses"]]
    browsing.write(root, "generate", tables)
    assert f"fresh {response_id(0, 0)}" in text_of(page("/rows?round=r1"))
    assert f"fresh {response_id(1, 0)}" in text_of(page(f"/row?round=r1&table=responses&id={response_id(1, 0)}"))


def test_while_a_stage_writes_every_page_is_of_one_version(root, page):
    versions = [rows(), rows()]
    versions[1]["responses"] = [r | {"response": "fresh " + "y" * 30} for r in versions[1]["responses"]]
    end = threading.Event()

    def write():
        turn = 0
        while not end.is_set():
            turn += 1
            browsing.write(root, "generate", versions[turn % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            for address in ("/rows?round=r1", f"/prompt?round=r1&id={prompt_id(5)}"):
                answer = page(address)
                shown = text_of(answer)
                assert answer.status_code == 200 and "is missing" not in shown and "cannot be read" not in shown
                assert ("fresh" in shown) != ("Sum 5/" in shown)
    finally:
        end.set()
        writer.join()


# The command


def test_the_command_prints_an_address_and_ends_at_once(root):
    import httpx

    with browsing.server(root) as (address, process):
        with httpx.Client(follow_redirects=True) as visitor:
            assert "responses" in visitor.get(address).text
            assert visitor.get(address.partition("?")[0]).status_code == 200  # the cookie is enough
        assert httpx.get(address.partition("?")[0]).status_code == 403
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert process.returncode == 130
        assert "leaked" not in (process.stderr.read() if process.stderr else "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_a_port_that_is_taken_and_a_folder_that_is_no_project(root, tmp_path, monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FlywheelError, match="--port"):
            serve(root, taken.getsockname()[1], open_browser=False)
    with pytest.raises(ParamsError):
        serve(tmp_path, 0, open_browser=False)


def test_the_report_is_the_page_of_the_report(page):
    answer = settled(page, "/report")
    assert answer.status_code == 200
    assert "<h2" in answer.text and "unsafe-inline" in answer.headers["content-security-policy"]


def test_a_page_that_cannot_be_drawn_says_why(root, page, monkeypatch):
    monkeypatch.setattr("tasks.views.page.html", lambda root: 1 / 0)
    assert "ZeroDivisionError" in text_of(settled(page, "/report"))
    monkeypatch.undo()
    (root / "params.yaml").touch()
    assert settled(page, "/report").status_code == 200


def test_a_persons_decision_is_seen_in_the_report(root, page, monkeypatch):
    monkeypatch.setattr("tasks.views.page.html", lambda root: str((root / champion.DECISION).is_file()))
    assert settled(page, "/report").text == "False"
    (root / champion.DECISION).parent.mkdir(parents=True)
    (root / champion.DECISION).write_text("round: r1\n")
    assert settled(page, "/report").text == "True"
