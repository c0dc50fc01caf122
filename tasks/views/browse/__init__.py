"""`flywheel browse`: the rounds in a browser, over live data, for one person on this machine.

Pages are made by the server and work without a script; a few lines of one add keys. They read the same files as `sql` and
`trace`, of whatever version is in force, and write nothing but people's labels.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path

from tasks.core.errors import FlywheelError

HOST = "127.0.0.1"


def serve(root: Path, port: int = 0, open_browser: bool = True) -> None:
    """Serves the pages on loopback until it is interrupted; 0 takes a free port. Prints the address, which has the token that
    a browser needs.

    Raises:
        ParamsError: when the folder is no project.
        FlywheelError: when the port is taken.
    """
    import uvicorn

    from tasks.views.browse._app import Browse

    with contextlib.closing(_socket(port)) as listening:
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        browse = Browse(root, token, port)
        browse.live.blocks()
        threading.Thread(target=browse.warm, daemon=True).start()
        address = f"http://{HOST}:{port}/?token={token}"
        print(f"{address}\nThe token is in the address; Ctrl-C ends it.", flush=True)
        if open_browser and _has_screen():
            webbrowser.open(address)
        config = uvicorn.Config(
            browse.guard,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except SystemExit as ended:  # of a signal, after the last answer: what still reads files need not finish
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else 1)


def _socket(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # the address is printed before the server accepts: a visitor waits, and is not turned away
    except (OSError, OverflowError) as error:
        listening.close()
        raise FlywheelError(f"--port {port}: {error}; choose another one, or 0 for one that is free") from None
    return listening


def _has_screen() -> bool:
    """Whether a browser has somewhere to open: else one of text would take the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))
