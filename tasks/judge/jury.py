"""Other models as judges, one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from tasks import models
from tasks.engines import Completion, Engine
from tasks.errors import EngineError, ModelRefused, UnknownName, suggest
from tasks.judge import Case
from tasks.judge.self_judge import Judged, SelfJudge
from tasks.stage import Params, load, names
from tasks.store import round_folder


def _engine(told: Any) -> Engine:
    if isinstance(told, Engine):
        return told
    if not isinstance(told, dict) or "strategy" not in told:
        raise ValueError(f"must name its strategy, as in {{strategy: {names('engines')[0]}}}")
    try:
        kind = load("engines", str(told["strategy"]))
    except UnknownName as error:
        raise ValueError(str(error)) from error
    try:
        return kind.model_validate({k: v for k, v in told.items() if k != "strategy"})  # type: ignore[no-any-return]
    except ValidationError as error:
        raise ValueError("; ".join(_wrong(e["loc"], e["type"], e["msg"], kind) for e in error.errors())) from error


def _wrong(place: tuple[int | str, ...], kind: str, said: str, engine: type[Engine]) -> str:
    what = f"unknown key; {suggest(str(place[-1]), engine.model_fields)}" if kind == "extra_forbidden" else said
    return f"{'.'.join(map(str, place))}: {what}"


SCHEMA = {
    "type": "object",
    "properties": {"strategy": {"enum": names("engines")}},
    "required": ["strategy"],
    "description": "An engine with its parameters, as a block's `engine`.",
}


class Juror(Params):
    """A model that judges."""

    engine: Annotated[Any, PlainValidator(_engine), WithJsonSchema(SCHEMA)]
    """Who runs it."""
    model: str | None = None
    """Its folder, such as `data/round=teacher/model` of a base; null where the engine asks a server that has it. That of
    a base or round of the project may be named before it was made: `flywheel run` brings it up to date first. `dvc repro`
    does not, for DVC knows the same dependencies of every round; the stage then says what to run."""
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The digest of that model, by which its judgments become stale with it. Of a model of the project's own it may be left
    out until it has been made: the stage then says which one to write."""

    @model_validator(mode="after")
    def _is_pinned(self) -> "Juror":
        if self.model is None and self.engine.loads:
            raise ValueError(f"engine {self.engine.strategy_name()} loads a model: write its folder under `model`")
        if self.model is not None and self.digest is None and self.maker() is None:
            try:
                models.check(Path(self.model))
                raise ValueError(f"pin the model: write digest: {models.digest(Path(self.model))}")
            except ModelRefused as refused:
                raise ValueError(f"pin the model by its digest, once it is there: {refused}") from refused
        return self

    def maker(self) -> str | None:
        """The base or round of this project whose model it is."""
        name = models.made_by(Path(self.model or ""))
        return name if name and Path(str(self.model)) == round_folder(Path(), name) / "model" else None

    def folder(self) -> Path:
        """Where its model lies; nowhere when a server has it. Raises ModelRefused when it is not there, or not the one that is pinned."""
        if self.model is None:
            return Path("served")
        if (maker := self.maker()) and not Path(self.model).exists():
            raise ModelRefused(
                f"{self.model}: this model of a juror is not there; `flywheel run {maker}` makes it, or `dvc checkout "
                f"{self.model}` brings it back"
            )
        models.check(Path(self.model))
        found = models.digest(Path(self.model))
        if self.digest is None:
            raise ModelRefused(f"{self.model}: pin this model of a juror in params.yaml: write digest: {found}")
        if found != self.digest:
            raise ModelRefused(
                f"{self.model}: the model's digest is {found}, but params.yaml pins {self.digest}: restore the folder, or "
                "write the new digest if it is wanted"
            )
        return Path(self.model)


class Jury(SelfJudge):
    """A panel of other models judges (PoLL, Verga et al. 2024, arXiv:2404.18796; with one juror, LLM-as-a-judge, Zheng et
    al. 2023, arXiv:2306.05685), asked and read as `self_judge` is. Scores are averaged and verdicts voted on over all
    jurors' judgments: average pooling, and majority voting without their tie-break.

    Jurors are opened one after the other, when the round's own model is closed: no two models are in memory together.
    """

    needs: ClassVar[frozenset[Literal["samples", "scores"]]] = frozenset()
    opens: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "jury": {"one": {"engine": {"strategy": "fake"}}, "two": {"engine": {"strategy": "fake", "garbage_rate": 0.5}}}
    }

    jury: dict[str, Juror] = Field(min_length=1)
    """Jurors by name."""

    def completions(self, judged: Sequence[Judged], case: Case) -> list[list[Completion]]:
        """What each juror said of each, the jurors in alphabetical order. Raises EngineError or ModelRefused with the juror's
        name; models are looked at before the first juror is asked.
        """
        said: list[list[Completion]] = [[] for _ in judged]
        with_models = []
        for name, juror in sorted(self.jury.items()):
            with _named(name):
                with_models.append((name, juror, juror.folder()))
        for name, juror, model in with_models:
            with _named(name), case.open(juror.engine, model) as policy:
                for heard, more in zip(said, self.asked(judged, policy, case), strict=True):
                    heard += more
        return said


@contextmanager
def _named(juror: str) -> Iterator[None]:
    """Errors say whose they are, and where its engine and model stand."""
    try:
        yield
    except (EngineError, ModelRefused) as error:
        raise type(error)(f"juror {juror} (judge.panel.jury.jury.{juror}): {error}") from error
