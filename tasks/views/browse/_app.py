"""The pages and their addresses."""

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.labels import FOLDER
from tasks.core.tables import TABLES
from tasks.project import labels
from tasks.views import _page_base
from tasks.views.browse import _ids, _labels_page, _prompt, _search, _trace
from tasks.views.browse._beside import Beside
from tasks.views.browse._guard import Guard
from tasks.views.browse._live import Live

HERE = Path(__file__).parent
MAX_FORM = 100_000
"""Bytes of a form."""
WHOLE = {"Content-Security-Policy": "sandbox", "Content-Type": "text/plain; charset=utf-8"}
"""Headers of a text of a model that is shown as it is."""
ANSWERS = ("responses", "refinements")
"""Tables whose rows stand on a prompt's page."""
LABEL_KEYS = ("round", "source", "id", "prompt_id", "digest", "label", "note", "back", "form")


class Browse:
    """The application: each page is a method."""

    def __init__(self, root: Path, token: str, port: int) -> None:
        self.live = Live(root)
        self.report = Beside(root, partial(_draw, root))
        self.judges = Beside(root, partial(_labels_page.judges, self.live))
        self.writing = threading.Lock()
        self.templates = _templates()
        get = {
            "/": self.home, "/rows": self.rows, "/prompt": self.prompt, "/row": self.row, "/text": self.text,
            "/find": self.find, "/labels": self.labels, "/random": self.random, "/report": self.whole_report,
        }  # fmt: skip
        routes = [Route(path, _guarded(self, page)) for path, page in get.items()]
        routes += [Route("/label", self.label, methods=["POST"])]
        routes += [Route(f"/{name}", partial(_static, name)) for name in STATIC]
        handlers = {HTTPException: self._no_page, Exception: self._fault}
        app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
        self.guard = Guard(app, token, port)

    def warm(self) -> None:
        """Makes ready what the first trace would wait for."""
        with suppress(FlywheelError):  # the page that needs it says so
            self.live.catalog()

    # Pages

    def home(self, request: Request) -> Response:
        """The rounds, what each stage made, and why rows were dropped."""
        return self._page(
            "home.html", title="Rounds", rounds=_labels_page.rounds(self.live), nothing=not self._stored()
        )

    def rows(self, request: Request) -> Response:
        """Rows of a table of a round that a filter lets through."""
        asked = self._filter(request)
        if asked is None:
            return self._page("message.html", title="Rows", texts=[NOTHING])
        read = partial(self._found, asked, request.query_params.get("after", ""))
        page = self.live.steady([asked.round], read)
        options = _search.options(self.live, asked)
        tables = {name: stored.rows for name, stored in self.live.tables(asked.round).items()}
        tables = {name: rows for name, rows in tables.items() if name in _search.TABLES_SHOWN}
        on = page.next and _address("/rows", asked.address | {"after": str(page.next)})
        return self._page(
            "rows.html", refresh=on if page.next and not page.rows else None, title=f"{asked.table} of {asked.round}", asked=asked, page=page, options=options, tables=tables,
            texts=_search.TEXTS.get(asked.table, ()), rounds=list(self.live.blocks()),
            next=on,
            started=bool(request.query_params.get("after")), first=_address("/rows", asked.address),
        )  # fmt: skip

    def prompt(self, request: Request) -> Response:
        """A prompt with its answers beside each other."""
        round, id = _wanted(request, "round", "id")
        start = _whole_number(request.query_params.get("from", "0"))
        sheet = self.live.steady([round], lambda: _prompt.sheet(self.live, round, id, start))
        beside = {
            name: _address("/prompt", {"round": round, "id": other})
            for name, other in (("before", sheet.before), ("after", sheet.after))
            if other
        }
        more = start + len(sheet.answers)
        return self._page(
            "prompt.html", title=f"Prompt {id} of {round}", sheet=sheet, beside=beside, start=start,
            more=_address("/prompt", {"round": round, "id": id, "from": more}) if more < sheet.total else None,
            person=labels.person(self.live.root), back=_own_address(request), form=self.guard.form_token,
        )  # fmt: skip

    def row(self, request: Request) -> Response:
        """A row with all its columns and its lineage."""
        round, table, id = _wanted(request, "round", "table", "id")
        prompt, full = request.query_params.get("prompt", ""), "full" in request.query_params
        read = partial(_trace.row_page, self.live, round, table, id, prompt, full)
        page = self.live.steady([*self.live.blocks()], read)
        return self._page(
            "row.html", title=f"{table} {id} of {round}", page=page, columns=list(_trace.columns(page)), doc=TABLES[table].docs,
            full=full, whole=_address("/row", {"round": round, "table": table, "id": id, "prompt": prompt, "full": "1"}),
        )  # fmt: skip

    def text(self, request: Request) -> Response:
        """A text as it is, whole."""
        round, table, id, column = _wanted(request, "round", "table", "id", "column")
        self.live.check_round(round)
        prompt = request.query_params.get("prompt", "")
        read = partial(_prompt.whole, self.live, round, table, id, column, prompt)
        text = self.live.steady([round], read)
        return Response(text.encode("utf-8", "replace"), headers=WHOLE)

    def find(self, request: Request) -> Response:
        """A search: of an id where it looks like one, else of a text."""
        text = request.query_params.get("q", "").strip()
        if not re.fullmatch(r"[0-9a-f]{4,64}", text):
            asked = {n: request.query_params.get(n, "") for n in ("round", "table")} | {"text": text}
            return RedirectResponse(_address("/rows", asked), 303)
        after = request.query_params.get("after", "")
        found = self.live.steady(self.live.blocks(), lambda: _ids.find_ids(self.live, text, after))
        if len(found.rows) == 1 and not found.next:
            table, round, id = found.rows[0]
            return RedirectResponse(_address("/row", {"round": round, "table": table, "id": id}), 303)
        more = _address("/find", {"q": text, "after": found.next}) if found.next else None
        as_text = _address("/rows", {"text": text})
        return self._page("find.html", title=f"Rows {text}…", text=text, found=found, more=more, as_text=as_text)

    def labels(self, request: Request) -> Response:
        """People's labels, and how well each judge agrees with them."""
        start = _whole_number(request.query_params.get("from", "0"))
        said = _labels_page.labels(self.live, start)
        try:
            judges = self.judges.get() if said.total else []
        except FlywheelError as error:
            judges, said.notes[:] = [], [*said.notes, f"judges cannot be measured: {error}"]
        more = start + len(said.labels)
        return self._page(
            "labels.html", title="Labels", said=said, judges=judges, folder=FOLDER, start=start,
            more=_address("/labels", {"from": more}) if more < said.total else None,
        )  # fmt: skip

    def random(self, request: Request) -> Response:
        """Leads to an answer drawn at random among those of a round: whoever labels such ones measures a judge fairly."""
        [round] = _wanted(request, "round")
        self.live.check_round(round)
        prompt, id = self.live.steady([round], lambda: _labels_page.draw(self.live, round))
        return RedirectResponse(_address("/prompt", {"round": round, "id": prompt}) + f"#{id}", 303)

    def whole_report(self, request: Request) -> Response:
        """The page of `flywheel report --html`; it is drawn beside, for a large project takes longer than a person waits."""
        page = self.report.get()
        if page is None:
            return self._page("message.html", title="Report", texts=["The page is being drawn."], refresh="/report")
        return HTMLResponse(page, headers={"Content-Security-Policy": _page_base.POLICY})

    async def label(self, request: Request) -> Response:
        """Keeps a person's label."""
        body = await _body(request)
        values = {key: (body.get(key) or [""])[0] for key in LABEL_KEYS}
        if not self.guard.check_form(values["form"]):
            return PlainTextResponse("403: a form of another server; reload the page\n", 403)
        return await run_in_threadpool(self._safely, lambda: self._label(values))

    def _label(self, values: dict[str, str]) -> Response:
        round, source, id = values["round"], values["source"], values["id"]
        self.live.check_round(round)
        if source not in ANSWERS:
            raise UnknownName("table of answers", source, ANSWERS)
        digest = _prompt.digest_of(self.live, round, source, id, values["prompt_id"])
        if digest is None:
            raise _prompt.NoRow(f"{source} of {round} have no row with the id {id!r}; nothing was written")
        if digest != values["digest"]:
            raise FlywheelError(
                f"{source} {id} of {round} was made again with another text while you read; nothing was written. Go back and "
                "reload the page to see it"
            )
        person = labels.person(self.live.root)
        verdict = {"right": "right", "wrong": "wrong", "note": self._label_of(person, round, source, id)}
        with self.writing:
            labels.write(
                self.live.root, person, round=round, source=source, id=id, prompt_id=values["prompt_id"] or None, digest=digest,
                label=verdict.get(values["label"]), note="" if values["label"] == "remove" else values["note"].replace("\r\n", "\n"),
            )  # fmt: skip
        back = values["back"] if re.match(r"/prompt\?", values["back"]) else "/labels"
        return RedirectResponse(f"{back}#{quote(id)}", 303)

    def _label_of(self, person: str, round: str, source: str, id: str) -> str | None:
        """The label that a person gave already: a new note leaves it."""
        return next((e.label for e in self.live.labels()[0] if e.key == (round, source, id, person)), None)

    # Parts

    def _filter(self, request: Request) -> _search.Filter | None:
        """What an address asks for; by default the last round that has rows, and its responses."""
        values = {
            n: request.query_params.get(n, "").strip() for n in ("round", "table", "reason", "judge", "verdict", "text")
        }
        if not values["round"]:
            stored = self._stored(values["table"])
            if not stored:
                return None
            values["round"] = stored[-1]
        self.live.check_round(values["round"])
        tables = [t for t in self.live.tables(values["round"]) if t in _search.TABLES_SHOWN]
        default = "responses" if "responses" in tables or not tables else tables[0]
        return _search.Filter(**values | {"table": values["table"] or default})

    def _found(self, asked: _search.Filter, after: str) -> _search.Page:
        page = _search.find(self.live, asked, after)
        _search.decide(self.live, asked, page.rows)
        return page

    def _stored(self, table: str = "") -> list[str]:
        """The rounds that have rows to look at, of a table where one is named; else those with responses where there are any."""
        rounds = {n: self.live.tables(n) for n in self.live.blocks()}
        wanted = [n for n, tables in rounds.items() if (s := tables.get(table or "responses")) and s.rows]
        return (
            wanted if table or wanted else [n for n, tables in rounds.items() if any(s.rows for s in tables.values())]
        )

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self.templates.get_template(template).render(refresh=values.pop("refresh", None), **values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def _safely(self, page: Callable[[], Response]) -> Response:
        """A page, or the message of an error that is a user's to read."""
        try:
            return page()
        except (UnknownName, _prompt.NoRow) as error:
            return self._page("message.html", 404, title="Not there", texts=[str(error)])
        except FlywheelError as error:
            return self._page("message.html", 422, title="That did not work", texts=[str(error)])

    def _no_page(self, request: Request, error: HTTPException) -> Response:
        texts = [f"There is no page {request.url.path}." if error.status_code == 404 else error.detail]
        return self._page("message.html", error.status_code, title="Not there", texts=texts)

    def _fault(self, request: Request, error: Exception) -> Response:
        texts = [f"An error of this program, which its terminal shows in full: {type(error).__name__}: {error}"]
        return self._page("message.html", 500, title="That did not work", texts=texts)


def _draw(root: Path) -> str:
    from tasks.views import page

    return page.html(root)


NOTHING = "No round has rows to look at yet; `flywheel run r1` makes the round r1, and `flywheel campaign` all of them."


def _guarded(browse: Browse, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        return browse._safely(lambda: page(request))

    return answer


def _templates() -> Environment:
    """The templates of these pages, and those of the report."""
    made = _page_base.environment().overlay(
        loader=ChoiceLoader([FileSystemLoader(HERE / "templates"), FileSystemLoader(_page_base.TEMPLATES)])
    )
    made.globals |= {"address": _address, "interval": _interval}
    return made


def _interval(measure: Any) -> str:
    """A measure's 95 % interval, in percent."""
    return "" if measure is None or measure.low is None else f"{100 * measure.low:.1f}–{100 * measure.high:.1f}"


def _address(path: str, values: dict[str, Any]) -> str:
    """An address with those parameters that are not empty."""
    given = {name: value for name, value in values.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def _own_address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _wanted(request: Request, *names: str) -> list[str]:
    """Parameters of an address that it must have.

    Raises:
        FlywheelError: naming the one that is missing.
    """
    for name in names:
        if not request.query_params.get(name):
            raise FlywheelError(f"the address lacks {name}=…; it was cut, or typed by hand")
    return [request.query_params[name] for name in names]


def _whole_number(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0


async def _body(request: Request) -> dict[str, list[str]]:
    """A form's values.

    Raises:
        HTTPException: when it is longer than a label may be.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM:
            raise HTTPException(413, f"a form of more than {MAX_FORM:,} bytes")
    return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)


STATIC: dict[str, tuple[str, Iterable[Path]]] = {
    "style.css": ("text/css", (_page_base.TEMPLATES / "page.css", HERE / "templates/browse.css")),
    "keys.js": ("text/javascript", (HERE / "templates/keys.js",)),
}
"""Files beside the pages: kind, and what they are made of."""


def _static(name: str, request: Request) -> Response:
    kind, files = STATIC[name]
    return Response("\n".join(f.read_text(encoding="utf-8") for f in files), media_type=kind)
