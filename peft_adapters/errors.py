"""Every error the model side raises, from one root.

```
HeadwaterModelError
├── BundleError                    a directory or file that is not the bundle it says it is
│   ├── BundleFormatError          manifest missing, unreadable, or against its own rules
│   │   ├── BundleVersionError     written in a format this release does not read
│   │   └── BundlePathError        a file name that could leave the directory, or is no safetensors / JSON
│   ├── BundleDigestError          bytes differ from the digest recorded for them
│   │   └── BundleSizeError        a file missing, cut short or too long
│   ├── BundleBaseMismatchError    made for another frozen encoder
│   └── BundleSignatureError       not signed by whoever it must be signed by
├── CheckpointError                a checkpoint that cannot be read, or belongs to another encoder or release
├── FencedError                    another updater has taken over; nothing more may be written
├── AlreadyRunningError            another updater is at work in the same place
├── SigningKeyError                a key file that is none, or the package for keys is not installed
├── EncoderError                   an encoder that cannot be loaded, or used as asked
└── RegistryError
    ├── RegistryAddressError       no kind of store is known, or installed, for this address
    ├── ScenarioNameError          a name that cannot be a directory and a URL segment
    ├── VersionConflictError       the version number is taken by other content
    ├── VersionNotFoundError       no such version here, or a link of its chain is missing
    │   └── VersionNotKeptError    no such version to serve; its text names no address
    ├── RegistryReadOnlyError      publishing to a registry opened over HTTP
    ├── RolloutError               a change that would break the rules of a rollout
    │   ├── ChainRefusedError      a version that cannot be served, since its chain is damaged or incomplete
    │   ├── RolloutFormatError     what lies in its place is no rollout
    │   └── RolloutConflictError   it was changed by another meanwhile
    └── RegistryUnavailableError   the store failed; worth another try
```
"""


class HeadwaterModelError(Exception):
    """Root of all errors of `peft_adapters`; its text is fit for a person."""


class BundleError(HeadwaterModelError):
    """A bundle was refused."""


class BundleFormatError(BundleError):
    """The manifest is missing, unreadable, or breaks its own rules."""


class BundleVersionError(BundleFormatError):
    """The bundle is written in a format this release does not read."""


class BundlePathError(BundleFormatError):
    """A file name could leave the bundle's directory, or is not a kind of file a bundle holds."""


class BundleDigestError(BundleError):
    """Bytes differ from the digest recorded for them."""


class BundleSizeError(BundleDigestError):
    """A file is missing, cut short or longer than recorded."""


class BundleBaseMismatchError(BundleError):
    """The bundle was made for another frozen encoder."""


class BundleSignatureError(BundleError):
    """The signature is missing where one is required, by no key that counts, or not of this manifest."""


class SigningKeyError(HeadwaterModelError):
    """A key file is missing or not what it must be, or the package that reads keys is not installed."""


class CheckpointError(HeadwaterModelError):
    """A checkpoint cannot be read, or belongs to another encoder or release."""


class FencedError(HeadwaterModelError):
    """Another updater has taken over: this one must neither write nor publish any more."""


class AlreadyRunningError(HeadwaterModelError):
    """Another updater is at work on the same checkpoints, or publishes under the same name."""


class EncoderError(HeadwaterModelError):
    """An encoder cannot be loaded, or not be used as asked."""


class RegistryError(HeadwaterModelError):
    """The registry refused a request or could not serve it."""


class RegistryAddressError(RegistryError, ValueError):
    """No kind of store is known, or installed, for the registry's address."""


class ScenarioNameError(RegistryError):
    """A scenario name cannot be both a directory and a URL segment."""


class VersionConflictError(RegistryError):
    """The version number is already taken by other content."""


class VersionNotFoundError(RegistryError):
    """The registry holds no such version, or a link of its chain is missing."""


class VersionNotKeptError(VersionNotFoundError):
    """A version that is to be served is not in the registry; the text is fit for callers over HTTP."""


class LatestFormatError(BundleFormatError):
    """`LATEST` holds no version number; the text is fit for callers over HTTP."""


class RegistryReadOnlyError(RegistryError):
    """Publishing was tried on a registry that can only be read."""


class RolloutError(RegistryError):
    """A change would break the rules of a rollout."""


class ChainRefusedError(RolloutError):
    """A version cannot be served: a link of its chain is missing, damaged or not signed as it must be."""


class RolloutFormatError(RolloutError):
    """What lies in the place of a rollout is none."""


class RolloutConflictError(RolloutError):
    """The rollout was changed by another since it was read."""


class RegistryUnavailableError(RegistryError):
    """The store behind the registry failed; its own error is the cause, and another try may succeed."""
