"""Completion of commands and flags by the shell."""

import re
from typing import Literal

from poa.errors import UserError
from poa.files import whole_file

Shell = Literal["bash", "zsh", "fish", "powershell"]
LOADED: dict[Shell, str] = {
    "bash": "A line in ~/.bashrc loads it.",
    "zsh": "A line in ~/.zshrc adds its folder to fpath (oh-my-zsh needs none); compinit must be called after it.",
    "fish": "fish loads it from there.",
    "powershell": "A line in the profile of PowerShell loads it.",
}
_ZSH_WITHOUT_ACTION = re.compile(r"^( +'(?:\*--[\w.-]+\[.*\]:[\w.-]+|(?:\d+|\*):(?:[^:\\]|\\.)*))(' \\)$", re.MULTILINE)


def install_completion(*, shell: Shell | None = None) -> None:
    """Let the shell complete the commands and flags of poa, with the tab key.

    Args:
        shell: By default the one that this command is run from.
    """
    from cyclopts.completion import ShellDetectionError, add_to_rc_file, detect_shell, get_default_completion_path

    from poa.cli import app

    try:
        chosen = shell or detect_shell()
    except ShellDetectionError:
        raise UserError(f"The shell was not recognised. Name it with --shell: {', '.join(LOADED)}.") from None
    script = with_files(app.generate_completion(shell=chosen), chosen)
    path = get_default_completion_path(chosen, "poa")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(script, encoding="utf-8-sig" if chosen == "powershell" else "utf-8")
    if chosen != "fish":
        add_to_rc_file(path, "poa", chosen)
    print(f"Wrote {path}. {LOADED[chosen]}")
    print("Commands are completed in new shells. Run this again after an update of poa.")


def with_files(script: str, shell: Shell) -> str:
    """The script, completing names of files where cyclopts has nothing to offer: paths are texts to our commands.

    fish and PowerShell do so by themselves.
    """
    if shell == "bash":
        return script.replace("complete -F ", "complete -o default -F ")
    return _ZSH_WITHOUT_ACTION.sub(r"\1:_files\2", script) if shell == "zsh" else script
