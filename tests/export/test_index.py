"""The page about many runs: everything is escaped, and nothing but the runs' files is linked."""

from html.parser import HTMLParser

from dreamjax.export.index import Entry, index_html, summary, write_index

EVIL = """<script>alert('x')</script> "onload='y' </title>&amp;<img src=http://evil/x>"""
LOADING = {"href", "src", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Collects the tags with their attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self):
        return {tag for tag, _ in self.tags}

    def links(self):
        return [v for _, attrs in self.tags for k, v in attrs.items() if k in LOADING]


def make_run(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_a_run_in_every_state(tmp_path):
    done = make_run(tmp_path / "001-a", "views.png", "mesh.png", "mesh.glb", "report.html")
    begun = make_run(tmp_path / "my run #2?", "views.png", "config.json")
    entries = [
        Entry("a red ball", done, "done", 61.0),
        Entry(EVIL, begun, "running", 5.0),
        Entry("a red dragon", tmp_path / "003", "failed", 0.0, f"'dragon' {EVIL}"),
        Entry("a cube", tmp_path / "004", "waiting"),
    ]
    write_index(tmp_path / "index.html", entries)
    html = (tmp_path / "index.html").read_text("utf-8")
    page = Page(html)
    assert page.links() == [
        "001-a/report.html",
        "001-a/mesh.glb",
        "001-a/views.png",
        "001-a/mesh.png",
        "my%20run%20%232%3F/views.png",
        "my%20run%20%232%3F/views.png",
    ]
    assert "script" not in page.names() and "url(" not in html and "@import" not in html
    assert page.names() >= {"title", "section", "img"}
    assert f"2. {EVIL}" in page.text and f"'dragon' {EVIL}" in page.text
    assert "done · 1 min 1 s" in page.text and "1 done, 1 failed, 1 running, 1 waiting" in page.text
    classes = [attrs["class"] for tag, attrs in page.tags if tag == "section"]
    assert classes == ["done", "running", "failed", "waiting"]


def test_the_page_reloads_only_while_something_runs(tmp_path):
    for state, reloads in ("running", 1), ("done", 0), ("stopped", 0), ("failed", 0):
        page = Page(index_html([Entry("a", tmp_path / "1", state)], tmp_path))
        assert sum(a.get("http-equiv") == "refresh" for _, a in page.tags) == reloads


def test_summary(tmp_path):
    states = ["waiting", "failed", "done", "failed"]
    assert summary([Entry("a", tmp_path, s) for s in states]) == "1 done, 2 failed, 1 waiting"
