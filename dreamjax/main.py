"""dreamjax: from a sentence to a 3D object.

    dreamjax dream "a red ball"                                   # into runs/a-red-ball
    dreamjax --config=toybox --config.prompt="a red ball" --workdir=out
    python -m dreamjax.main --config=configs/toybox.py ...        # the same, from a clone

--config names a config file, or one that ships by its name; "file.py:word" and "name:word" hand the
word to it. --workdir names the directory that the run owns; started again with the same two, a run
goes on where it was. Every value is overridden as --config.KEY=VALUE, a nested one as
--config.PART.KEY=VALUE, and a whole part by its name, as --config.exports=glb,report. With
--config, --help explains every value. A config file is Python code, which runs when it is named.
"""

import errno
import importlib.util
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

import dreamjax
from dreamjax import config as config_lib
from dreamjax.devices import warn_of_unused_plugin
from dreamjax.errors import FullDisk, UserError
from dreamjax.settings import is_settings, is_text
from dreamjax.streams import keep_going
from dreamjax.training import hosts
from dreamjax.training.compilation import keep_compiled
from dreamjax.training.interrupt import stoppable
from dreamjax.workdir import cannot_write, slug

HELP = r"--?h(elp(short|full)?)?"
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
DREAM_CONFIG = "toybox"
LONGEST = 1000  # characters of an error


def config_names() -> dict[str, Path]:
    """The config files that ship, by name: installed as dreamjax.configs, or beside the package."""
    beside = Path(dreamjax.__file__).resolve().parent
    for folder in (beside / "configs", beside.parent / "configs"):
        if folder.is_dir():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}
    return {}


def find_config(spec: str) -> tuple[Path, str]:
    """The file that `spec` names and the word behind its colon; raises UserError."""
    path, _, argument = spec.partition(".py:")
    if argument or path.endswith(".py"):
        path = f"{path}.py" if argument else path
        if not Path(path).is_file():
            beside = [str(p) for p in Path(path).parent.glob("*.py")]
            raise UserError(f"there is no config file {path}{config_lib.nearest(path, beside)}")
        return Path(path), argument
    name, _, argument = spec.partition(":")
    known = config_names()
    if name not in known:
        hint = config_lib.nearest(name, known) or f": a file (.py) or one of {', '.join(known)}"
        raise UserError(f"there is no config {name}{hint}")
    return known[name], argument


def load_config(spec: str) -> Any:
    """Return the task that `get_config()` of the config `spec` builds.

    Raises UserError, naming file and line, where that fails.
    """
    path, argument = find_config(spec)
    module_spec: Any = importlib.util.spec_from_file_location(f"dreamjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # so that the parts that it defines are found
    try:
        module_spec.loader.exec_module(module)
        task = module.get_config(*([argument] if argument else []))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: nothing has run
        # The innermost line that lies in the config file itself is the user's.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == module_spec.origin]
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{place}: {_in_words(error)}") from error
    if not is_settings(task) or not hasattr(task, "run"):
        raise UserError(f"{path}: get_config() must return a task, as dreamjax.tasks.dream.Dream")
    return task


def _in_words(error: BaseException) -> str:
    """An error of a config file; those that are not worded for the user with their kind."""
    try:
        text = str(error)
    except Exception:  # what an exception says of itself is the user's code too
        text = ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def parse(args: Sequence[str]) -> tuple[Any, str | None]:
    """Return the task with its overrides, and the workdir, from command-line arguments.

    Raises UserError, also where `--config` is missing.
    """
    own = flags.FlagValues()
    flags.DEFINE_string("config", None, "the config file", flag_values=own)
    flags.DEFINE_string("workdir", None, "where the run lives", flag_values=own)
    own.set_gnu_getopt()
    try:
        rest = own(["dreamjax", *args], known_only=True)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if not own.config:
        raise UserError("--config is missing: name a config, as --config=toybox")
    return override(load_config(own.config), rest), own.workdir


def override(task: Any, args: Sequence[str]) -> Any:
    """The task with `--config.PATH=VALUE` arguments applied, parts first, then values."""
    for arg in args:
        if not is_text(arg):
            raise UserError(f"an argument is no UTF-8 text: {ascii(arg)[:200]}")
    task, rest = _override_parts(task, list(args))
    for arg in rest:
        _check_argument(arg, task)
    values = config_lib.as_config_dict(task)
    overrides = flags.FlagValues()
    overrides.set_gnu_getopt()
    argv = ["dreamjax", *map(_as_flag, rest)]
    try:
        config_flags.DEFINE_config_dict("config", values, flag_values=overrides, sys_argv=argv)
        positional = overrides(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise _explain(error, task) from error
    if positional:
        raise UserError(
            f"unexpected argument {positional[0]!r}: quote values with spaces, "
            'as --config.prompt="a red ball"'
        )
    try:
        return config_lib.from_config_dict(task, values)
    except UserError as error:
        raise UserError(f"--config.{error}") from error


def _override_parts(task: Any, args: list[str]) -> tuple[Any, list[str]]:
    """The task with whole parts replaced, and the arguments that are left.

    Parts nearest to the root go first, those of one depth together, as they may need each other.
    """
    while True:
        found: dict[str, tuple[int, int, str]] = {}
        for i, arg in enumerate(args):
            path, equals, text = arg.lstrip("-").removeprefix("config.").partition("=")
            if re.match(r"--?config\.", arg) and _holds_parts(task, path):
                given = text if equals else "".join(args[i + 1 : i + 2])
                found[path] = (i, i + 1 if equals else i + 2, given)
        if not found:
            return task, args
        depth = min(path.count(".") for path in found)
        now = {path: at for path, at in found.items() if path.count(".") == depth}
        parts = {path: config_lib.choose(task, path, text) for path, (*_, text) in now.items()}
        try:
            task = config_lib.replaced(task, parts)
        except UserError as error:
            raise UserError(f"--config.{error}") from error
        used = {i for first, last, _ in now.values() for i in range(first, last)}
        args = [arg for i, arg in enumerate(args) if i not in used]


def _as_flag(arg: str) -> str:
    """An argument with its path as `ml_collections` takes it."""
    name, equals, text = arg.partition("=")
    is_path = re.match(r"--?(no)?config\.", name)
    return config_lib.flag_path(name) + equals + text if is_path else arg


def _holds_parts(task: Any, path: str) -> bool:
    """Whether the value at `path` is a part, parts, or a place for one."""
    if path in config_lib.branches(task):
        return True
    if path not in config_lib.leaves(task):
        return False
    hint = config_lib.hint_at(task, path)
    return hint is not None and config_lib.takes_parts(hint)


def _check_argument(arg: str, task: Any) -> None:
    """Refuse a flag that is no value of `task`."""
    if not re.match(r"--?[A-Za-z]", arg):
        return
    name = arg.lstrip("-").split("=", 1)[0]
    known = {f"config.{key}": value for key, value in config_lib.leaves(task).items()}
    if name in known or name.startswith("no") and isinstance(known.get(name[2:]), bool):
        return
    parts = [f"config.{key}" for key in config_lib.branches(task)]
    hint = config_lib.nearest(name, [*known, *parts, "config", "workdir"])
    kind = "config key" if "config." in name else "flag"
    raise UserError(f"unknown {kind} --{name[:200]}{hint}")


def _explain(error: Exception, task: Any) -> UserError:
    """Return an absl parsing error as one line that says what was expected."""
    text = " ".join(str(error).split())
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    known = config_lib.leaves(task)
    path = found[1].replace("._", ".") if found else ""
    if found is None or path not in known:
        return UserError(text[:500])
    hint = config_lib.hint_at(task, path)
    return UserError(
        f"--config.{path}={found[2][:200]}: expected {config_lib.expected(hint)}, "
        f"as the default {known[path]!r}"
    )


def usage(args: Sequence[str]) -> str:
    """Return the help text, with every value explained where `args` name a config that loads."""
    named = [a for a in args if not re.fullmatch(HELP, a)]
    if not any("config" in a for a in named):
        lines = [f"  {name:18} {_first_line(path)}" for name, path in config_names().items()]
        return "\n".join([str(__doc__), "Configs that ship:", *lines, ""])
    try:
        task, _ = parse(named)
    except UserError as error:
        return f"{__doc__}\n({error})\n"
    return "\n".join([str(__doc__), *config_lib.describe(task), ""])


def _first_line(path: Path) -> str:
    return path.read_text("utf-8").removeprefix('"""').split("\n")[0].rstrip('"')


def dream_arguments(args: Sequence[str]) -> list[str]:
    """What `dreamjax dream WORDS [--OPTIONS]` stands for."""
    count = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    prompt, options = " ".join(args[:count]), list(args[count:])
    given = {option.lstrip("-").split("=", 1)[0] for option in options}
    if not prompt and not given & {"config.prompt", "config.prompts", "help", "h"}:
        raise UserError('dreamjax dream needs a sentence, as: dreamjax dream "a red ball"')
    if prompt:
        options.insert(0, f"--config.prompt={prompt}")
    if "config" not in given:
        options.insert(0, f"--config={DREAM_CONFIG}")
    if "workdir" not in given:
        options.append(f"--workdir=runs/{slug(prompt) or 'prompts'}")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the task that `argv[1:]` asks for and return the exit status.

    2 is a user's mistake, 1 a full disk, 128 and its number a signal.
    """
    try:
        with stoppable():
            return _run(list(argv[1:]))
    except UserError as error:
        return _fail(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _fail(cannot_write(error.filename or "a file", error))
    except MemoryError as error:
        return _fail(UserError(f"there is not enough memory: {error}"))
    except KeyboardInterrupt as stop:  # the task has saved by now, and said how to go on
        number = stop.args[0] if stop.args else signal.SIGINT
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
        return 128 + number


def _run(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        print(f"dreamjax {dreamjax.__version__}")
        return 0
    if args[:1] == ["dream"]:
        args = dream_arguments(args[1:])
    if any(re.fullmatch(HELP, arg) for arg in args) or not args:
        print(usage(args), end="")
        return 0
    keep_compiled()  # before a config file imports JAX
    task, workdir = parse(args)
    if not workdir:
        raise UserError("--workdir is missing: name the directory that the run writes to")
    hosts.start()  # before anything starts the devices
    if hosts.count() > 1 and not getattr(task, "MANY_HOSTS", False):
        raise UserError(f"{type(task).__name__} runs in one process, not in {hosts.count()}")
    warn_of_unused_plugin()
    task.run(workdir)
    return 0


def _fail(error: UserError) -> int:
    print(f"error: {' '.join(str(error).split())[:LONGEST]}", file=sys.stderr)
    return 1 if isinstance(error, FullDisk) else 2


def cli() -> None:
    """The command `dreamjax`."""
    keep_going()
    try:
        status = main(sys.argv)
    except BaseException:
        if hosts.count() > 1:
            traceback.print_exc()
            hosts.leave(1)
        raise
    if status:
        hosts.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
