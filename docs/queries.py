"""The ten questions of queries.md as a notebook: `marimo edit docs/queries.py`, or `marimo run docs/queries.py` to read only.

It asks the project in whose folder it was started, else the one that it lies in. The queries are those of queries.md; what is
edited in the notebook stays there. `python docs/queries.py` prints all answers.
"""

# ruff: noqa: ANN001, ANN202  (marimo writes the cells' signatures)
import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Questions to generated data")

with app.setup:
    import re
    from pathlib import Path

    import marimo as mo

    from tasks.core.errors import FlywheelError
    from tasks.views import catalog

    PAGE = Path(__file__).with_name("queries.md")
    ROOT = Path() if Path("params.yaml").is_file() else PAGE.parents[1]
    BLOCKS = re.findall(
        r"^## ([^\n]+)\n\n((?:(?!^## ).)*?)^```sql\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )


@app.function
def answer(sql: str) -> mo.Html:
    """The rows of a query as a table; of one that cannot run, why."""
    try:
        return mo.ui.table(catalog.query(ROOT, sql), selection=None, page_size=25)
    except FlywheelError as error:
        return mo.callout(mo.md(f"```text\n{error}\n```"), kind="danger")


@app.cell
def _():
    queries = mo.ui.array([mo.ui.code_editor(sql.strip(), language="sql", min_height=60) for _, _, sql in BLOCKS])
    return (queries,)


@app.cell
def _(queries):
    mo.vstack(
        [mo.md(f"# {PAGE.read_text().splitlines()[0].removeprefix('# ')}")]
        + [
            mo.vstack([mo.md(f"## {question}\n\n{text}"), answer(sql), mo.accordion({"Query": editor})])
            for (question, text, _), editor, sql in zip(BLOCKS, queries, queries.value, strict=True)
        ],
        gap=2,
    )
    return


@app.cell
def _():
    if mo.app_meta().mode == "script":
        for question, _, sql in BLOCKS:
            print(f"\n{question}")
            catalog.show(ROOT, sql)
    return


if __name__ == "__main__":
    app.run()
