"""MLflow's tracking server behind HTTP basic authentication, in this process: `python server.py FOLDER`.

The application is MLflow's own, with its database and artifacts in FOLDER. Its plugin for passwords needs a package
that raytrain does not install, so the check, which is that of any proxy before such a server, is here. The first line
of the output is the port; connections are accepted from then on.
"""

import base64
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

USER, PASSWORD = "ada", "correct horse"


def guarded(app: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`app`, for those who know the password; others get status 401. Anybody may ask for its health."""
    wanted = b"Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode())

    async def check(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if (
            scope["type"] != "http"
            or scope["path"] == "/health"
            or dict(scope["headers"]).get(b"authorization") == wanted
        ):
            await app(scope, receive, send)
            return
        headers = [(b"www-authenticate", b'Basic realm="mlflow"'), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"You are not authenticated."})

    return check


def main(folder: str) -> None:
    from mlflow.server import (
        ARTIFACT_ROOT_ENV_VAR,
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
    )

    os.environ |= {
        BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{folder}/server.db",
        ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
    }
    os.environ |= {ARTIFACTS_DESTINATION_ENV_VAR: f"{folder}/artifacts", SERVE_ARTIFACTS_ENV_VAR: "true"}
    import uvicorn
    from mlflow.server.fastapi_app import app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(guarded(app), log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
