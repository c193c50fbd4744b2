"""Trackers: wandb without an account logs offline instead of ending the run."""

from os import environ

from wandb.sdk.lib.wbauth import read_netrc_auth


def wandb_mode() -> str:
    """The mode that wandb will use: WANDB_MODE, else `online` if there is an API key, else `offline`."""
    key = environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE")
    host = environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    return environ.get("WANDB_MODE") or ("online" if key or read_netrc_auth(host=host) else "offline")


def describe(report_to: str | list[str] | None, output_dir: str | None) -> str:
    """Where metrics go, for the plan."""
    names = [report_to] if isinstance(report_to, str) else report_to or ["none"]
    mode = wandb_mode() if "wandb" in names else ""
    hint = f" (no API key; to upload it: wandb sync {output_dir}/wandb/offline-run-*)" if mode == "offline" else ""
    return " and ".join(f"wandb, {mode}{hint}" if name == "wandb" and mode != "online" else name for name in names)


def prepare_wandb(output_dir: str) -> None:
    """Set wandb's environment variables: the run's directory, and offline mode if there is no API key."""
    environ.setdefault("WANDB_DIR", output_dir)
    if not environ.get("WANDB_MODE"):  # wandb rejects an empty value
        environ["WANDB_MODE"] = mode = wandb_mode()
        environ.setdefault("WANDB_SILENT", str(mode == "offline"))  # the plan has said so already
