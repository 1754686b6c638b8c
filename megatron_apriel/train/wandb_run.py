"""A run at Weights & Biases: its beginning, refused before training where nobody is logged in, and its tables.

Asked for a run without a login, wandb would wait at the terminal for a key, or end in a job with a traceback.
"""

from __future__ import annotations

import hashlib
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError

_FIX = "Run wandb login once, or set logging.wandb=offline and send the figures later with wandb sync."
_PUBLIC_HOST = "api.wandb.ai"
"""Under whose name a login may stand whatever the address of the service is called."""


def begin_wandb(config: StageConfig) -> Any:
    """wandb's run of this stage, the same one when the stage resumes.

    Raises ConfigError where wandb is not there, or is to be online and is not logged in or refuses.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"logging.wandb={config.logging.wandb}, and wandb cannot be imported: {error}.",
            fix="pip install 'megatron_apriel[wandb]', or set logging.wandb=off.",
        ) from None
    if config.logging.wandb == "online" and not _logged_in(wandb.setup().settings):
        wandb.teardown()
        raise ConfigError(
            "logging.wandb=online, and no login to Weights & Biases was found.",
            "Looked at were WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, the netrc file and wandb's settings.",
            _FIX,
        )
    try:
        return wandb.init(
            project=config.logging.wandb_project,
            name=config.stage,
            dir=str(config.output),
            mode="offline" if config.logging.wandb == "offline" else "online",
            config=config.model_dump(mode="json"),
            resume="allow",
            id=hashlib.sha256(f"{config.stage} {config.output.resolve()}".encode()).hexdigest()[:16],
        )
    except wandb.Error as error:
        raise ConfigError(f"logging.wandb={config.logging.wandb}, and wandb refuses: {error}", fix=_FIX) from None


def wandb_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """Texts as wandb shows them, a row each."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def _logged_in(settings: Any) -> bool:
    """Whether wandb would find a login; whether it is good, only the service knows."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    given = os.environ.get("NETRC")
    files = [Path(given).expanduser()] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    hosts = (urlsplit(settings.base_url).netloc, _PUBLIC_HOST)
    return any(_names(file, host) for file in files for host in hosts)


def _names(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
