"""Access to a registry's store; a failure of the store becomes a `RegistryUnavailableError` that names the action."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft_adapters.errors import RegistryUnavailableError
from peft_adapters.registry.stores import Store


class StoreAccess:
    """A store and its address, with errors mapped.

    Args:
        url: address of the registry, for error messages.
        store: store that holds the registry's files.

    Attributes:
        url: address of the registry.
        store: store that holds the registry's files.
    """

    def __init__(self, url: str, store: Store) -> None:
        self.url, self.store = url, store

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn an OSError of the store into a RegistryUnavailableError.

        Args:
            action: the action that fails, such as "read home/LATEST".

        Raises:
            RegistryUnavailableError: the store failed.
        """
        try:
            yield
        except OSError as error:
            raise RegistryUnavailableError(
                f"registry {self.url} cannot {action}: {error}; check the store, then try again"
            ) from error

    def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """Return at most the first `limit_bytes` bytes of a file; None if it does not exist.

        Raises:
            RegistryUnavailableError: the store failed.
        """
        with self.errors(f"read {path}"):
            try:
                return self.store.read(path, limit_bytes=limit_bytes)
            except FileNotFoundError:
                return None

    def write(self, path: str, data: bytes, *, action: str) -> None:
        """Replace a file as a whole.

        Args:
            path: path of the file.
            data: its new content.
            action: the action, for the error message.

        Raises:
            RegistryReadOnlyError: the registry is open over HTTP.
            RegistryUnavailableError: the store failed.
        """
        with self.errors(action):
            self.store.write(path, data)
