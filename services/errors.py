"""The root of all errors that `services` raises on purpose. Each package defines its errors beside the code.

HeadwaterServiceError
├── UsageError                   settings, arguments or input files cannot be used as they are
│   ├── SettingsError            services.settings
│   ├── InputError               services.data.files
│   ├── KeysError                services.web.access.keys
│   └── LetterError              services.operate.dead_letters.errors
├── AuditError                   services.audit
├── BenchError                   services.lab.bench.errors
├── DemoError                    services.lab.demo.errors
├── HeadwaterClientError         services.client.errors, with its subtree
├── ItemUnknownError             services.scorer.recommender
├── ProbabilityUnknownError      services.scorer.recommender
├── ProblemError                 services.web.http: an HTTP answer other than success
├── ServeError, ExposedError     services.web.server
├── SpoolError, SpoolFullError   services.collector.spool
├── StateError and its subtree   services.state.errors
└── TemporaryDirectoryError      services.disks

The command line shows an error of this tree, of `streams.errors` and of `peft_adapters.errors` as one line on standard
error. It ends with status 2 after a `UsageError`, and with status 1 after any other.
"""


class HeadwaterServiceError(Exception):
    """Root of all errors of `services`; its text names the problem and the remedy for a person."""


class UsageError(HeadwaterServiceError, ValueError):
    """Settings, arguments or input files cannot be used as they are: the caller has to change them."""
