"""Asks a process of its own host whether it is well: ``python -m services.probe PORT PATH`` ends with 0 if it is.

For the health checks of containers, so that the image needs no curl. Nothing heavy is imported.
"""

import sys
from http.client import HTTPConnection, HTTPException

TIMEOUT_SECONDS = 5.0
SUCCESS = range(200, 300)


def is_healthy(port: int, path: str) -> bool:
    """Tell whether a GET is answered with success.

    Args:
        port: Of the process, on loopback.
        path: Such as ``/readyz``.
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
