"""Extracts the text of Bleak House from ELTeC: one paragraph per line, separated by empty lines.

    python docs/sinks/bleak_house.py ENG18530_Dickens.xml bleak_house.txt

The XML is level1/ENG18530_Dickens.xml of https://github.com/COST-ELTeC/ELTeC-eng (commit 3db3b67).
"""

import sys
import xml.etree.ElementTree as ElementTree
from hashlib import sha256
from pathlib import Path

TEI = "{http://www.tei-c.org/ns/1.0}"
TEXT = ("head", "p", "l", "trailer")  # elements that contain text
PRINTERS = "LONDON: BRADBURY AND EVANS, PRINTERS, WHITEFRIARS."
SHA256 = "49f170897b518341b6685221fdc3f7658540bfb856b9952ab132cd685dd9a816"


def paragraphs(xml: str) -> list[str]:
    """The headings, paragraphs and verses of the novel, without title page, preface and the printers' line."""
    body = ElementTree.fromstring(xml).find(f".//{TEI}body")
    assert body is not None, "no TEI document"
    found = ["".join(one.itertext()).split() for one in body.iter() if one.tag.removeprefix(TEI) in TEXT]
    return [line for words in found if (line := " ".join(words)) and line != PRINTERS]


def main(source: Path, out: Path) -> None:
    """Write the text, and report if it differs from the text used for the plots."""
    text = ("\n\n".join(paragraphs(source.read_text(encoding="utf-8"))) + "\n").encode()
    out.write_bytes(text)
    same = sha256(text).hexdigest() == SHA256
    print(f"wrote {len(text)} bytes{'' if same else ', which are not those of the pictures'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
