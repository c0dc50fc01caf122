"""All pieces in the stage's own process, one after the other: the default."""

from collections.abc import Iterator, Sequence

from tasks.where import Job, Placement


class Here(Placement):
    """Runs pieces in the stage's own process, one after the other."""

    def run(self, job: Job, pieces: Sequence[int]) -> Iterator[int]:
        """In the order of their numbers."""
        with job.open() as work:
            for piece in pieces:
                work(piece)
                yield piece
