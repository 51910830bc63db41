"""The documentation against the repository: links lead somewhere, and the commands it shows are commands."""

import itertools
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

from dfkd.cli import app
from dfkd.cli_bank import bank_app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("config", "data", "results")), *ROOT.glob("docs/**/*.md")]
)
HELP = {"--help", "-h"}


def names_of_pages():
    return [str(page.relative_to(ROOT)) for page in PAGES]


def prose(text):
    """The page without fenced and indented code, code spans and comments."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def code_lines(text):
    """The lines of fenced and of indented code blocks, continued ones joined."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands(text):
    """Every `dfkd …` of the code blocks as words, those within `$( … )` included."""
    found = []
    for line in code_lines(text):
        for part in [re.sub(r"\$\([^)]*\)", "INNER", line), *re.findall(r"\$\(([^)]*)\)", line)]:
            lexer = shlex.shlex(part, posix=True, punctuation_chars=";|&")
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # no shell: a stray quote
                continue
            for end, sequence in itertools.groupby(words, lambda word: set(word) <= set(";|&")):
                command = list(sequence)
                if not end and command[0] == "dfkd" and command[1:] and command[1][0] != ":":
                    found.append(command[1:])
    return found


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree():
    """All commands: words → click command."""
    root = typer.main.get_command(app)
    groups = {**root.commands, "bank": typer.main.get_command(bank_app)}

    def leaves(words, command):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from leaves((*words, name), inner)
        else:
            yield words, command

    return dict(itertools.chain.from_iterable(leaves((name,), command) for name, command in groups.items()))


COMMANDS = tree()


def fault(words):
    """What is wrong with a command line, or None. The command itself is not run."""
    names = next((tuple(words[:length]) for length in (1, 2) if tuple(words[:length]) in COMMANDS), None)
    if names is None:
        return "unknown command"
    command, arguments = COMMANDS[names], words[len(names) :]
    if HELP.intersection(arguments):
        return None
    try:
        command.make_context(" ".join(names), list(arguments))
    except Exception as error:  # click's UsageError, which typer brings along under its own name
        return str(error) or type(error).__name__
    return None


@pytest.mark.parametrize("name", names_of_pages())
def test_links_lead_to_something(name):
    page = ROOT / name
    text = prose(page.read_text())
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / unquote(path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", names_of_pages())
def test_commands_are_commands(name):
    faults = [(" ".join(words), fault(words)) for words in commands((ROOT / name).read_text())]
    assert [item for item in faults if item[1]] == []


def test_every_command_has_an_example():
    shown = commands((ROOT / "docs/command-line.md").read_text())
    assert [names for names in COMMANDS if not any(tuple(words[: len(names)]) == names for words in shown)] == []


def test_every_page_is_in_the_table_of_contents():
    linked = {
        (ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs/index.md").read_text())
    }
    assert [str(page) for page in ROOT.glob("docs/**/*.md") if page not in linked and page.name != "index.md"] == []


def test_the_checks_find_faults():
    text = (
        "x\n\n    dfkd bank info a.lmdb --jsn | less\n"
        '    dfkd init-bank --settings "$(dfkd setings a)" \\\n      --teacher t -o b\n'
    )
    found = commands(text)
    assert found == [
        ["bank", "info", "a.lmdb", "--jsn"],
        ["init-bank", "--settings", "INNER", "--teacher", "t", "-o", "b"],
        ["setings", "a"],
    ]
    assert [bool(fault(words)) for words in found] == [True, False, True]
    assert fault(["distill", "--teacher", "t"])  # options are missing
    assert fault(["distill", "--help"]) is None
    assert prose("[a](b) `[c](d)`\n<!-- [e](f) -->\n    [g](h)\n") == "[a](b) code\n\n\n"
