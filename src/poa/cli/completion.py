"""Completion of commands and flags by the shell."""

from typing import Literal

from cyclopts.completion import ShellDetectionError, detect_shell

from poa.errors import UserError

Shell = Literal["bash", "zsh", "fish", "powershell"]
LOADED: dict[Shell, str] = {
    "bash": "A line in ~/.bashrc loads it.",
    "zsh": "A line in ~/.zshrc adds its folder to fpath (oh-my-zsh needs none); compinit must be called after it.",
    "fish": "fish loads it from there.",
    "powershell": "A line in the profile of PowerShell loads it.",
}


def install_completion(*, shell: Shell | None = None) -> None:
    """Let the shell complete the commands and flags of poa, with the tab key.

    Args:
        shell: By default the one that this command is run from.
    """
    from poa.cli import app

    try:
        chosen = shell or detect_shell()
    except ShellDetectionError:
        raise UserError(f"The shell was not recognised. Name it with --shell: {', '.join(LOADED)}.") from None
    path = app.install_completion(shell=chosen)
    print(f"Wrote {path}. {LOADED[chosen]}")
    print("Commands are completed in new shells. Run this again after an update of poa.")
