"""Log-probabilities of responses under a model, for the judges that compare likelihoods."""

from collections.abc import Callable, Sequence

import polars as pl

from tasks.core import frames
from tasks.core.judging import OPINION, ORPHAN, JudgeCase, Opinion
from tasks.engines import Messages, Scored


def after_prompts(case: JudgeCase, judge: Callable[[pl.DataFrame], Sequence[Opinion]]) -> pl.LazyFrame:
    """A row for each response: `judge` gives an opinion of each one that has a prompt, in their order; it is not asked
    where there is none.
    """
    rows = answered_prompts(case)
    judged = rows.drop_nulls("prompt")
    given = iter(judge(judged) if len(judged) else [])
    every = [ORPHAN if missing else next(given) for missing in rows["prompt"].is_null()]
    column = pl.Series("opinion", every, dtype=OPINION)
    return rows.select("prompt_id", column, response_id="id").lazy().unnest("opinion")


def answered_prompts(case: JudgeCase) -> pl.DataFrame:
    """The responses by id, with the chat that asked for them as `prompt`; null where it is missing."""
    prompts = case.prompts.filter(pl.col("prompt").list.len() > 0).select("prompt", prompt_id="id")
    columns = "id", "prompt_id", "prompt", "response", "finish_reason"
    return case.responses.join(prompts, on="prompt_id", how="left").select(columns).sort("id").collect()


def log_probabilities(case: JudgeCase, model: str, chats: Sequence[Messages], rows: pl.DataFrame) -> list[Scored]:
    """Of each response after its chat. The end token counts where the model ended the response itself."""
    ended, texts = (rows["finish_reason"] == "stop").fill_null(False).to_list(), rows["response"].to_list()
    scores: dict[int, Scored] = {}
    with case.open(model) as policy:
        for closed in (True, False):
            places = [n for n, end in enumerate(ended) if end is closed]
            given = [chats[n] for n in places], [texts[n] for n in places]
            scores |= {places[n]: scored for n, scored in policy.score(*given, closed)} if places else {}
    return [scores[n] for n in range(len(rows))]


def prompt_chats(rows: pl.DataFrame) -> list[Messages]:
    """The prompts as engines take them."""
    return frames.chats(rows["prompt"])
