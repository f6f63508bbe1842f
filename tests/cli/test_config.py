"""Options from the command line, the environment and the file: which goes first, and what a file
may not say."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from swarmd.cli import cli, main
from swarmd.cli.app import COMMANDS
from swarmd.cli.config_file import ConfigFile, config_path
from swarmd.cli.settings import SHARED, env_names, key_of, leaves, options_of

LEAVES = dict(leaves(cli, ()))


def swarmd(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    path.chmod(0o600)
    monkeypatch.setenv("SWARMD_CONFIG", str(path))
    return path


def state_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The state folder that a command really uses."""
    capsys.readouterr()
    assert swarmd("identity", "show", "--json", *arguments) == 0
    return Path(json.loads(capsys.readouterr().out)["state_folder"]).name


def test_precedence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each source hides those below it: default, file for all, file for the command, environment
    for all, environment for the command, command line."""
    monkeypatch.setenv("SWARMD_STATE", str(file.parent / "default"))
    assert state_of(capsys) == "default"
    file.write_text('[all]\nstate-dir = "all"\n')
    assert state_of(capsys) == "all"  # from the file's folder on
    assert (file.parent / "all").is_dir()
    file.write_text('[all]\nstate-dir = "all"\n[identity.show]\nstate-dir = "section"\n')
    assert state_of(capsys) == "section"
    monkeypatch.setenv("SWARMD_STATE_DIR", str(file.parent / "env-all"))
    assert state_of(capsys) == "env-all"
    monkeypatch.setenv("SWARMD_IDENTITY_SHOW_STATE_DIR", str(file.parent / "env"))
    assert state_of(capsys) == "env"
    assert state_of(capsys, "--state-dir", file.parent / "line") == "line"


def test_config_tells_each_value_and_where_it_is_from(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('[all]\nmodel = "m"\n[serve]\nmax-upload = 5\npeer = ["192.0.2.1:1"]\n')
    monkeypatch.setenv("SWARMD_SERVE_KV_TOKENS", "512")
    monkeypatch.setenv("SWARMD_API_KEYS", "0123456789abcdef")
    assert swarmd("config", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(file)
    assert set(said["commands"]) == {" ".join(path) for path in LEAVES}
    values = {
        (name, one["option"]): (one["value"], one["source"])
        for name, options in said["commands"].items()
        for one in options
    }
    assert values["serve", "model"] == values["generate", "model"] == ("m", str(file))
    assert values["serve", "max-upload"] == (5, str(file))
    assert values["serve", "peer"] == (["192.0.2.1:1"], str(file))
    assert values["serve", "kv-tokens"] == ("512", "$SWARMD_SERVE_KV_TOKENS")
    assert values["serve", "no-lan"] == ("1", "$SWARMD_NO_LAN")
    assert values["api", "api-key"] == ("(hidden)", "$SWARMD_API_KEYS")
    assert values["generate", "max-new-tokens"] == (128, "default")
    assert swarmd("config", "key", "new") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "",
        "swarmd key new",
        "  force  false  (default)",
    ]
    assert swarmd("config", "nonsense") == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\nmax_upload = 5", ["serve.max_upload", "did you mean serve.max-upload"]),
        ("[server]\nport = 5", ["unknown section server", "did you mean serve"]),
        ("port = 5", ["unknown key port"]),
        ("[all]\nport = 5", ["unknown key all.port"]),
        ("serve = 5", ["serve must be a section"]),
        ("[serve]\nport = '5'", ["serve.port", "a whole number", "'5'"]),
        ("[serve]\nport = true", ["serve.port", "a whole number", "True"]),
        ("[serve]\nport = 0", ["serve.port", "1<=x<=65535"]),
        ("[serve]\nmax-upload = 'x'", ["serve.max-upload", "a number"]),
        ("[serve]\nno-lan = 1", ["serve.no-lan", "true or false"]),
        ("[serve]\nblocks = 12", ["serve.blocks", "a text in quotes"]),
        ("[serve]\ndtype = 'int3'", ["serve.dtype", "float32"]),
        ("[serve]\nmodel = ['a']", ["serve.model", "a text"]),
        ("[serve]\nallow = [1]", ["serve.allow", "a text"]),
        ("[all]\nmodel = 3", ["all.model", "a text"]),
        ("[serve", ["not valid TOML", "at end of document"]),
    ],
)
def test_a_file_that_is_wrong_is_one_line_that_names_file_and_key(
    text: str, words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert swarmd("serve", "--peer", "nonsense") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    for word in [str(file), *words]:
        assert word in said, said
    assert swarmd("serve", "--help") == 0  # help is given all the same


def test_sections_of_groups_are_checked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[key.old]\nforce = true")
    assert swarmd("key", "new", file.parent / "k") == 2
    assert "unknown section key.old" in capsys.readouterr().err
    file.write_text("[key]\nnew = true")
    assert swarmd("config") == 2
    assert "key.new must be a section" in capsys.readouterr().err
    file.write_text("[key.new]\nforce = true")
    for _ in range(2):  # the second time the file is there already
        assert swarmd("key", "new", file.parent / "k") == 0


def test_unreadable_long_and_missing_files(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, word in (
        (b"\xff", "TOML"),
        (b"#" * (1 << 20) + b"#", "longer"),
        (b"a=" + b"[" * 5000, "TOML"),
    ):
        file.write_bytes(content)
        assert swarmd("version") == 2
        assert word in capsys.readouterr().err
    monkeypatch.setenv("SWARMD_CONFIG", str(file.parent))
    assert swarmd("version") == 2
    monkeypatch.setenv("SWARMD_CONFIG", str(file.parent / "none"))
    assert swarmd("version") == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setenv("SWARMD_CONFIG", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(file.parent / "none"))
    assert config_path().name == "config.toml"
    assert ConfigFile(commands=COMMANDS).defaults(LEAVES["serve",], ("serve",)) == {}


def test_secrets_are_not_read_from_a_file_that_others_may_read(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('[api]\napi-key = "0123456789abcdef"')
    assert swarmd("config", "api") == 0
    assert "0123456789abcdef" not in capsys.readouterr().out
    file.write_text('[all]\npeer = ["swarmd-invite-1-xyzzy"]')
    assert swarmd("config") == 0
    assert "xyzzy" not in capsys.readouterr().out
    file.chmod(0o644)
    assert swarmd("config", "serve") == 2
    file.write_text('[api]\napi-key = "0123456789abcdef"')
    assert swarmd("config", "api") == 2
    assert f"chmod 600 {file}" in capsys.readouterr().err


def test_every_option_can_be_set_and_no_name_means_two() -> None:
    names: dict[str, tuple[tuple[str, ...], str]] = {}
    for path, command in LEAVES.items():
        for option in options_of(command):
            key = key_of(option)
            assert isinstance(option.envvar, list)
            assert set(env_names(path, option)) <= set(option.envvar)
            for name in option.envvar:
                owner = (
                    ((), key) if name == f"SWARMD_{key.upper().replace('-', '_')}" else (path, key)
                )
                assert names.setdefault(name, owner)[1] == key, name
    assert "SWARMD_SERVE_NO_UPNP" in names
    assert "SWARMD_NO_UPNP" in names
    assert all(any(key == one for _, one in names.values()) for key in SHARED)


def test_shared_options_are_of_one_kind() -> None:
    """What [all] says is right for each command that has the option."""
    kinds: dict[str, tuple[type[click.ParamType], bool, bool]] = {}
    for command in LEAVES.values():
        for option in options_of(command):
            if key_of(option) in SHARED:
                kind = (type(option.type), option.multiple, option.is_flag)
                assert kinds.setdefault(key_of(option), kind) == kind
