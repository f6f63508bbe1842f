"""`--no-upnp` and its environment variable reach the daemon's configuration."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from swarmd.cli import serve
from swarmd.config import DaemonConfig


@pytest.mark.parametrize(
    ("arguments", "variable", "upnp"),
    [([], None, True), (["--no-upnp"], None, False), ([], "1", False), ([], "0", True)],
)
def test_no_upnp(
    arguments: list[str], variable: str | None, upnp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[DaemonConfig] = []
    monkeypatch.setattr(serve, "set_up_logging", lambda *_, **__: None)
    monkeypatch.setattr(serve, "_serve", lambda config, *_: served.append(config))
    monkeypatch.setattr(serve, "run", lambda _work: None)
    done = CliRunner().invoke(serve.command, arguments, env={"SWARMD_NO_UPNP": variable})
    assert done.exit_code == 0, done.output
    assert [config.upnp for config in served] == [upnp]
