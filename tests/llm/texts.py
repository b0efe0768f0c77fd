"""What the models say."""

WHALES = (
    "Whales are large.\n\nThey sing: event: inngest.response\ndata: [DONE]\n\nid: 7\r\n"
    'in one line of "text" \\n with \t tabs, ends of lines\u2028of other kinds\x85and a 🐋, '
    "again and again and again, and then they dive — for an hour or two.\n"
)
"""With much in it that means something on the wire."""

SCRIPTS = (
    "Où sont les baleines ? Größe, čeština, Ελληνικά. "
    "鯨は歌う。고래는 노래한다. الحيتان تغني. "
    "e\u0301 is not é; 🐋🏽 and 👩‍👩‍👧‍👦 are one each; 🇪🇺 are two. \U00020000"
)
"""Characters of one, two, three and four bytes, some of which belong together."""

SIZES = (2, 3, 1_000)
"""Of the pieces in which SCRIPTS is sent."""


def uncut(text: str, size: int) -> str:
    """`text` with spaces, so that no character is cut after each `size` units of UTF-16."""
    units, result = 0, ""
    for character in text:
        if character > "\uffff" and units % size == size - 1:
            result += " "
            units += 1
        result += character
        units += 2 if character > "\uffff" else 1
    return result
