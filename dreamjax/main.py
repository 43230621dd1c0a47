"""dreamjax: from a sentence to a 3D object.

    python -m dreamjax.main --config=configs/toybox.py --config.prompt="a red ball" --workdir=out

--config names a config file, --workdir the directory that the run owns; started again with the same
two, a run goes on where it was. Every value of the config is overridden as --config.KEY=VALUE, a
nested one as --config.GROUP.KEY=VALUE. With --config, --help lists the values.
"""

import errno
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_dict, config_flags

from dreamjax import config as config_lib
from dreamjax import tasks
from dreamjax.errors import UserError
from dreamjax.training.compilation import keep_compiled

HELP = r"--?h(elp(short|full)?)?"
DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def load_config(spec: str) -> config_dict.ConfigDict:
    """Return what `get_config()` of the file `spec` gives; "file.py:word" calls it with the word.

    Raises UserError, naming file and line, where that fails.
    """
    path, _, argument = spec.partition(".py:")
    path = f"{path}.py" if argument else path
    if not Path(path).is_file():
        beside = [str(p) for p in Path(path).parent.glob("*.py")]
        raise UserError(f"there is no config file {path}{config_lib.nearest(path, beside)}")
    try:
        module_spec = importlib.util.spec_from_file_location("dreamjax_config", path)
        if module_spec is None:
            raise UserError(f"the config file {path} is not a Python file (.py)")
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        config = module.get_config(*([argument] if argument else []))
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        # The innermost line that lies in the config file itself is the user's.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == module_spec.origin]
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{place}: {type(error).__name__}: {error}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise UserError(f"{path}: get_config() must return an ml_collections.ConfigDict")
    _open_nones(config)
    return config.lock()


def _open_nones(config: config_dict.ConfigDict) -> None:
    # A plain None has no type that an override could be parsed by; such a value takes any literal.
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            _open_nones(value)
        elif value is None and config.get_type(key) is type(None):
            del config[key]
            config[key] = config_dict.placeholder(object)


def parse(args: Sequence[str]) -> tuple[config_dict.ConfigDict, str | None]:
    """Return the config with its overrides, and the workdir, from command-line arguments.

    Raises UserError, also where `--config` is missing.
    """
    own = flags.FlagValues()
    flags.DEFINE_string("config", None, "the config file", flag_values=own)
    flags.DEFINE_string("workdir", None, "where the run lives", flag_values=own)
    own.set_gnu_getopt()
    try:
        rest = own(["dreamjax", *args], known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    if not own.config:
        raise UserError("--config is missing: name a config file, as --config=configs/toybox.py")
    config = load_config(own.config)
    for arg in rest[1:]:
        _check_argument(arg, config)
    overrides = flags.FlagValues()
    overrides.set_gnu_getopt()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=rest)
        positional = overrides(rest)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise _explain(error, config) from error
    if positional:
        raise UserError(
            f"unexpected argument {positional[0]!r}: quote values with spaces, "
            'as --config.prompt="a red ball"'
        )
    return config, own.workdir


def _check_argument(arg: str, config: config_dict.ConfigDict) -> None:
    """Refuse a flag that is no value of `config`."""
    if not re.match(r"--?[A-Za-z]", arg):
        return
    name = arg.lstrip("-").split("=", 1)[0]
    known = {f"config.{key}": value for key, value in config_lib.flatten(config).items()}
    if name in known or name.startswith("no") and isinstance(known.get(name[2:]), bool):
        return
    below = [key for key in known if key.startswith(name + ".")]
    if below:
        raise UserError(f"--{name} is a group: set its values, as --{below[0]}=...")
    hint = config_lib.nearest(name, [*known, "config", "workdir"])
    raise UserError(f"unknown {'config key' if 'config.' in name else 'flag'} --{name}{hint}")


def _explain(error: Exception, config: config_dict.ConfigDict) -> UserError:
    """Return an absl parsing error as one line that says what was expected."""
    text = " ".join(str(error).split())
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if not found:
        return UserError(text)
    *groups, key = found[1].split(".")
    for group in groups:
        config = config[group]
    expected, default = config.get_type(key).__name__, config[key]
    return UserError(
        f"--config.{found[1]}={found[2]}: expected {expected}, as the default {default!r}"
    )


def usage(args: Sequence[str]) -> str:
    """Return the help text, with the config's values where `args` name a config that loads."""
    named = [a for a in args if not re.fullmatch(HELP, a)]
    try:
        config, _ = parse(named)
    except UserError as error:
        return f"{__doc__}\n({error})\n" if any("config" in a for a in named) else __doc__
    values = (f"  --config.{k}={v!r}" for k, v in config_lib.flatten(config).items())
    return "\n".join([__doc__, *values, ""])


def main(argv: Sequence[str]) -> int:
    """Run the task that `argv[1:]` asks for; returns the exit status, 2 for a user's mistake."""
    args = argv[1:]
    if any(re.fullmatch(HELP, arg) for arg in args):
        print(usage(args), end="")
        return 0
    try:
        config, workdir = parse(args)
        if not workdir:
            raise UserError("--workdir is missing: name the directory that the run writes to")
        if "task" not in config:
            raise UserError("the config has no `task`")
        keep_compiled()
        tasks.load(config.task).run(config, Path(workdir).expanduser())
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the task has saved by now, and said how to go on
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
