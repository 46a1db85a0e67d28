"""Downloads of the bundles that a version needs on top of the models in memory."""

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
        registry: the registry to read.
        directory: the directory of this process for downloads, each removed once it is read.
        base_digest: the digest of the encoder that bundles must fit.
    """

    def __init__(self, registry: AdapterRegistry, directory: Path, base_digest: str) -> None:
        self._registry, self._directory, self._base_digest = registry, directory, base_digest

    def latest(self, scenario: str) -> Manifest | None:
        """Return the latest version in the registry, for scenarios without an announcement.

        Raises:
            RegistryError: the registry does not answer.
            BundleError: the manifest is damaged.
        """
        return self._registry.latest(scenario)

    def explain_absence(self, scenario: str) -> str:
        """Return the reason why the registry holds no version of a scenario.

        Raises:
            RegistryError: the registry does not answer.
        """
        return self._registry.explain_absence(scenario)

    def without_addresses(self, text: str) -> str:
        """Return a text without addresses of the registry and paths of this process, fit for public answers.

        Args:
            text: a text that may name files of the registry or of this process.
        """
        url = self._registry.url
        local = str(Path(url).absolute()) if "://" not in url else url.removesuffix(FILES_PATH)
        for address in sorted({url, local} if "/" in url else {local}, key=len, reverse=True):
            text = text.replace(address.rstrip("/"), "<registry>")
        return _ADDRESS.sub("<address>", text.replace(str(self._directory), "<copy>"))

    def newest_readable(self, scenario: str) -> Manifest | None:
        """Return the newest manifest that can be read; None if there is none.

        Raises:
            RegistryError: the registry does not answer.
        """
        for version in reversed(self._registry.versions(scenario)):
            with suppress(BundleError, VersionNotFoundError):
                return self._registry.manifest(scenario, version)
        return None

    def versions_before(self, scenario: str, version: int) -> list[int]:
        """Return the published versions below a version, newest first.

        Raises:
            RegistryError: the registry does not answer.
        """
        return [older for older in reversed(self._registry.versions(scenario)) if older < version]

    def rollout(self, scenario: str) -> Rollout:
        """Return the rollout in the registry, for scenarios without an announcement.

        Raises:
            RegistryError: the registry does not answer, or its rollout is damaged.
        """
        return self._registry.rollout(scenario)

    def fetch(
        self, scenario: str, version: int, held: Sequence[ServedModel]
    ) -> tuple[list[Bundle], ServedModel | None]:
        """Return the bundles that lead to a version, and the held model that they build on, if any.

        Args:
            scenario: the scenario of the version.
            version: the adapter version.
            held: the models to build on; the nearest is taken.

        Raises:
            RegistryError: a link of the chain is missing, or the registry does not answer.
            BundleError: a bundle differs from its manifest, or does not fit the encoder.
            OSError: the local disk failed.
        """
        links, base = [self._registry.manifest(scenario, version)], None
        while (parent := links[-1].builds_on) is not None:
            manifest = self._registry.manifest(scenario, parent)
            # By digest: a registry that was recreated assigns the same numbers to other bundles.
            base = next((model for model in held if model.manifest.digest == manifest.digest), None)
            if base is not None:
                break
            links.append(manifest)
        for link in links:
            self._require_base(link)
        return [self._read(link) for link in reversed(links)], base

    def _require_base(self, link: Manifest) -> None:
        """Refuse a version for another encoder before its files are downloaded."""
        if link.base_digest != self._base_digest:
            raise BundleBaseMismatchError(
                f"version {link.version} was made for another base model, {link.base_digest}; this process has "
                f"{self._base_digest}; give it the `encoder` settings that the updater has"
            )

    def _read(self, link: Manifest) -> Bundle:
        directory = self._registry.fetch(link.scenario, link.version, self._directory)
        try:
            return read_bundle(directory, base_digest=self._base_digest)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
