"""What the site shows from outside of docs/: README.md is its home page, and examples are pages.

Links in Markdown lead from file to file of the repository, so that they are right where the
repository is read; here they are made to lead from page to page. Where a linked file is no page,
its name stays, without the link.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parent.parent
MARKDOWN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/benchmarks": "benchmarks.md",
}
"""From a file, or the folder whose README.md it is, to its page."""

EXAMPLES = sorted(REPOSITORY.glob("examples/*.py"))
FOLDERS = [REPOSITORY / "examples" / name for name in ("ci", "cluster")]
CODE = {
    path.relative_to(REPOSITORY).as_posix(): f"{path.relative_to(REPOSITORY).as_posix()}.md"
    for path in EXAMPLES + FOLDERS
}
LANGUAGES = {".py": "python", ".sh": "bash", ".slurm": "bash", ".yaml": "yaml", ".yml": "yaml"}
LINK = re.compile(r"```.*?```|\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)", re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages whose files lie outside of docs/."""
    for source, page in MARKDOWN.items():
        path = REPOSITORY / source
        text = (path / "README.md" if path.is_dir() else path).read_text()
        files.append(File.generated(config, page, content=text))
    for source, page in CODE.items():
        files.append(File.generated(config, page, content=_code(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text, with links that lead to pages."""
    here = page.file.src_uri
    if here in CODE.values():
        return markdown
    sources = {shown: source for source, shown in MARKDOWN.items()}
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))

    def follow(link: re.Match[str]) -> str:
        if link["path"] is None:
            return link[0]
        target = posixpath.normpath(posixpath.join(folder, link["path"]))
        shown = {**MARKDOWN, **CODE}.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(shown) is None:
            return link["text"]
        shown = posixpath.relpath(shown, posixpath.dirname(here) or ".")
        return f"[{link['text']}]({shown}{link['anchor'] or ''})"

    return LINK.sub(follow, markdown)


def _code(path: Path) -> str:
    """A page that shows a file, or each file of a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    blocks = [f"# {path.name}"]
    for file in files:
        blocks += [f"## {file.name}"] if path.is_dir() else []
        blocks += [f"````{LANGUAGES[file.suffix]}\n{file.read_text()}````"]
    return "\n\n".join(blocks) + "\n"
