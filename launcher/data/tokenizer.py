"""What of tokenizers needs Python. A part of the fusedbun binary, which runs it as `python -c` (python_program.h).

Messages on standard input and output: 32 bits, little endian, that say how many bytes follow, then those. A Refusal is what the caller
or the data is to blame for: its sentence goes to standard error, its code is the exit code.
"""

import sys

sys.path[:] = [folder for folder in sys.path if folder]  # python -c would import modules from the folder in which it was started

import bisect  # noqa: E402
import datetime  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import stat  # noqa: E402
import struct  # noqa: E402
import zlib  # noqa: E402
from array import array  # noqa: E402

DATA, IO, CONFIG = 65, 74, 78  # exit codes
PIECE_BYTES = 256 << 10  # read at once
PROBE_BYTES = 8 << 10  # of which a NUL tells binary from text, as git does
DOCUMENT_BYTES_MAX = 16 << 20  # encoding takes about two hundred times as much memory for a moment
BATCH_BYTES = 1 << 20  # of documents that are encoded at once, on all cores
DOCUMENT_OVERHEAD = 256  # what one counts for beside its text, in a batch
BINARY = "binary files"
ZSTD_STARTS = b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"  # a frame, and one to be skipped, with which pzstd begins
OTHER_FORMATS = {b"PK\x03\x04": "packed by zip", b"PAR1": "in Parquet's format", b"\xff\xfe": "in UTF-16", b"\xfe\xff": "in UTF-16",
                 b"BZh": "compressed by bzip2", b"\xfd7zXZ": "compressed by xz"}


class Refusal(Exception):
    def __init__(self, code, sentence):
        super().__init__(sentence)
        self.code = code


def read_message():
    """The next message as bytes; None at the end of the input."""
    header = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack("<I", header)[0]) if len(header) == 4 else None


def write_message(*parts):
    """Sends one message, which is these parts one after the other. In one write: with PYTHONUNBUFFERED each is a call of the system, and who
    has read the length of an empty message may be gone before its nothing is written. Then one may also write less than it was given."""
    rest = memoryview(b"".join((struct.pack("<I", sum(map(len, parts))), *parts)))
    while rest:
        rest = rest[sys.stdout.buffer.write(rest):]
    sys.stdout.buffer.flush()


def need(module, wheel):
    """Imports a module that is not Python's own."""
    try:
        return __import__(module)
    except ImportError as error:
        raise Refusal(CONFIG, f"{sys.executable} has no {wheel} ({error}): {sys.executable} -m pip install {wheel}; "
                              "FUSEDBUN_PYTHON names another Python") from None


def read_json(path):
    """What is in a JSON file; an empty object if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Refusal(DATA, f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise Refusal(DATA, f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refusal(DATA, f"{path} is no JSON object")
    return found


def printable(path):
    """A file's name as text: its bytes need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# --- Tokenizers

class Bytes:
    """Tokens are the bytes of the text."""
    size, eos, prefix, suffix, text_errors = 256, None, [], [], "surrogateescape"

    class Encoding:
        def __init__(self, text):
            self.ids = list(text.encode("utf-8", "surrogateescape"))

    def encode(self, texts, with_offsets):
        return map(self.Encoding, texts)

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")

    def require_eos(self):
        return None

    def describe(self):
        return {"tokenizer": "bytes", "vocabulary_size": self.size}

    def render(self, place, messages, tools, add_generation_prompt=False):
        raise Refusal(DATA, f"{place}: chats need a tokenizer with a chat template, and bytes have none")


class Tokenizer:
    """A folder with tokenizer.json, or that file: its `encoder` (a tokenizers.Tokenizer) and what the files beside it say."""
    text_errors = "strict"

    def __init__(self, place):
        self.file = os.path.join(place, "tokenizer.json") if os.path.isdir(place) else place
        self.folder = os.path.dirname(self.file)
        if not os.path.isfile(self.file):
            raise Refusal(DATA, f"there is no tokenizer at {self.file}")
        tokenizers = need("tokenizers", "tokenizers")
        try:
            self.encoder = tokenizers.Tokenizer.from_file(self.file)
        except Exception as error:  # the package raises nothing narrower
            raise Refusal(DATA, f"{self.file} is no tokenizer: {error}") from None
        self.encoder.no_truncation()
        self.encoder.no_padding()
        self.prefix, self.suffix = self._special_tokens_around()
        # Adds nothing, and leaves blanks in the offsets, which say where the assistant's turns begin.
        self.encoder.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
        self.config = self.beside("tokenizer_config.json")
        named = {**self.beside("special_tokens_map.json"), **self.config}
        named = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
        self.special_tokens = {name: value for name, value in named.items() if name.endswith("_token") and isinstance(value, str)}
        self.eos = self._eos()
        self.size = self._size()
        self._template = None

    def beside(self, name):
        return read_json(os.path.join(self.folder, name))

    def _special_tokens_around(self):
        """What the tokenizer puts before and after a text."""
        plain = self.encoder.encode("a", add_special_tokens=False).ids
        whole = self.encoder.encode("a").ids
        for begin in range(len(whole) - len(plain) + 1):
            if whole[begin:begin + len(plain)] == plain:
                return whole[:begin], whole[begin + len(plain):]
        raise Refusal(DATA, f"{self.file} changes a text's tokens when it adds special ones, which is not supported")

    def _eos(self):
        token = self.special_tokens.get("eos_token")
        if token is not None:
            if self.encoder.token_to_id(token) is None:
                raise Refusal(DATA, f"{self.folder or '.'}/tokenizer_config.json names eos_token {token}, and {self.file} has no such token")
            return self.encoder.token_to_id(token)
        for name in ("generation_config.json", "config.json"):
            ids = self.beside(name).get("eos_token_id")
            ids = ids[:1] if isinstance(ids, list) else [ids]
            if ids and isinstance(ids[0], int):
                return ids[0]
        return None

    def _size(self):
        """How many ids the tokens are below: the model's where its config.json is there."""
        own = max(self.encoder.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        config = self.beside("config.json")
        size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size", own))
        if own > size:
            raise Refusal(DATA, f"{self.file} has {own} token ids, and the model of the config.json beside it has {size}: "
                                "they are not of one model")
        return size

    def encode(self, texts, with_offsets):
        encode = self.encoder.encode_batch if with_offsets else getattr(self.encoder, "encode_batch_fast", self.encoder.encode_batch)
        return encode(texts, add_special_tokens=False)

    def decode(self, ids):
        return self.encoder.decode(ids, skip_special_tokens=False)

    def require_eos(self):
        if self.eos is None:
            raise Refusal(CONFIG, f"no end-of-sequence token is named beside {self.file} (tokenizer_config.json, generation_config.json, "
                                  "config.json): --no-eos writes documents that end without one")
        return self.eos

    def describe(self):
        return {"tokenizer": printable(self.file), "vocabulary_size": self.size, "eos_token_id": self.eos}

    def render(self, place, messages, tools, add_generation_prompt=False):
        """The text of a chat, as transformers' apply_chat_template makes it."""
        self._template = self._template or self._compiled_template(place)
        # A missing key is what templates can cope with; of a None some write "None".
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return self._template.render(messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
                                         **self.special_tokens)
        except Exception as error:  # a template is a program
            raise Refusal(DATA, f"{place}: the chat template refuses it: {error}") from None

    def _template_text(self):
        try:
            with open(os.path.join(self.folder, "chat_template.jinja"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            text = self.config.get("chat_template")
        if isinstance(text, list):  # of several that have names
            text = next((entry["template"] for entry in text if entry.get("name") == "default"), None)
        return text

    def _compiled_template(self, place):
        text = self._template_text()
        if not isinstance(text, str):
            raise Refusal(DATA, f"{place}: chats need a chat template, and there is none beside {self.file} (chat_template.jinja, or "
                                "chat_template in tokenizer_config.json)")
        jinja2 = need("jinja2", "Jinja2")
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):  # {% generation %} marks the assistant's words, for others than us
            tags = {"generation"}

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        def raise_exception(message):
            raise jinja2.TemplateError(message)

        def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(text)
        except jinja2.TemplateError as error:
            raise Refusal(DATA, f"the chat template beside {self.file} is damaged: {error}") from None


def tokenizer_at(place):
    return Bytes() if place == "bytes" else Tokenizer(place)


# --- Files

class LeftOut(dict):
    """What is not read, by kind: how often, and where first."""

    def add(self, what, place):
        self.setdefault(what, [0, place])[0] += 1

    def listed(self):
        return [{"what": what, "count": count, "first": printable(place)} for what, (count, place) in self.items()]


def files_in(folder, left_out):
    """In order of path."""
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        if entry.is_symlink():
            left_out.add("symbolic links", entry.path)
        elif entry.is_dir():
            if os.access(entry.path, os.R_OK | os.X_OK):
                yield from files_in(entry.path, left_out)
            else:
                left_out.add("folders that are closed to us", entry.path)
        elif not entry.is_file():
            left_out.add("devices, sockets and pipes", entry.path)
        elif entry.name.endswith(".bin.json"):
            left_out.add("reports of fusedbun data tokenize", entry.path)
        else:
            yield entry.path


def files_of(inputs, left_out):
    """Pairs of a file and whether it was found in a folder. All inputs are looked at before any is read."""
    found = []
    for path in inputs:
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                found += [(file, True) for file in files_in(path, left_out)]
            elif stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
                found.append((path, False))
            else:
                raise Refusal(DATA, f"{path} is a device or a socket: give files, folders and pipes")
        except OSError as error:
            raise Refusal(DATA, f"cannot read {error.filename or path}: {error.strerror}") from None
    return found


def bytes_of(path):
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise Refusal(DATA, f"cannot read {path}: {error.strerror}") from None


def with_long_start(pieces):
    """The same bytes; the first piece has enough of them to tell what they are. Always at least one piece."""
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= PROBE_BYTES:
            break
    yield start
    yield from pieces


def decompressed(path, pieces, new_decoder):
    """What one member or frame after the other holds."""
    decoder, is_open = new_decoder(), False
    for piece in pieces:
        while piece := piece if is_open else piece.lstrip(b"\0"):  # tapes are filled with zeros
            try:
                text = decoder.decompress(piece)
            except Exception as error:  # zlib.error, zstandard.ZstdError
                raise Refusal(DATA, f"{path} is damaged: {error}") from None
            if text:
                yield text
            is_open, piece = not decoder.eof, decoder.unused_data if decoder.eof else b""
            if not is_open:
                decoder = new_decoder()
    if is_open:
        raise Refusal(DATA, f"{path} was cut: its compressed data ends too early")


def text_pieces(path):
    """The pieces of a file, decompressed if need be, and why they are no text, or None."""
    pieces = with_long_start(bytes_of(path))
    start = next(pieces)
    new_decoder = None
    if start.startswith(b"\x1f\x8b"):
        def new_decoder(): return zlib.decompressobj(wbits=31)
    elif start.startswith(ZSTD_STARTS):
        new_decoder = need("zstandard", "zstandard").ZstdDecompressor(max_window_size=1 << 31).decompressobj
    if new_decoder:
        pieces = with_long_start(decompressed(path, itertools.chain([start], pieces), new_decoder))
        start = next(pieces)
    kind = next((kind for begin, kind in OTHER_FORMATS.items() if start.startswith(begin)), None)
    if kind is None and b"\0" in start[:PROBE_BYTES]:
        kind = BINARY
    return itertools.chain([start.removeprefix(b"\xef\xbb\xbf")], pieces), kind


def parts_of(path, pieces, separator, remedy):
    """What lies between separators, or, without one, all of it; each with the line at which it begins."""
    rest, line = b"", 1
    for piece in pieces:
        parts = (rest + piece).split(separator) if separator else [rest + piece]
        rest = parts.pop()
        for part in parts:
            yield part, line
            line += part.count(b"\n") + separator.count(b"\n")
        if len(rest) > DOCUMENT_BYTES_MAX:
            raise Refusal(DATA, f"{path}:{line}: a document of more than {DOCUMENT_BYTES_MAX >> 20} MiB{remedy}")
    if rest or not separator:
        yield rest, line


def decoded(path, line, part, errors="strict"):
    try:
        return part.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        line += part[:error.start].count(b"\n")
        raise Refusal(DATA, f"{path}:{line} is no UTF-8 (byte 0x{part[error.start]:02x}): iconv -f LATIN1 -t UTF-8, or whatever it "
                            "is in, converts it") from None


# --- Rows: what files hold, before it is encoded

TEXT, PAIR, CHAT = "text", "prompt and completion", "messages"


def is_chat(value):
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value)


def row_of_json(place, text):
    """The kind of a JSON line, and what it holds: of TEXT a string, of PAIR two strings or two chats, of CHAT a chat; and tools."""
    if text.lstrip().startswith("["):
        raise Refusal(DATA, f"{place} begins a JSON array: a line must be one object (jq -c '.[]' FILE makes that of an array)")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(DATA, f"{place} is no JSON object on one line: {getattr(error, 'msg', error)}{column}") from None
    if not isinstance(row, dict):
        raise Refusal(DATA, f"{place} is no JSON object")
    tools = row.get("tools")
    if "messages" in row:
        if not is_chat(row["messages"]):
            raise Refusal(DATA, f"{place}: messages must be a list of objects, each with a role")
        return CHAT, row["messages"], tools
    if "prompt" in row and "completion" in row:
        pair = row["prompt"], row["completion"]
        if not all(isinstance(each, str) for each in pair) and not all(map(is_chat, pair)):
            raise Refusal(DATA, f"{place}: prompt and completion must be two strings, or two lists of messages")
        return PAIR, pair, tools
    if "text" in row:
        if not isinstance(row["text"], str):
            raise Refusal(DATA, f"{place}: text must be a string")
        return TEXT, row["text"], None
    keys = ", ".join(json.dumps(key) for key in list(row)[:8]) or "none"
    raise Refusal(DATA, f"{place} has neither text, nor prompt and completion, nor messages; its keys: {keys}")


def why_left_out(kind, value):
    """Why a row is no document; None if it is one."""
    if kind == TEXT and not value.strip():
        return "empty documents"
    return "empty completions" if kind == PAIR and value[1] == "" else None


def is_json_lines(path, form):
    name = path.lower().removesuffix(".gz").removesuffix(".zst").removesuffix(".zstd")
    return form == "jsonl" or form == "auto" and name.endswith((".jsonl", ".ndjson", ".json"))


class Reader:
    """Reads the rows of files, and counts what it has read."""

    def __init__(self, form, separator, text_errors="strict"):
        # As printf would write it; what is no ASCII stays as it is.
        self.form, self.text_errors = form, text_errors
        self.separator = separator.replace("\\n", "\n").replace("\\t", "\t").encode("utf-8", "surrogateescape")
        self.left_out = LeftOut()
        self.bytes = 0
        self.kinds = {}  # how many rows there are of each

    def rows(self, inputs):
        """Yields (place, kind, value, tools)."""
        for path, in_folder in files_of(inputs, self.left_out):
            for row in self._rows_of(path, in_folder):
                place, kind, value, _ = row
                if why := why_left_out(kind, value):
                    self.left_out.add(why, place)
                    continue
                self.kinds[kind] = self.kinds.get(kind, 0) + 1
                yield row

    def _counted(self, pieces):
        for piece in pieces:
            self.bytes += len(piece)
            yield piece

    def _rows_of(self, path, in_folder):
        pieces, kind = text_pieces(path)
        pieces = self._counted(pieces)
        if kind and in_folder:
            self.left_out.add(kind, path)
            return
        if kind and (kind != BINARY or self.text_errors == "strict"):  # else tokens are bytes, and who names a file wants them
            raise Refusal(DATA, f"{path} is {'binary' if kind == BINARY else kind}: give text or JSON lines, plain or compressed by gzip or "
                                "zstd")
        if is_json_lines(path, self.form):
            for line, number in parts_of(path, pieces, b"\n", ""):
                if line.strip():
                    place = f"{path}:{number}"
                    yield (place, *row_of_json(place, decoded(path, number, line)))
            return
        for part, number in parts_of(path, pieces, self.separator, ": --separator says what parts the documents in it"):
            try:
                place = f"{path}:{number}" if self.separator else path
                yield place, TEXT, decoded(path, number, part, self.text_errors), None
            except Refusal as refusal:
                if not in_folder or self.separator:
                    raise
                self.left_out.add("files that are no UTF-8", str(refusal).partition(" is no UTF-8")[0])


# --- Documents: rows that are ready to be encoded. Spans are token positions that carry loss; none: all do.

class Text:
    def __init__(self, text, eos):
        self.texts, self.eos = [text], eos

    def tokens(self, tokenizer, encodings):
        ids = tokenizer.prefix + encodings[0].ids + tokenizer.suffix
        return (ids if self.eos is None or ids[-1:] == [self.eos] else ids + [self.eos]), []


class Pair:
    def __init__(self, prompt, completion, eos, loss):
        self.texts, self.eos, self.loss = [prompt, prompt + completion, completion], eos, loss

    def tokens(self, tokenizer, encodings):
        prompt, whole, completion = (encoding.ids for encoding in encodings)
        # The prompt has the tokens that it has alone: those the model sees when it is asked. Where the first letters of the completion
        # would have changed them, the completion is encoded alone too.
        rest = whole[len(prompt):] if whole[:len(prompt)] == prompt else completion
        ids = tokenizer.prefix + prompt + rest + ([] if self.eos is None or rest[-1:] == [self.eos] else [self.eos])
        return ids, [(len(tokenizer.prefix) + len(prompt), len(ids))] if self.loss == "completion" else []


class Chat:
    def __init__(self, text, turns):
        """`turns`: where in the text are the letters that carry loss; None: everywhere."""
        self.texts, self.turns = [text], turns

    def tokens(self, tokenizer, encodings):
        if self.turns is None:
            return encodings[0].ids, []
        # A token belongs to the turn in which it begins: one that begins before is none that the model writes.
        begins = [begin for begin, _ in encodings[0].offsets]
        spans = [(bisect.bisect_left(begins, begin), bisect.bisect_left(begins, end)) for begin, end in self.turns]
        return encodings[0].ids, [span for span in spans if span[0] < span[1]] or None


class Maker:
    """Makes documents of rows."""

    def __init__(self, tokenizer, loss, with_eos):
        self.tokenizer, self.loss, self.with_eos = tokenizer, loss, with_eos

    def document(self, place, kind, value, tools):
        if kind == TEXT:
            return Text(value, self._eos())
        if kind == PAIR and isinstance(value[0], str):
            return Pair(*value, self._eos(), self.loss)
        prompt, completion = value if kind == PAIR else ([], [])
        messages = prompt + completion if kind == PAIR else value
        text = self.tokenizer.render(place, messages, tools)
        if self.loss == "all":
            return Chat(text, None)
        if kind == PAIR:
            return Chat(text, [self._turn(place, text, prompt, messages, tools)])
        turns = [self._turn(place, text, messages[:i], messages[:i + 1], tools)
                 for i, message in enumerate(messages) if message["role"] == "assistant"]
        self._require(place, all(before[1] <= after[0] for before, after in zip(turns, turns[1:])))
        return Chat(text, turns)

    def _eos(self):
        return self.tokenizer.require_eos() if self.with_eos else None

    def _turn(self, place, text, before, upto, tools):
        """Where in the chat's text the messages of `upto` that come after those of `before` are."""
        begin = self.tokenizer.render(place, before, tools, add_generation_prompt=True)
        end = self.tokenizer.render(place, upto, tools)
        self._require(place, text.startswith(begin) and text.startswith(end))
        return len(begin), len(end)

    def _require(self, place, is_prefix):
        if not is_prefix:
            raise Refusal(DATA, f"{place}: the chat template writes the beginning of this chat otherwise when more follows, so the "
                                "assistant's turns cannot be told apart: with --loss all every token carries loss")


# --- Modes: what the program is asked to do

def tokenize(place, loss, eos, form, separator, *inputs):
    """Writes b"H" and a JSON object about the tokenizer; batches; b"R" and a JSON object about what was read. A batch: b"B", 64 bits that
    say how many bytes of text were read by now, and of each document 32 bits each: tokens, spans, the tokens, begin and end of spans."""
    tokenizer = tokenizer_at(place)
    reader, maker = Reader(form, separator, tokenizer.text_errors), Maker(tokenizer, loss, eos == "eos")
    write_message(b"H", json.dumps(tokenizer.describe()).encode())
    batch, size = [], 0
    for where, kind, value, tools in reader.rows(inputs):
        document = maker.document(where, kind, value, tools)
        batch.append((where, document))
        size += DOCUMENT_OVERHEAD + sum(map(len, document.texts))
        if size >= BATCH_BYTES:
            write_batch(tokenizer, reader, batch)
            batch, size = [], 0
    write_batch(tokenizer, reader, batch)
    report = {"sources": [printable(path) for path in inputs], "bytes": reader.bytes, "left_out": reader.left_out.listed()}
    write_message(b"R", json.dumps(report).encode())


def write_batch(tokenizer, reader, batch):
    texts = []
    for where, document in batch:
        for text in document.texts:
            try:
                text.encode("utf-8", tokenizer.text_errors)
            except UnicodeEncodeError:
                raise Refusal(DATA, f"{where} has half of a UTF-16 pair (\\ud800 to \\udfff), which is no character") from None
        texts += document.texts
    encodings = iter(tokenizer.encode(texts, any(isinstance(document, Chat) for _, document in batch)))
    parts = [b"B", struct.pack("<Q", reader.bytes)]
    for where, document in batch:
        ids, spans = document.tokens(tokenizer, [next(encodings) for _ in document.texts])
        if not ids or spans is None:
            reader.left_out.add("empty documents" if not ids else "chats without a turn of the assistant", where)
            continue
        parts += [struct.pack("<II", len(ids), len(spans)), array("I", ids).tobytes(), array("I", sum(spans, ())).tobytes()]
    write_message(*parts)


def look(form, separator, *inputs):
    """Writes of each input a JSON object: what is in it."""
    for path in inputs:
        reader = Reader(form, separator)
        for _ in reader.rows([path]):
            pass
        write_message(json.dumps({"kinds": reader.kinds, "bytes": reader.bytes, "left_out": reader.left_out.listed()}).encode())


def excerpts(place):
    """Writes a JSON object about the tokenizer; then, for each request with tokens and spans of them, a list of their text: [text, whether
    it lies in a span]."""
    tokenizer = tokenizer_at(place)
    write_message(json.dumps(tokenizer.describe()).encode())
    while request := read_message():
        asked = json.loads(request)
        if max(asked["tokens"]) >= tokenizer.size:
            raise Refusal(DATA, f"token {max(asked['tokens'])}, and the tokenizer has {tokenizer.size} ids: the tokens are another's")
        pieces, before = [], ""
        edges = sorted({0, len(asked["tokens"]), *(edge for span in asked["spans"] for edge in span)})
        for begin, end in zip(edges, edges[1:]):
            # Decoded from the beginning, a token has the blank before it that it has in the text.
            text = tokenizer.decode(asked["tokens"][:end])
            own = text[len(before):] if text.startswith(before) else tokenizer.decode(asked["tokens"][begin:end])
            pieces.append([own, any(span[0] <= begin < span[1] for span in asked["spans"])])
            before = text
        write_message(json.dumps(pieces).encode())


class DecodedText:
    """What tokens that come one by one add to a text. A character that several make comes with its last."""

    def __init__(self, encoder, prompt):
        self.encoder = encoder
        self.ids = list(prompt)
        # Decoded after these, a token has the blank before it that it has in the text.
        self.begin, self.sent = max(0, len(prompt) - 8), len(prompt)

    def add(self, token):
        self.ids.append(token)
        return self.rest() if not self._text(len(self.ids)).endswith("\ufffd") else ""

    def rest(self):
        before, text = self._text(self.sent), self._text(len(self.ids))
        self.begin, self.sent = self.sent, len(self.ids)
        return text[len(before):]

    def _text(self, end):
        return self.encoder.decode(self.ids[self.begin:end], skip_special_tokens=True)


def generate(place):
    """The first message is "text" or "chat", a newline and a prompt; the answer: its tokens. Each further one is the next token; the
    answer: the text that is complete with it. Ends with an empty message; the answer: what is left."""
    tokenizer = Tokenizer(place)
    form, _, prompt = read_message().partition(b"\n")
    try:
        prompt = prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(CONFIG, f"--prompt is no UTF-8 (byte 0x{prompt[error.start]:02x} after {error.start} others)") from None
    prefix = tokenizer.prefix
    if form == b"chat":  # the template has its own beginning of a text
        prompt = tokenizer.render("--chat", [{"role": "user", "content": prompt}], None, add_generation_prompt=True)
        prefix = []
    [encoding] = tokenizer.encode([prompt], with_offsets=False)
    ids = prefix + encoding.ids
    write_message(array("I", ids).tobytes())
    decoded = DecodedText(tokenizer.encoder, ids)
    while message := read_message():
        write_message(decoded.add(struct.unpack("<I", message)[0]).encode("utf-8", "replace"))
    if message is not None:
        write_message(decoded.rest().encode("utf-8", "replace"))


MODES = {"tokenize": tokenize, "look": look, "excerpts": excerpts, "generate": generate}


def main(words):
    try:
        MODES[words[0]](*words[1:])
        return 0
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    except BrokenPipeError:  # the parent process has ended, and reports why
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return IO


sys.exit(main(sys.argv[1:]))
