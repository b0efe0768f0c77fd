from __future__ import annotations

from durable_endpoints.client.frames import Comment, Frame, FrameParser


def parse(*pieces: bytes) -> list[Frame | Comment]:
    parser = FrameParser()
    return [item for piece in pieces for item in parser.feed(piece)]


TEXT = ": sign\n\nid: 7\nevent: a\ndata: Grüße 🎈\ndata: zwei\n\ndata:x\n\n".encode()
ITEMS = [Comment("sign"), Frame("a", "Grüße 🎈\nzwei", "7"), Frame("message", "x", None)]


def test_every_line_end_at_every_split() -> None:
    for line_end in (b"\n", b"\r\n", b"\r"):
        text = TEXT.replace(b"\n", line_end)
        assert parse(text) == ITEMS
        assert parse(*(bytes([byte]) for byte in text)) == ITEMS
        for split in range(len(text) + 1):
            assert parse(text[:split], text[split:]) == ITEMS
            assert parse(text[:split], b"", text[split:]) == ITEMS


def test_what_the_cut_leaves_behind_is_nothing() -> None:
    whole = b"id: 7\ndata: x\n\n"
    for split in range(len(whole)):
        assert parse(whole[:split]) == []
    assert parse(whole) == [Frame("message", "x", "7")]


def test_a_carriage_return_ends_the_frame_at_once() -> None:
    assert parse(b"data: x\r\n\r") == [Frame("message", "x", None)]
    assert parse(b"data: x\r\n\r", b"\ndata: y\r\r") == [
        Frame("message", "x", None),
        Frame("message", "y", None),
    ]


def test_oddities_of_the_specification() -> None:
    assert parse(b"\xef\xbb\xbfdata: x\n\n") == [Frame("message", "x", None)]
    assert parse(b"data\n\n") == [Frame("message", "", None)]
    assert parse(b"event: lonely\n\ndata: x\n\n") == [Frame("message", "x", None)]
    assert parse(b"retry: 10\nfoo: bar\ndata:  x\n\n") == [Frame("message", " x", None)]
    assert parse(b"id: a\x00b\ndata: x\n\n") == [Frame("message", "x", None)]
    assert parse(b"id\ndata: x\n\n") == [Frame("message", "x", None)]
    assert parse(b"data: \xff\xfe\n\n") == [Frame("message", "��", None)]


def test_a_large_frame_in_small_pieces_takes_linear_time() -> None:
    parser = FrameParser()
    for _ in range(50_000):
        assert not list(parser.feed(b"data: 0123456789"))
    (frame,) = parser.feed(b"\n\n")
    assert isinstance(frame, Frame)
    assert len(frame.data) == 50_000 * 16 - 6
