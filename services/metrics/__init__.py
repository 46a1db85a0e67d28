"""Prometheus metrics: one class per process, composed of parts that several processes share.

A process builds one registry with `series.new_registry` and one class over it: `UpdaterMetrics`, `ScorerMetrics`,
`RegistryMetrics`, `CollectorMetrics` or `StateWriterMetrics`. A class declares its series and offers verbs
(``metrics.adapter_refused(rules)``); metric objects and labels are private to it.

Conventions: base units; bounded labels, whose values are imported from the code that owns them; points in time are
exported as times, never as ages, which a stopped process would freeze; series with known labels are exported at 0 from
the start.

Import from the module of the class: the package itself imports nothing, so that a process without a model does not load
torch for its metrics.
"""
