"""What of tokenizers needs Python. A part of the fusedbun binary, which runs it as `python -c` (python_program.h).

Messages on standard input and output: 32 bits, little endian, that say how many bytes follow, then those. A Refusal is what the caller
or the data is to blame for: its sentence goes to standard error, its code is the exit code.
"""

import sys

sys.path[:] = [folder for folder in sys.path if folder]  # python -c would import modules from the folder in which it was started

import json  # noqa: E402
import os  # noqa: E402
import struct  # noqa: E402

DATA, IO, CONFIG = 65, 74, 78  # exit codes


class Refusal(Exception):
    def __init__(self, code, sentence):
        super().__init__(sentence)
        self.code = code


def read_message():
    """The next message as bytes; None at the end of the input."""
    header = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack("<I", header)[0]) if len(header) == 4 else None


def write_message(*parts):
    """Sends one message, which is these parts one after the other."""
    sys.stdout.buffer.write(struct.pack("<I", sum(map(len, parts))))
    for part in parts:
        sys.stdout.buffer.write(part)
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


class Tokenizer:
    """A folder with tokenizer.json, or that file: its `encoder` (a tokenizers.Tokenizer) and what the files beside it say."""

    def __init__(self, place):
        self.file = os.path.join(place, "tokenizer.json") if os.path.isdir(place) else place
        self.folder = os.path.dirname(self.file)
        if not os.path.isfile(self.file):
            raise Refusal(DATA, f"there is no tokenizer at {self.file}")
        try:
            self.encoder = need("tokenizers", "tokenizers").Tokenizer.from_file(self.file)
        except Refusal:
            raise
        except Exception as error:  # the package raises nothing narrower
            raise Refusal(DATA, f"{self.file} is no tokenizer: {error}") from None
        self.encoder.no_truncation()
        self.encoder.no_padding()
        self.config = self.beside("tokenizer_config.json")
        self.model = self.beside("config.json")
        self.size = self.encoder.get_vocab_size(with_added_tokens=True)

    def beside(self, name):
        return read_json(os.path.join(self.folder, name))


MODES = {}


def main(words):
    try:
        MODES[words[0]](*words[1:])
        return 0
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    except BrokenPipeError:  # whoever reads has gone, and knows why
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return IO


sys.exit(main(sys.argv[1:]))
