"""Brings the bundles that a version needs, and only those that the served one does not hold already."""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peft_adapters.errors import BundleBaseMismatchError, BundleError, VersionNotFoundError
from peft_adapters.registry.bundle import Bundle, Manifest, read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.served_model import ServedModel

FILES_PATH = "/v1/files"

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"]+")


class BundleSource:
    """Fetches and verifies bundles from the registry.

    Args:
        registry: Where from.
        directory: Where each lies until it is read; of this process alone.
        base_digest: Of the encoder that they must fit.
    """

    def __init__(self, registry: AdapterRegistry, directory: Path, base_digest: str) -> None:
        self._registry, self._directory, self._base_digest = registry, directory, base_digest

    def latest(self, scenario: str) -> Manifest | None:
        """What the registry holds as the latest, for when nothing was announced.

        Raises:
            RegistryError: The registry does not say.
            BundleError: Its manifest is damaged.
        """
        return self._registry.latest(scenario)

    def explain_absence(self, scenario: str) -> str:
        """Explain why the registry holds no version of a scenario.

        Raises:
            RegistryError: The registry does not answer.
        """
        return self._registry.explain_absence(scenario)

    def without_addresses(self, text: str) -> str:
        """A text fit for anyone who may ask whether the scorer is ready: it does not say where the registry is.

        Args:
            text: Names files of the registry, or of this process.
        """
        url = self._registry.url
        local = str(Path(url).absolute()) if "://" not in url else url.removesuffix(FILES_PATH)
        for address in sorted({url, local} if "/" in url else {local}, key=len, reverse=True):
            text = text.replace(address.rstrip("/"), "<registry>")
        return _ADDRESS.sub("<address>", text.replace(str(self._directory), "<copy>"))

    def newest_readable(self, scenario: str) -> Manifest | None:
        """Manifest of the newest version whose manifest can be read; None when there is none.

        Raises:
            RegistryError: The registry does not answer.
        """
        for version in reversed(self._registry.versions(scenario)):
            with suppress(BundleError, VersionNotFoundError):
                return self._registry.manifest(scenario, version)
        return None

    def before(self, scenario: str, version: int) -> list[int]:
        """The published versions below one, newest first.

        Raises:
            RegistryError: The registry does not answer.
        """
        return [own for own in reversed(self._registry.versions(scenario)) if own < version]

    def rollout(self, scenario: str) -> Rollout:
        """Which versions are to be served, for when nothing was announced.

        Raises:
            RegistryError: The registry does not say, or what lies there is no rollout.
        """
        return self._registry.rollout(scenario)

    def fetch(
        self, scenario: str, version: int, held: Sequence[ServedModel]
    ) -> tuple[list[Bundle], ServedModel | None]:
        """The bundles that lead to a version, and what they build on: a model that is held, or nothing.

        Args:
            scenario: Which ranking.
            version: Of the adapter.
            held: Models to build on; the one that is nearest is taken.

        Raises:
            RegistryError: A link of the chain is not there, or the registry does not answer.
            BundleError: A bundle is not what its manifest says, or does not fit the encoder.
            OSError: The local disk failed.
        """
        links, base = [self._registry.manifest(scenario, version)], None
        while (parent := links[-1].builds_on) is not None:
            manifest = self._registry.manifest(scenario, parent)
            # By digest: a registry begun anew gives the same numbers to other bundles.
            base = next((model for model in held if model.manifest.digest == manifest.digest), None)
            if base is not None:
                break
            links.append(manifest)
        for link in links:
            self._require_base(link)
        return [self._read(link) for link in reversed(links)], base

    def _require_base(self, link: Manifest) -> None:
        """Refuse a version that was made for another encoder before its files are downloaded."""
        if link.base_digest != self._base_digest:
            raise BundleBaseMismatchError(
                f"version {link.version} was made for another base model, {link.base_digest}; this scorer has "
                f"{self._base_digest}; start the scorer with the `encoder` settings that the updater has"
            )

    def _read(self, link: Manifest) -> Bundle:
        directory = self._registry.fetch(link.scenario, link.version, self._directory)
        try:
            return read_bundle(directory, base_digest=self._base_digest)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
