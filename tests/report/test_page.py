import json
import re

from poa.report.page import html
from report.pages import FEW, HOSTILE, page, point


def test_the_page_holds_all_it_needs() -> None:
    text = html(HOSTILE, "about", page(point("64x3", 1.0, 70.0), others=(HOSTILE,)))
    assert not re.search(r"@[A-Z_]+@", text), "every part is filled in"
    assert text.count("<script") == text.count("</script>") == 2
    assert text.count("<img") == 0
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "&lt;/script&gt;&lt;img src=x" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy[1]


def test_data_are_what_was_given() -> None:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', html("t", "a", FEW), re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert data["points"][0]["scores"] == {"top1@20": 70.0, "linear top1": 30.0}
    assert "ms 0" not in data["points"][5]["costs"]
    assert data["points"][3]["intervals"]["top1@20"] == [73.6, 75.6]
    assert data["notes"] == [HOSTILE]
