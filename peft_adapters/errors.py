"""The error tree of `peft_adapters`: every error that the package raises on purpose derives from one root.

```
HeadwaterModelError
├── ModelValueError                an argument, setting or tensor that breaks its rule; also a ValueError
├── BundleError                    a directory or file is not a valid bundle
│   ├── BundleFormatError          the manifest is missing, unreadable, or breaks its own rules
│   │   ├── BundleVersionError     the format is not one that this release reads
│   │   ├── BundlePathError        a file name could leave the directory, or is neither safetensors nor JSON
│   │   └── LatestFormatError      `LATEST` holds no version number
│   ├── BundleDigestError          bytes differ from their recorded digest
│   │   └── BundleSizeError        a file is missing, too short or too long
│   ├── BundleBaseMismatchError    made for another frozen encoder
│   └── BundleSignatureError       the signature is missing, wrong, or by an unknown key
├── ContractError                  an implementation breaks a promise of its contract; also an AssertionError
├── BuildStoppedError              the build of a model was stopped before its end
├── MappedValueError               a file of shared memory is damaged, or of another release
├── CheckpointError                a checkpoint is unreadable, or belongs to another encoder or release
├── FencedError                    another updater has taken over; nothing more may be written
├── AlreadyRunningError            another updater runs on the same checkpoints or publishes the same scenario
├── SigningKeyError                a key file is missing or invalid, or the package for keys is not installed
├── EncoderError                   an encoder cannot be loaded, or cannot be used with these settings
└── RegistryError
    ├── RegistryAddressError       no kind of store is known, or installed, for the address; also a ValueError
    ├── ScenarioNameError          the name cannot be both a directory and a URL segment
    ├── VersionConflictError       the version number is taken by other content
    ├── VersionNotFoundError       the registry holds no such version, or a link of its chain is missing
    │   └── VersionNotKeptError    the version to serve is missing; the text names no address
    ├── RegistryReadOnlyError      a registry opened over HTTP cannot be written
    ├── RolloutError               a change would break the rules of a rollout
    │   ├── ChainRefusedError      the version cannot be served: its chain is damaged or incomplete
    │   ├── RolloutFormatError     the stored document is not a rollout
    │   └── RolloutConflictError   another process changed the rollout meanwhile
    └── RegistryUnavailableError   the store failed; retrying may succeed
```

Three kinds of exception are outside the tree. Errors of the local disk stay `OSError`. Programming errors, such as a
shape that no caller passes, stay Python's own. `PrefixDoneError` ends a forward pass early and never leaves `encoder`.
"""


class HeadwaterModelError(Exception):
    """Root of all errors of `peft_adapters`; the message is meant for users."""


class ModelValueError(HeadwaterModelError, ValueError):
    """An argument, setting or tensor breaks its rule."""


class ContractError(HeadwaterModelError, AssertionError):
    """An implementation breaks a promise of its contract; the message names the promise."""


class BuildStoppedError(HeadwaterModelError):
    """The build of a model was stopped before its end."""


class MappedValueError(HeadwaterModelError):
    """A file of shared memory is damaged, or of another release."""


class BundleError(HeadwaterModelError):
    """A directory or file is not a valid bundle."""


class BundleFormatError(BundleError):
    """The manifest is missing, unreadable, or breaks its own rules."""


class BundleVersionError(BundleFormatError):
    """The bundle has a format that this release does not read."""


class BundlePathError(BundleFormatError):
    """A file name could leave the bundle's directory, or is neither safetensors nor JSON."""


class BundleDigestError(BundleError):
    """Bytes differ from their recorded digest."""


class BundleSizeError(BundleDigestError):
    """A file is missing, or shorter or longer than recorded."""


class BundleBaseMismatchError(BundleError):
    """The bundle was made for another frozen encoder."""


class BundleSignatureError(BundleError):
    """The signature is missing where required, by an unknown key, or does not match the manifest."""


class SigningKeyError(HeadwaterModelError):
    """A key file is missing or invalid, or the package that reads keys is not installed."""


class CheckpointError(HeadwaterModelError):
    """A checkpoint is unreadable, or belongs to another encoder or release."""


class FencedError(HeadwaterModelError):
    """Another updater has taken over; this one must not write or publish any more."""


class AlreadyRunningError(HeadwaterModelError):
    """Another updater runs on the same checkpoints, or publishes the same scenario."""


class EncoderError(HeadwaterModelError):
    """An encoder cannot be loaded, or cannot be used with these settings."""


class RegistryError(HeadwaterModelError):
    """The registry refused a request or could not answer it."""


class RegistryAddressError(RegistryError, ValueError):
    """No kind of store is known, or installed, for the registry's address."""


class ScenarioNameError(RegistryError):
    """A scenario name cannot be both a directory and a URL segment."""


class VersionConflictError(RegistryError):
    """The version number is already taken by other content."""


class VersionNotFoundError(RegistryError):
    """The registry holds no such version, or a link of its chain is missing."""


class VersionNotKeptError(VersionNotFoundError):
    """The version to serve is not in the registry; the message may be sent to HTTP clients."""


class LatestFormatError(BundleFormatError):
    """`LATEST` holds no version number; the message may be sent to HTTP clients."""


class RegistryReadOnlyError(RegistryError):
    """The registry was opened read-only and cannot be written."""


class RolloutError(RegistryError):
    """A change would break the rules of a rollout."""


class ChainRefusedError(RolloutError):
    """A version cannot be served: a link of its chain is missing, damaged or not properly signed."""


class RolloutFormatError(RolloutError):
    """The stored document is not a rollout."""


class RolloutConflictError(RolloutError):
    """Another process changed the rollout since it was read."""


class RegistryUnavailableError(RegistryError):
    """The store behind the registry failed; its error is the cause, and retrying may succeed."""
