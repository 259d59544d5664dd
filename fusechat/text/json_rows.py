"""Rows of JSON files, in ranges: a file in; byte ranges of whole rows, and the rows of one range, out.

JSON Lines are cut at line ends, one JSON array between its elements; either way a range is read without what stands before
it, and no more than a range is in memory. A broken line comes out as a DialogueError in the row's stead, so that the
caller can skip it; a broken array raises one.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DialogueError
from .file_range import FileRange
from .row_values import unique_keys

BOM = b"\xef\xbb\xbf"
READ_BYTES = 1 << 20
"""Of an array, read at once; more where one element is longer."""
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


def line_ranges(file: Path, size: int) -> Iterator[FileRange]:
    """Byte ranges of whole lines, of about `size` bytes each."""
    start = position = 0
    line, rows, lines_before, rows_before = 0, 0, 0, 0
    with file.open("rb") as stream:
        for raw in stream:
            position, line = position + len(raw), line + 1
            rows += bool((raw.removeprefix(BOM) if line == 1 else raw).strip())
            if position - start >= size:
                yield FileRange(str(file), "lines", start, position, rows_before, lines_before, rows - rows_before)
                start, lines_before, rows_before = position, line, rows
    if position > start:
        yield FileRange(str(file), "lines", start, position, rows_before, lines_before, rows - rows_before)


def rows_of_lines(part: FileRange) -> Iterator[tuple[str, Any]]:
    """The rows of one range of a JSON Lines file, each with its place."""
    file, position, number = Path(part.path), part.start, part.lines_before
    with file.open("rb") as stream:
        stream.seek(part.start)
        while position < part.stop and (raw := stream.readline()):
            number += 1
            line = raw.removeprefix(BOM) if number == 1 else raw
            if line.strip():
                yield f"{file}:{number}", _parsed_line(line, position + len(raw) - len(line))
            position += len(raw)


def _parsed_line(line: bytes, position: int) -> Any:
    """The row, or the DialogueError that says why there is none. `position`: byte offset of the line in its file."""
    try:
        # Without its line end, so that the column counts on this line.
        return json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        return DialogueError(_not_utf8(error, position))
    except (ValueError, RecursionError) as error:  # ValueError also stands for numbers of absurd length
        return DialogueError(
            f"broken JSON ({_json_fault(error)}), expected one whole JSON object per line; repair or remove the line"
        )


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _not_utf8(error: UnicodeDecodeError, position: int) -> str:
    return (
        f"byte {error.object[error.start]:#04x} at byte offset {position + error.start} is not UTF-8 ({error.reason}), "
        "expected UTF-8 text; convert the file, e.g. with iconv"
    )


class _Window:
    """The part of a JSON array's text that is looked at; what was read past is let go."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._size = READ_BYTES
        self.text, self.place = "", 0
        self._bytes_before, self._lines_before, self._bytes_read = 0, 0, 0
        self._ended = False
        self._fill()
        if self.text.startswith("\ufeff"):
            self.place = 1

    def _fill(self) -> None:
        """Read on, and drop the text before the place."""
        passed = self.text[: self.place]
        self._bytes_before += len(passed.encode())
        self._lines_before += passed.count("\n")
        data = self._stream.read(self._size)
        pending = len(self._decode.getstate()[0])
        try:
            more = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise DialogueError(f"{self._file}: {_not_utf8(error, self._bytes_read - pending)}") from None
        self._bytes_read += len(data)
        self.text, self.place, self._ended = self.text[self.place :] + more, 0, not data
        self._size = max(READ_BYTES, len(self.text))  # doubles while one element does not fit

    def skip_space(self) -> None:
        while True:
            self.place = after_space(self.text, self.place)
            if self.place < len(self.text) or self._ended:
                return
            self._fill()

    def take(self, mark: str) -> bool:
        """Go past a character if it is the next."""
        is_next = self.text.startswith(mark, self.place)
        self.place += is_next
        return is_next

    def skip_element(self) -> None:
        """Go past one element, whatever it holds."""
        while True:
            try:
                _, end = self._json.raw_decode(self.text, self.place)
                if end < len(self.text) or self._ended:
                    self.place = end
                    return
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.broken(error.pos, _json_fault(error)) from None
            except (ValueError, RecursionError) as error:
                raise self.broken(self.place, _json_fault(error)) from None
            self._fill()

    @property
    def is_at_end(self) -> bool:
        return self.place == len(self.text)

    @property
    def line(self) -> int:
        """Lines before the place."""
        return self._lines_before + self.text.count("\n", 0, self.place)

    @property
    def position(self) -> int:
        """Bytes before the place."""
        return self._bytes_before + len(self.text[: self.place].encode())

    def broken(self, place: int, fault: str) -> DialogueError:
        return broken_array(self._file, self._lines_before + self.text.count("\n", 0, place) + 1, fault)


def array_ranges(file: Path, size: int) -> Iterator[FileRange]:
    """Byte ranges of whole elements of one JSON array, of about `size` bytes each.

    Raises:
        DialogueError: the file is not one whole JSON array.
    """
    rows = rows_before = 0
    with file.open("rb") as stream:
        window = _Window(file, stream)
        window.skip_space()
        window.take("[")
        window.skip_space()
        start, lines_before = window.position, window.line
        while not window.take("]"):
            if rows and not window.take(","):
                raise window.broken(window.place, "expected ',' or ']'")
            window.skip_space()
            if rows == rows_before:
                start, lines_before = window.position, window.line
            window.skip_element()
            rows += 1
            stop = window.position
            window.skip_space()
            if stop - start >= size:
                yield FileRange(str(file), "array", start, stop, rows_before, lines_before, rows - rows_before)
                rows_before = rows
        if rows > rows_before:
            yield FileRange(str(file), "array", start, stop, rows_before, lines_before, rows - rows_before)
        window.skip_space()
        if not window.is_at_end:
            raise window.broken(window.place, "text after the array's end")


def rows_of_array(part: FileRange) -> Iterator[tuple[str, Any]]:
    """The elements of one range of a JSON array, each with its place.

    Raises:
        DialogueError: an element that `array_ranges` lets pass: one that has a key twice.
    """
    file = Path(part.path)
    with file.open("rb") as stream:
        stream.seek(part.start)
        text = stream.read(part.stop - part.start).decode()
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    position, line, counted, number = 0, part.lines_before + 1, 0, part.rows_before
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        number += 1
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise broken_array(file, line, _json_fault(error)) from None
        yield f"{file}:{line} (row {number})", row
        position = after_space(text, position)
        position = after_space(text, position + text.startswith(",", position))


def after_space(text: str, position: int) -> int:
    """The first place from `position` on that is no white space."""
    match = _JSON_SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def broken_array(file: Path, line: int, fault: str) -> DialogueError:
    """The error of an array that cannot be read on."""
    return DialogueError(f"{file}:{line}: broken JSON ({fault}), expected one JSON array of dialogues; repair the file")
