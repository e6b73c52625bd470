"""Prints docs/cli.md from the commands themselves: python docs/generate_cli.py > docs/cli.md"""

import click

from jobs.commands.cli import cli

INTRODUCTION = """\
# The command line

Made from the commands by `make cli-reference`; a test holds that it is up to date.

Exit status: 0 done; 1 could not, with one line that says what, where and what to do; 2 wrong usage;
130 stopped by SIGINT, 143 by SIGTERM. Progress and notes go to stderr, results to stdout.

The Tab key completes commands, options and their values once the shell reads, as it starts, one of:

    eval "$(_QKVMILL_COMPLETE=bash_source qkvmill)"   # ~/.bashrc
    eval "$(_QKVMILL_COMPLETE=zsh_source qkvmill)"    # ~/.zshrc
    _QKVMILL_COMPLETE=fish_source qkvmill | source    # ~/.config/fish/completions/qkvmill.fish
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _section("qkvmill", cli)]
    parts += [_section(f"qkvmill {name}", command) for name, command in cli.commands.items()]
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    context = click.Context(
        command,
        info_name=name,
        terminal_width=100,
        max_content_width=100,
        help_option_names=cli.context_settings["help_option_names"],
    )
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
