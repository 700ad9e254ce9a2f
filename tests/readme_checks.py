"""Whether what a document names exists: commands, options, settings, targets, modules, deployments, Python names."""

import ast
import functools
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer.main
import yaml
from readme_blocks import ROOT, words

from flows.cli import app
from flows.profiles import load_profile
from flows.settings import nearest_of, parse_settings, setting_names

NO_VALUE = object()


@functools.cache
def commands() -> Any:
    return typer.main.get_command(app)


@functools.cache
def settings() -> dict[str, set[str]]:
    """All dotted names of settings and groups of settings, by their first part."""
    names: dict[str, set[str]] = {}
    for name in setting_names(load_profile("full")):
        parts = name.removeprefix("dataset.").split(".")
        for count in range(1, len(parts) + 1):
            names.setdefault(parts[0], set()).add(".".join(parts[:count]))
    return names


def check_command(command: str) -> None:
    """AssertionError or ValueError for a command line that names what does not exist, or a value that does not fit."""
    program, *arguments = words(command) or [""]
    if program == "dreamcache":
        _check_dreamcache(arguments)
    elif program == "make":
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "prefect" and arguments[:2] == ["deployment", "run"]:
        _check_deployment(arguments[2:])
    elif program == "python":
        assert arguments[0] == "-m" and importlib.util.find_spec(arguments[1]), f"there is no module {arguments[1]}"


def _check_dreamcache(arguments: list[str]) -> None:
    name, *rest = arguments
    assert name in commands().commands, f"there is no command {name}{nearest_of(name, commands().commands)}"
    given = commands().commands[name].make_context(name, rest, parent=commands().make_context("dreamcache", [name]))
    load_profile(given.params.get("profile") or "miniature", parse_settings(given.params.get("settings") or []))


def _check_deployment(arguments: list[str]) -> None:
    """A deployment that prefect.yaml lists, with parameters of its flow and settings of its profile."""
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    flows, profiles = {}, {}
    for one in listed:
        file, function = one["entrypoint"].split(":")
        flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
        flows[f"{flow.name}/{one['name']}"] = flow
        profiles[f"{flow.name}/{one['name']}"] = one.get("parameters", {}).get("profile", "miniature")
    name, *rest = arguments
    assert name in flows, f"there is no deployment {name}{nearest_of(name, flows)}"
    assert rest[::2] == ["--param"] * len(rest[1::2]), f"{rest} are not pairs of --param and NAME=VALUE"
    given = parse_settings(rest[1::2])
    unknown = given.keys() - flows[name].parameters.properties.keys()
    assert not unknown, f"{name} has no parameter {unknown}"
    load_profile(profiles[name], given.get("settings", {}))


def check_help(command: str) -> None:
    """AssertionError where another program's help does not know an option of a command line, or its subcommand."""
    program, *arguments = words(command)
    while program and (place := next((at for at, word in enumerate(arguments) if word == "-m"), None)) is not None:
        before, module, arguments = arguments[:place], arguments[place + 1], arguments[place + 2 :]
        _check_options(program, (), before)
        _check_options("python", ("-m", module), arguments)
        program = ""
    if program == "prefect":
        while arguments[0].startswith("-"):
            _check_options("prefect", (), [arguments.pop(0)])
        deep = 1 if arguments[0] == "deploy" else 2
        _check_options("prefect", tuple(arguments[:deep]), arguments[deep:])


def _check_options(program: str, subcommand: tuple[str, ...], arguments: list[str]) -> None:
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    if options or subcommand:
        known = set(re.findall(r"--[a-z][a-z-]*", _help(program, subcommand)))
        assert options <= known, f"{program} {' '.join(subcommand)} has no {', '.join(sorted(options - known))}"


@functools.cache
def _help(program: str, subcommand: tuple[str, ...]) -> str:
    path = sys.executable if program == "python" else str(Path(sys.executable).parent / program)
    done = subprocess.run([path, *subcommand, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{program} {' '.join(subcommand)} --help: {done.stderr}"
    return done.stdout


@functools.cache
def our_options() -> set[str]:
    """Every option of `dreamcache` and of our modules."""
    named = {option for one in commands().commands.values() for parameter in one.params for option in parameter.opts}
    for package in ("dreamcache", "miniature", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text))
            named |= {f"--{name}" for name in re.findall(r'"(\w+)": \d+[,}]', text) if package == "benchmarks"}
    return named


def check_span(span: str) -> None:
    """AssertionError where a sentence names an option, a setting, a target or a module of ours that does not exist."""
    first = span.split()[0]
    ours = first in ("dreamcache", "make", "prefect") and re.match(r"\w+ [a-z-]", span) and "->" not in span
    if ours and not re.search(r"\b[A-Z]+\b|[=/]\.\.\.", span):  # NAME and ... stand for what a reader puts there
        check_command(span)
    elif first == "python":
        assert importlib.util.find_spec(span.split()[2]), f"there is no module {span.split()[2]}"
    elif first.startswith("--") and first != "--param":
        assert first in our_options() | {"--help"}, f"nothing has the option {first}"
    for name in re.findall(r"(?:^|--set '?)([a-z_0-9.]+)(?==|$)", span):
        group = name.partition(".")[0]
        if "--set" in span or ("." in name and group in settings()):
            assert name in settings().get(group, ()), f"there is no setting {name}"


def check_python(source: str) -> None:
    """SyntaxError, ImportError or AttributeError where a block is no Python, or imports what is not there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                getattr(module, alias.name)
