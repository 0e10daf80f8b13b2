"""Small PDF files, written by hand so that tests need no PDF library but the one under test."""

from __future__ import annotations

import struct
import zlib


def make_pdf(
    texts: list[str],
    *,
    size_pt: tuple[float, float] = (200, 100),
    encrypted: bool = False,
    user_unit: bytes = b"",
    is_compressed: bool = False,
) -> bytes:
    """One page per text.

    `encrypted` adds an unknown password, `user_unit` a unit to each page; `is_compressed` stores objects as
    most programs do since PDF 1.5.
    """
    unit = f"/UserUnit {user_unit.decode()} " if user_unit else ""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(texts)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(texts)} /Kids [{kids}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, text in enumerate(texts):
        content = f"BT /F1 24 Tf 10 20 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R {unit}/MediaBox [0 0 {size_pt[0]} {size_pt[1]}] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * index} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    if is_compressed:
        return _compressed(objects)
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R"
    if encrypted:
        key = "00" * 32
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{key}> /U <{key}> >>")
        trailer = f"/Size {len(objects) + 1} /Root 1 0 R /Encrypt {len(objects)} 0 R /ID [<00> <00>]"
    body = "%PDF-1.4\n"
    offsets = []
    for number, text in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    start = len(body)
    body += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return (body + f"trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n").encode()


def _compressed(objects: list[str]) -> bytes:
    """All objects that are no streams in one stream, and the table of objects as another."""
    plain = [number for number, text in enumerate(objects, 1) if "endstream" not in text]
    texts = [objects[number - 1] + " " for number in plain]
    starts = [sum(map(len, texts[:index])) for index in range(len(texts))]
    head = " ".join(f"{number} {start}" for number, start in zip(plain, starts, strict=True)) + " "
    packed = zlib.compress((head + "".join(texts)).encode())
    body = bytearray(b"%PDF-1.6\n")
    places: dict[int, int] = {}
    holder, table = len(objects) + 1, len(objects) + 2
    for number, text in enumerate(objects, 1):
        if number not in plain:
            places[number] = len(body)
            body += f"{number} 0 obj\n{text}\nendobj\n".encode()
    places[holder] = len(body)
    entries = f"/Type /ObjStm /N {len(plain)} /First {len(head)} /Filter /FlateDecode /Length {len(packed)}"
    body += f"{holder} 0 obj\n<< {entries} >>\nstream\n".encode() + packed + b"\nendstream\nendobj\n"
    places[table] = len(body)
    rows = struct.pack("!BIH", 0, 0, 65535)
    for number in range(1, table + 1):
        is_packed = number in plain
        rows += struct.pack(
            "!BIH",
            2 if is_packed else 1,
            holder if is_packed else places[number],
            plain.index(number) if is_packed else 0,
        )
    entries = f"/Type /XRef /Size {table + 1} /W [1 4 2] /Root 1 0 R /Length {len(rows)}"
    start = len(body)
    body += f"{table} 0 obj\n<< {entries} >>\nstream\n".encode() + rows + b"\nendstream\nendobj\n"
    return bytes(body) + f"startxref\n{start}\n%%EOF\n".encode()
