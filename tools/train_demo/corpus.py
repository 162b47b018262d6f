"""Builds the demo model's text corpus from documentation that Debian packages ship.

Downloads the packages named in PACKAGES with `apt-get download`, unpacks them (nothing is installed), keeps the
English prose of their HTML pages (headings and sentences; no code blocks, tables, menus or indexes), drops repeated
paragraphs, and splits whole pages into a training and a held-out part. The split depends only on a hash of the
page's name, so it is the same on every machine that sees the same packages.

    python corpus.py --work WORK_DIR

writes WORK_DIR/train.txt, WORK_DIR/heldout.txt (pages separated by a 0x1E byte) and WORK_DIR/corpus.json (versions,
licences and sizes).
"""

import argparse
import hashlib
import json
import pathlib
import re
import subprocess
import unicodedata

import lxml.html

# Package, licence of its documentation (from the package's debian/copyright), glob of its English pages.
PACKAGES = [
    ("postgresql-doc-15", "PostgreSQL", "**/*.html"),
    ("sqlite3-doc", "public domain", "**/*.html"),
    ("apache2-doc", "Apache-2.0", "**/en/**/*.html"),
    ("python-django-doc", "BSD-3-Clause", "**/*.html"),
    ("python-sqlalchemy-doc", "MIT", "**/*.html"),
    ("git-doc", "GPL-2", "**/*.html"),
    ("bind9-doc", "MPL-2.0", "**/*.html"),
    ("postfix-doc", "EPL-2.0 or IPL-1.0", "**/*.html"),
    ("exim4-doc-html", "GPL-2+", "**/*.html"),
    ("debian-policy", "GPL-2+", "**/*.html"),
    ("debian-handbook", "GPL-2+ or CC-BY-SA-3.0+", "**/en-US/**/*.html"),
    ("debian-reference-en", "GPL-2+", "**/*.en.html"),
    ("developers-reference", "GPL-2+", "**/*.html"),
    ("debian-faq", "own copyleft (see its copyright file)", "**/*.html"),
    ("harden-doc", "GPL-2+", "**/en-US/**/*.html"),
    ("installation-guide-amd64", "GPL-2", "**/en/**/*.html"),
    ("apt-doc", "GPL-2+", "**/guide.html/*.html"),
    ("aptitude-doc-en", "GPL-2+", "**/*.html"),
]

PAGE_SEPARATOR = "\x1e"
HELDOUT_PER_MILLE = 70  # share of pages, by hash, that are never trained on
BLOCK_TAGS = {"p", "dd", "li"}
HEADING_TAGS = {"h1", "h2", "h3", "h4"}
SKIP_TAGS = {"pre", "table", "script", "style", "nav", "header", "footer", "form", "head", "svg", "math", "noscript"}
SKIP_CLASSES = ("sphinxsidebar", "related", "navheader", "navfooter", "toc", "footer", "highlight", "index", "breadcrumb",
                "headerlink", "menu", "nav", "search", "sidebar", "qa", "copyright", "revision", "author", "address",
                "hdlist", "genindextable", "toctree-wrapper", "legalnotice", "synopsis", "programlisting", "screen")
STOP_WORDS = frozenset("""the of a an and or to in is are be by for with that this it as on can if not from at which you
will when was has have but its must may any all use used these there then than so your no one other should do does
such only they their what how into been would also more""".split())


def fetch_packages(work):
    """Downloads and unpacks the packages; returns {package: version}."""
    debs, versions = work / "debs", {}
    debs.mkdir(parents=True, exist_ok=True)
    for name, _, _ in PACKAGES:
        found = sorted(debs.glob(name + "_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", "-qq", name], cwd=debs, check=True)
            found = sorted(debs.glob(name + "_*.deb"))
        versions[name] = found[-1].name.split("_")[1].replace("%3a", ":")
        tree = work / "x" / name
        if not tree.exists():
            tree.mkdir(parents=True)
            subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(tree)], check=True)
    return versions


PUNCTUATION = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": " - ", "…": "...", "\u00a0": " ",
                             "\u00b6": "", "\uf0c1": "", "\u200b": "", "¶": "", "−": "-", "‐": "-", "‑": "-"})


def clean(text):
    text = unicodedata.normalize("NFC", text).translate(PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()


def is_prose(text):
    """True for a paragraph of English sentences."""
    if len(text) < 50 or len(text) > 4000 or text[-1] not in ".!?:)\"'" or not (text[0].isupper() or text[0] in "\"'("):
        return False
    plain = sum(c.isalpha() or c == " " for c in text)
    if plain < 0.88 * len(text) or any(ord(c) > 0x24F for c in text):
        return False
    words = re.findall(r"[a-z']+", text.lower())
    if len(words) < 8 or max(len(w) for w in text.split()) > 45:
        return False
    return sum(w in STOP_WORDS for w in words) >= 0.22 * len(words)


def is_heading(text):
    return 3 <= len(text) <= 70 and sum(c.isalpha() or c == " " for c in text) >= 0.85 * len(text)


def blocks(node):
    """Yields (kind, text) of a page in reading order, leaving out what is not prose."""
    tag = node.tag if isinstance(node.tag, str) else ""
    tag = tag.rsplit("}", 1)[-1]
    if not tag or tag in SKIP_TAGS:
        return
    classes = (node.get("class") or "") + " " + (node.get("id") or "")
    if any(c in classes.lower().split() for c in SKIP_CLASSES):
        return
    if tag in HEADING_TAGS or (tag == "title" and node.getparent() is not None and tag != "html"):
        yield "heading", clean(node.text_content())
        return
    is_block = tag in BLOCK_TAGS or (tag == "div" and "para" in classes.split())
    if is_block and not any(c.tag in ("p", "ul", "ol", "dl", "pre", "div", "table") for c in node.iterdescendants()):
        yield "text", clean(node.text_content())
        return
    for child in node:
        yield from blocks(child)


def page_text(path, seen):
    """The prose of one page, or ''. `seen` holds hashes of the paragraphs already taken."""
    try:
        root = lxml.html.document_fromstring(path.read_bytes().decode("utf-8", "replace").encode(),
                                             parser=lxml.html.HTMLParser(encoding="utf-8", remove_comments=True))
    except (lxml.etree.ParserError, ValueError):
        return ""
    lines, pending, body = [], None, 0
    for kind, text in blocks(root.find("body") if root.find("body") is not None else root):
        if kind == "heading":
            text = re.sub(r"^(Chapter|Appendix|Section)?\s*[A-Z]?[\d.]+\s*", "", text).strip(" .:")
            pending = text if is_heading(text) else None
        elif is_prose(text):
            key = hashlib.blake2b(re.sub(r"[\W\d]+", "", text.lower()).encode(), digest_size=8).digest()
            if key in seen:
                continue
            seen.add(key)
            if pending:
                lines.append(pending)
            pending = None
            lines.append(text)
            body += len(text)
    return "\n\n".join(lines) if body >= 300 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    work = parser.parse_args().work
    versions = fetch_packages(work)
    seen, parts, report = set(), {"train": [], "heldout": []}, []
    for name, licence, pattern in PACKAGES:
        tree, sizes = work / "x" / name, {"train": 0, "heldout": 0}
        for path in sorted(p for p in tree.glob(pattern) if p.is_file() and not p.is_symlink()):
            text = page_text(path, seen)
            if not text:
                continue
            digest = hashlib.sha256(f"{name}/{path.relative_to(tree)}".encode()).digest()
            part = "heldout" if int.from_bytes(digest[:4], "big") % 1000 < HELDOUT_PER_MILLE else "train"
            parts[part].append((hashlib.sha256(digest).digest(), text))
            sizes[part] += len(text.encode())
        report.append({"package": name, "version": versions[name], "licence": licence, **sizes})
        print(f"{name:28} {sizes['train'] / 1e6:7.3f} MB train {sizes['heldout'] / 1e6:7.3f} MB held out", flush=True)
    for part, pages in parts.items():
        pages.sort()  # by hash: a fixed shuffle
        (work / f"{part}.txt").write_text(PAGE_SEPARATOR.join(text for _, text in pages), encoding="utf-8")
        print(part, len(pages), "pages,", (work / f"{part}.txt").stat().st_size / 1e6, "MB")
    (work / "corpus.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
