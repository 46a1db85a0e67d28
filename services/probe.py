"""Health check of a process on the same host: ``python -m services.probe PORT PATH`` ends with status 0 if healthy.

Containers use it, so that the image needs no curl. It imports nothing heavy.
"""

import sys
from http.client import HTTPConnection, HTTPException

TIMEOUT_SECONDS = 5.0
SUCCESS = range(200, 300)


def is_healthy(port: int, path: str) -> bool:
    """Return whether a GET is answered with success.

    Args:
        port: the port of the process, on loopback.
        path: the path to get, such as ``/readyz``.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status in SUCCESS
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_healthy(int(sys.argv[1]), sys.argv[2]))
