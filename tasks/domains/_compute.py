"""The process that computes what LaTeX means. It runs as a script and imports nothing of this project, so it starts quickly."""

import logging
import resource
import signal
import sys
from multiprocessing.connection import Connection

DEADLINE = 2.0
"""Seconds of the processor that one expression may take."""
MEMORY = 1 << 30
"""Bytes of address space of the process; with math-verify loaded it takes 60 MB."""
VALUE, UNREADABLE, MEMORY_SPENT = b"=", b"?", b"!"
"""How an answer begins: with a value, with none, with too little memory."""


def serve(descriptor: int) -> None:
    """Answers one expression after the other until the other end is closed. The timer's signal ends it, also within C code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage, which then closes the pipe
    logging.disable(logging.WARNING)  # math-verify says each time that it has no time-out of its own
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ready = compute(r"\sqrt{16}")  # imports, and builds the tables of the grammar
    with Connection(descriptor) as pipe:
        pipe.send_bytes(ready)
        while True:
            try:
                latex = pipe.recv_bytes().decode()
            except (EOFError, ConnectionError):
                return
            signal.setitimer(signal.ITIMER_PROF, DEADLINE)
            answer = compute(latex)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(answer)


def compute(latex: str) -> bytes:
    """The answer to one expression: its number as sympy writes it in canonical form, `sqrt(2)/2`."""
    from math_verify import parse
    from sympy import Expr, nsimplify, simplify

    try:
        parsed = parse(f"\\boxed{{{latex}}}", parsing_timeout=None)  # type: ignore[arg-type]
        readable = parsed and isinstance(parsed[0], Expr) and parsed[0].is_number and parsed[0].is_finite
        return VALUE + str(nsimplify(simplify(parsed[0]), rational=True)).encode() if readable else UNREADABLE
    except MemoryError:
        return MEMORY_SPENT
    except Exception:  # whatever sympy raises: a recursion too deep, a number of too many digits
        return UNREADABLE


if __name__ == "__main__":
    serve(int(sys.argv[1]))
