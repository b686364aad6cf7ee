"""For mkdocs: what pages link to outside of docs/ (examples, tests, CONTRIBUTING.md) becomes a page of the site."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files, InclusionLevel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = "project"
"""Where files from outside of docs/ are in the site."""
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "examples/systemd/README.md")
"""Files from outside of docs/ that the navigation names."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
_FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
_WHOLE = r'<span class="option">\g<0></span>'
_NOT_SEARCHED = "---\nsearch: { exclude: true }\n---\n\n"
_LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file that a page links to, and that is not in docs/; and for what those link to."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    known = {_site_uri(path) for path in pages}
    wanted = list(ALWAYS)
    while pages or wanted:
        wanted += _targets(pages.pop()) if pages else ()
        while wanted:
            target = wanted.pop()
            if _site_uri(target) in known or target.startswith("docs/") or not (ROOT / target).exists():
                continue
            known.add(_site_uri(target))
            files.append(_page(target, config))
            if target.endswith(".md"):
                pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Let links lead to where their files are in the site."""
    here = _source(page.file.src_uri)
    if here is None:
        return markdown
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: _rewritten(link[1], here), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs names them
    """Show docstrings without the marks that Python's own help is for, `a|b` in tables right, and options whole."""
    html = re.sub(r"<code>[^<]*</code>", lambda code: _OPTION.sub(_WHOLE, code[0].replace("\\|", "|")), html)
    html = re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", html)
    return html.replace("::</p>", ":</p>")


def _targets(path: str) -> Iterable[str]:
    """The files that a page links to, from the checkout's root."""
    for part in _FENCE.split((ROOT / path).read_text())[::2]:
        for link in _LINK.findall(part):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _site_uri(path: str) -> str:
    """Where a file of the checkout is in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{OUTSIDE}/{path}/README.md"
    return f"{OUTSIDE}/{path}" if path.endswith(".md") else f"{OUTSIDE}/{path}.md"


def _source(uri: str) -> str | None:
    """The file of the checkout that a page is of; None for a page that shows a file or a folder."""
    path = uri.removeprefix(f"{OUTSIDE}/")
    if path == uri:
        return f"docs/{uri}"
    return path if (ROOT / path).is_file() else None


def _rewritten(link: str, here: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    if not (ROOT / target).exists():
        return link  # mkdocs tells of it
    return os.path.relpath(_site_uri(target), posixpath.dirname(_site_uri(here)))


def _page(path: str, config: MkDocsConfig) -> File:
    uri = _site_uri(path)
    if uri == f"{OUTSIDE}/{path}":
        return File.generated(config, uri, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    return File.generated(config, uri, content=_shown(path), inclusion=InclusionLevel.NOT_IN_NAV)


def _shown(path: str) -> str:
    """A page that shows a file, or lists a folder; search leaves it out."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith(("_", ".")))
        return f"{_NOT_SEARCHED}# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = _LANGUAGES.get(place.suffix, "text")
    return f"{_NOT_SEARCHED}# {path}\n\n````{language}\n{place.read_text()}````\n"
