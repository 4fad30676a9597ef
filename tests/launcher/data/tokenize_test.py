"""`fusedbun data tokenize` and `show`: what is written, against transformers and the tokenizers package; every refusal leaves nothing."""

import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from job_process import TestCase, run, start, wait_until  # noqa: E402

import zstandard  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[3] / "launcher" / "data" / "tokenizer.py"
LICENCE = Path("/usr/share/common-licenses/GPL-3").read_text()
CHATML = ("{% for message in messages %}\n"
          "{{ '<|im_start|>' + message.role + '\\n' }}{{ message['content'] | trim }}<|im_end|>\n"
          "{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}")
BOS, EOS, START, END = range(4)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is free?"},
        {"role": "assistant", "content": " Software, 🙂 naïvely."}, {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "You are welcome"}]


def byte_level(folder, template=CHATML, **config):
    """A tokenizer as GPT-2's and Llama 3's are, with the files that transformers reads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([LICENCE], trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return tokenizer


class Corpus:
    """A file of tokens and its index, read as their layouts say."""

    def __init__(self, path):
        data = path.read_bytes()
        magic, version, count, _ = struct.unpack_from("<4i", data)
        assert (magic, version) in ((20240520, 1), (20240801, 7)), (magic, version)
        self.width = 2 if magic == 20240520 else 4
        self.tokens = list(array("H" if self.width == 2 else "I", data[1024:]))
        assert count == len(self.tokens)
        index = Path(f"{path}.documents").read_bytes()
        assert index[:8] == b"FBDOCS01"
        tokens, separator, documents, spans, _ = struct.unpack_from("<5Q", index, 8)
        assert (tokens, separator) == (count, 2**64 - 1)
        words = struct.unpack_from(f"<{documents + 1 + 2 * spans}Q", index, 48)
        assert len(index) == 48 + 8 * len(words)
        begins = words[:documents + 1]
        self.documents = [self.tokens[begin:end] for begin, end in zip(begins, begins[1:])]
        carries = [not spans] * count
        for begin, end in zip(words[documents + 1::2], words[documents + 2::2]):
            carries[begin:end] = [True] * (end - begin)
        self.loss = [carries[begin:end] for begin, end in zip(begins, begins[1:])]
        self.report = json.loads(Path(f"{path}.json").read_text())

    def with_loss(self, document):
        return [token for token, carries in zip(self.documents[document], self.loss[document]) if carries]


class TokenizeCase(TestCase):
    @classmethod
    def setUpClass(cls):
        shared = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        cls.addClassCleanup(shared.cleanup)
        cls.place = Path(shared.name) / "tokenizer"
        cls.own = byte_level(cls.place)
        cls.auto = AutoTokenizer.from_pretrained(cls.place)

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="fusedbun-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out" / "a.bin"
        self.out.parent.mkdir()

    def lines(self, *rows, name="a.jsonl"):
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def file(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def words(self, *inputs, tokenizer=None, flags=()):
        return ["data", "tokenize", *inputs, "--tokenizer", tokenizer or self.place, "--out", self.out, *flags]

    def tokenize(self, *inputs, **options):
        result = run(*self.words(*inputs, **options))
        self.assertEqual(result.code, 0, result)
        return Corpus(self.out)

    def refuse(self, code, sentence, *inputs, environment=None, **options):
        result = run(*self.words(*inputs, **options), environment=environment)
        self.assert_fails(result, code, sentence)
        self.assertEqual(len(result.err.splitlines()), 1, result)
        self.assertEqual(list(self.out.parent.iterdir()), [], "nothing is left")

    def ids(self, text):
        return self.own.encode(text, add_special_tokens=False).ids


class Texts(TokenizeCase):
    def test_a_folder_is_walked_in_order_and_each_file_is_a_document(self):
        self.file("in/b/a.txt", "Second\n")
        self.file("in/a.txt", LICENCE)
        self.file("in/b.txt", "Third 🙂 text")
        self.file("in/empty", " \n")
        self.file("in/x.o", b"\x7fELF\0\0")
        self.file("in/latin1", b"caf\xe9")
        self.file("in/old.bin.json", "{}")
        (self.folder / "in/link").symlink_to("a.txt")
        corpus = self.tokenize(self.folder / "in")
        self.assertEqual(corpus.documents, [self.own.encode(text).ids + [EOS] for text in (LICENCE, "Second\n", "Third 🙂 text")])
        self.assertTrue(all(map(all, corpus.loss)))
        left_out = {each["what"]: (each["count"], Path(each["first"]).name) for each in corpus.report["left_out"]}
        self.assertEqual(left_out, {"empty documents": (1, "empty"), "binary files": (1, "x.o"), "symbolic links": (1, "link"),
                                    "files that are no UTF-8": (1, "latin1:1"),
                                    "reports of fusedbun data tokenize": (1, "old.bin.json")})

    def test_compressed_files_are_told_by_their_content(self):
        text = "Some text\n" + LICENCE
        plain = self.file("plain", text)
        expected = self.tokenize(plain).tokens
        packed = {"gz": gzip.compress(text.encode()), "members": gzip.compress(b"Some text\n") + gzip.compress(LICENCE.encode()) + bytes(512),
                  "zst": zstandard.compress(text.encode()), "frames": zstandard.compress(b"Some text\n") + zstandard.compress(LICENCE.encode())}
        for name, content in packed.items():
            with self.subTest(packed=name):
                path = self.file(f"{name}.txt", content)
                self.assertEqual(self.tokenize(path, flags=["--overwrite"]).tokens, expected)
        path = self.file("misnamed.jsonl.gz", zstandard.compress(json.dumps({"text": text}).encode()))
        self.assertEqual(self.tokenize(path, flags=["--overwrite"]).tokens, expected)

    def test_a_separator_parts_documents_wherever_pieces_end(self):
        documents = [f"number {i}\n" * (1 + i % 7) for i in range(15_000)]
        path = self.file("stories.txt", "<|endoftext|>\n".join(documents))
        corpus = self.tokenize(path, flags=["--separator", "<|endoftext|>\\n"])
        expected = self.own.encode_batch(documents)
        self.assertEqual(corpus.documents, [each.ids + [EOS] for each in expected])

    def test_tokens_can_be_bytes_without_any_package(self):
        hidden = self.file("hidden/tokenizers.py", "raise ImportError('hidden')").parent
        self.file("a.txt", b"caf\xe9\0")
        result = run(*self.words(self.folder / "a.txt", tokenizer="bytes"), environment={"PYTHONPATH": hidden})
        self.assertEqual(result.code, 0, result)
        corpus = Corpus(self.out)
        self.assertEqual(corpus.tokens, list(b"caf\xe9\0"))
        self.assertEqual(corpus.report["vocabulary_size"], 256)

    def test_standard_input_and_pipes_are_read(self):
        path = self.lines({"text": "Hello"}, {"text": "World"})
        command = " ".join(map(str, self.words("-", "<(cat)", flags=["--format", "jsonl"]))).replace("<(cat)", f"<(gzip < {path})")
        result = subprocess.run(["bash", "-c", f"cat {path} | {os.environ['FUSEDBUN_BINARY']} {command}"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result)
        self.assertEqual(len(Corpus(self.out).documents), 4)

    def test_what_the_end_of_sequence_token_is(self):
        path = self.file("a.txt", "Hello")
        ids = self.own.encode("Hello").ids
        self.assertEqual(self.tokenize(path, flags=["--no-eos"]).tokens, ids)
        ends = self.file("b.txt", "Hello</s>")
        self.assertEqual(self.tokenize(ends, flags=["--overwrite"]).tokens, ids + [EOS], "one is enough")
        self.out.unlink()
        other = self.folder / "other"
        byte_level(other, eos_token=None)
        for left in self.out.parent.iterdir():
            left.unlink()
        self.refuse(78, "--no-eos", path, tokenizer=other)
        (other / "config.json").write_text(json.dumps({"eos_token_id": 2, "vocab_size": 500}))
        self.assertEqual(self.tokenize(path, tokenizer=other / "tokenizer.json").tokens[-1], 2)
        (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
        self.assertEqual(self.tokenize(path, tokenizer=other, flags=["--overwrite"]).tokens[-1], 3)

    def test_the_vocabulary_is_the_models(self):
        path = self.file("a.txt", "Hello")
        other = self.folder / "other"
        byte_level(other)
        (other / "config.json").write_text(json.dumps({"vocab_size": 70_000}))
        corpus = self.tokenize(path, tokenizer=other)
        self.assertEqual((corpus.width, corpus.report["vocabulary_size"]), (4, 70_000))
        for left in self.out.parent.iterdir():
            left.unlink()
        (other / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 499}}))
        self.refuse(65, "has 500 token ids, and the model of the config.json beside it has 499", path, tokenizer=other)


class Prompts(TokenizeCase):
    def test_the_completion_carries_loss_and_the_prompt_has_its_own_tokens(self):
        rows = [("Q: what is free?\nA:", " Software."), ("free sof", "tware licences"), ("", "All of it")]
        corpus = self.tokenize(self.lines(*({"prompt": prompt, "completion": completion} for prompt, completion in rows)))
        for i, (prompt, completion) in enumerate(rows):
            begin = [BOS] + self.ids(prompt)
            self.assertEqual(corpus.documents[i][:len(begin)], begin)
            self.assertEqual(corpus.loss[i], [False] * len(begin) + [True] * (len(corpus.loss[i]) - len(begin)))
            self.assertEqual(self.own.decode(corpus.with_loss(i), skip_special_tokens=False), completion + "</s>")
        self.assertNotEqual(self.ids("free software licences")[:len(self.ids("free sof"))], self.ids("free sof"), "the second is such a pair")

    def test_a_tokenizer_that_puts_a_blank_before_words_puts_none_into_the_middle(self):
        other = self.folder / "other"
        byte_level(other)
        tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcd."), ("▁ab", -1.0)], unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.save(str(other / "tokenizer.json"))
        corpus = self.tokenize(self.lines({"prompt": "ab c", "completion": "d."}), tokenizer=other)
        self.assertEqual([tokenizer.id_to_token(token) for token in corpus.tokens], ["▁ab", "▁", "c", "d", ".", "</s>"])
        self.assertEqual(corpus.loss[0], [False] * 3 + [True] * 3)

    def test_all_tokens_carry_loss_if_asked(self):
        path = self.lines({"prompt": "Q", "completion": "A"}, {"messages": CHAT})
        self.assertTrue(all(map(all, self.tokenize(path, flags=["--loss", "all"]).loss)))

    def test_kinds_are_mixed_and_keep_their_order(self):
        corpus = self.tokenize(self.lines({"text": "one"}, {"prompt": "two", "completion": ""}, {"prompt": "two", "completion": "2"},
                                          {"messages": CHAT, "text": "ignored"}, {"text": ""}))
        self.assertEqual([sum(loss) == len(loss) for loss in corpus.loss], [True, False, False])
        self.assertEqual({each["what"]: each["count"] for each in corpus.report["left_out"]}, {"empty completions": 1, "empty documents": 1})
        self.assertEqual(corpus.report["documents"], 3)
        self.assertEqual(corpus.report["loss_tokens"], sum(map(sum, corpus.loss)))


class Chats(TokenizeCase):
    def test_tokens_are_those_of_transformers_and_loss_is_on_what_the_assistant_says(self):
        corpus = self.tokenize(self.lines({"messages": CHAT}, {"messages": CHAT[:3]}))
        for i, chat in enumerate((CHAT, CHAT[:3])):
            self.assertEqual(corpus.documents[i], self.auto.apply_chat_template(chat, return_dict=False))
        self.assertEqual(self.own.decode(corpus.with_loss(0), skip_special_tokens=False),
                         "Software, 🙂 naïvely.<|im_end|>\nYou are welcome<|im_end|>\n")
        # The tokens before each turn are the header that asks for it.
        header = self.ids("<|im_start|>assistant\n")
        begins = [at for at, carries in enumerate(corpus.loss[0]) if carries and not corpus.loss[0][at - 1]]
        self.assertEqual([corpus.documents[0][at - len(header):at] for at in begins], [header, header])

    def test_templates_see_what_transformers_shows_them(self):
        template = ("{%- for tool in tools or [] %}{{ tool | tojson(indent=1) }}{% endfor %}{{ bos_token }}"
                    "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
                    "{% generation %}{{ message.content or 'nothing' }}{% endgeneration %}{{ eos_token }}{% endfor %}"
                    "{{ strftime_now('%Y') }}{% if documents is none %}.{% endif %}")
        other = self.folder / "other"
        byte_level(other, template=None, chat_template=template)
        tools = [{"type": "function", "function": {"name": "<find>", "description": "é"}}]
        chat = [*CHAT, {"role": "user", "content": None}]
        corpus = self.tokenize(self.lines({"messages": chat, "tools": tools}), tokenizer=other, flags=["--loss", "all"])
        self.assertEqual(corpus.tokens, AutoTokenizer.from_pretrained(other).apply_chat_template(chat, tools=tools, return_dict=False))

    def test_prompts_and_completions_may_be_messages(self):
        corpus = self.tokenize(self.lines({"prompt": CHAT[:4], "completion": CHAT[4:]}))
        self.assertEqual(corpus.documents[0], self.auto.apply_chat_template(CHAT, return_dict=False))
        self.assertEqual(self.own.decode(corpus.with_loss(0), skip_special_tokens=False), "You are welcome<|im_end|>\n")

    def test_a_chat_in_which_the_assistant_is_silent_is_left_out(self):
        corpus = self.tokenize(self.lines({"messages": CHAT[:2]}, {"messages": CHAT}))
        self.assertEqual(len(corpus.documents), 1)
        self.assertEqual(corpus.report["left_out"][0]["what"], "chats without a turn of the assistant")

    def test_templates_that_cannot_be_used_are_refused(self):
        path = self.lines({"messages": CHAT})
        forgets = CHATML.replace("message['content'] | trim", "message['content'] if loop.last else '...'")
        for name, template, sentence in (("none", None, "a.jsonl:1: chats need a chat template"),
                                         ("damaged", "{% if %}", "the chat template beside"),
                                         ("refuses", "{{ raise_exception('no system here') }}", "a.jsonl:1: the chat template refuses it: no system"),
                                         ("unsafe", "{{ messages.__class__.__mro__ }}", "the chat template refuses it"),
                                         ("forgets", forgets, "a.jsonl:1: the chat template writes the beginning of this chat otherwise")):
            with self.subTest(template=name):
                byte_level(self.folder / name, template=template)
                self.refuse(65, sentence, path, tokenizer=self.folder / name)
        self.tokenize(path, tokenizer=self.folder / "forgets", flags=["--loss", "all"])


class Refusals(TokenizeCase):
    def test_lines_that_cannot_be_used_are_named(self):
        good = json.dumps({"text": "good"})
        for line, sentence in (('{"text": "cut', "b.jsonl:3 is no JSON object on one line"),
                               ("[1, 2]", "b.jsonl:3 begins a JSON array"),
                               ("3", "b.jsonl:3 is no JSON object"),
                               ('{"instruction": "a", "output": "b"}', 'nor messages; its keys: "instruction", "output"'),
                               ('{"text": null}', "b.jsonl:3: text must be a string"),
                               ('{"prompt": "a", "completion": ["b"]}', "b.jsonl:3: prompt and completion must be"),
                               ('{"messages": []}', "b.jsonl:3: messages must be"),
                               ('{"messages": [{"from": "a"}]}', "b.jsonl:3: messages must be"),
                               ('{"text": "\\ud800"}', "b.jsonl:3 has half of a UTF-16 pair"),
                               ("[" * 100_000, "b.jsonl:3 begins a JSON array"),
                               ('{"a":' * 100_000, "b.jsonl:3 is no JSON")):
            with self.subTest(line=line[:40]):
                self.refuse(65, sentence, self.file("b.jsonl", f"{good}\n\n{line}\n{good}\n"))
        self.refuse(65, "b.jsonl:2 is no UTF-8 (byte 0xe9)", self.file("b.jsonl", f"{good}\n".encode() + b'{"text": "caf\xe9"}\n'))

    def test_files_that_cannot_be_used_are_named(self):
        packed = gzip.compress(LICENCE.encode())
        frame = zstandard.compress(LICENCE.encode())
        for name, content, sentence in (("cut.gz", packed[:-9], "cut.gz was cut"), ("cut.zst", frame[:-9], "cut.zst was cut"),
                                        ("bad.gz", packed[:-8] + b"12345678", "bad.gz is damaged"),
                                        ("bad.zst", frame[:40] + b"....." + frame[45:], "bad.zst is damaged"),
                                        ("x.o", b"\x7fELF\0", "x.o is binary"), ("a.parquet", b"PAR1", "in Parquet's format"),
                                        ("latin1", b"one\ntwo\ncaf\xe9", "latin1:3 is no UTF-8 (byte 0xe9)"),
                                        ("empty", b"", "no document is left to be written; empty documents: 1"),
                                        ("long", b"word " * 4_000_000, "long:1: a document of more than 16 MiB: --separator")):
            with self.subTest(file=name):
                self.refuse(65, sentence, self.file(name, content))
        self.refuse(65, "cannot read nowhere: No such file", self.file("a", "text"), "nowhere")
        self.refuse(65, "/dev/null is a device", "/dev/null")
        self.refuse(65, "no document is left", self.file("empty folder/x", b"\0").parent)

    def test_tokenizers_that_cannot_be_used_are_named(self):
        path = self.file("a.txt", "Hello")
        self.refuse(65, "there is no tokenizer at", path, tokenizer=self.folder)
        self.refuse(65, "is no tokenizer", path, tokenizer=self.file("b/tokenizer.json", "{}"))
        other = self.folder / "other"
        byte_level(other, eos_token="<gone>")
        self.refuse(65, "names eos_token <gone>", path, tokenizer=other)
        self.file("other/tokenizer_config.json", "{")
        self.refuse(65, "tokenizer_config.json is no JSON", path, tokenizer=other)

    def test_a_missing_package_is_named_with_the_line_that_installs_it(self):
        self.file("hidden/tokenizers.py", "raise ImportError('hidden')")
        self.file("hidden/zstandard.py", "raise ImportError('hidden')")
        hidden = {"PYTHONPATH": self.folder / "hidden"}
        self.refuse(78, "-m pip install tokenizers", self.file("a.txt", "Hello"), environment=hidden)
        self.refuse(78, "-m pip install zstandard", self.file("a.zst", zstandard.compress(b"a")), tokenizer="bytes", environment=hidden)
        self.refuse(78, "FUSEDBUN_PYTHON names /nowhere/python", self.file("a.txt", "Hello"), environment={"FUSEDBUN_PYTHON": "/nowhere/python"})

    def test_modules_of_the_folder_in_which_it_is_started_are_not_imported(self):
        self.file("json.py", "raise SystemExit(3)")
        result = run(*self.words(self.file("a.txt", "Hello")), folder=self.folder)
        self.assertEqual(result.code, 0, result)

    def test_wrong_usage(self):
        path = self.file("a.txt", "Hello")
        self.assert_fails(run("data", "tokenize", path, "--out", self.out), 64, "--tokenizer is required")
        self.assert_fails(run(*self.words(path, flags=["--loss", "some"])), 64, "--loss")
        self.out = self.folder / "out" / "a.tokens"
        self.refuse(78, "names that end in .bin", path)
        self.out = self.folder / "gone" / "a.bin"
        self.assert_fails(run(*self.words(path)), 74, "gone")

    def test_a_signal_leaves_nothing_and_ends_both_processes(self):
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number), start(*self.words(pipe, tokenizer="bytes")) as process:
                writer = os.open(pipe, os.O_WRONLY)
                self.addCleanup(os.close, writer)
                os.write(writer, b"some words\n" * 1000)
                wait_until(lambda: list(self.out.parent.iterdir()), 20, "a file in the making")
                process.signal(number)
                self.assertEqual(process.result(20).code, 128 + number)
                self.assertEqual(list(self.out.parent.iterdir()), [])
                with self.assertRaises(BrokenPipeError):  # nobody reads any more
                    os.write(writer, b"x")

    def test_memory_does_not_grow_with_the_corpus(self):
        peaks = []
        for count in (4_000, 120_000):
            path = self.file("a.jsonl", (json.dumps({"text": "some words " * 20}) + "\n") * count)
            own = self.words(path, tokenizer="bytes", flags=["--overwrite"])
            code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
                    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
            words = [sys.executable, "-c", code, os.environ["FUSEDBUN_BINARY"], *map(str, own)]
            # The address sanitizer would keep 256 MB of what was freed.
            environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=1"}
            peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout))
        self.assertLess(peaks[1], peaks[0] + 20_000, "kilobytes; the second has 26 MB more")


class Messages(TokenizeCase):
    def test_each_is_one_write_where_python_is_unbuffered_too(self):
        # Who has read a message's length may be gone before the rest is written. Each write into this kind of socket is one packet.
        ours, its_output = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, subprocess.Popen([sys.executable, SCRIPT, "generate", self.place], stdin=subprocess.PIPE, stdout=its_output,
                                    env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
            its_output.close()
            for message in (b"text\nfree", b""):
                process.stdin.write(struct.pack("<I", len(message)) + message)
                process.stdin.flush()
                packet = ours.recv(1 << 16)
                self.assertEqual(len(packet), 4 + struct.unpack_from("<I", packet)[0])
            self.assertEqual(ours.recv(1), b"", "one packet each")
        self.assertEqual(process.returncode, 0)


class Show(TokenizeCase):
    def show(self, *words):
        result = run("data", "show", *words)
        self.assertEqual(result.code, 0, result)
        return result.out

    def test_what_is_in_a_file_of_tokens(self):
        corpus = self.tokenize(self.lines({"messages": CHAT}, {"text": "Hello"}, {"text": " "}))
        shown = json.loads(self.show(self.out, "--output", "json", "--context", 8, "--tokenizer", self.place))["files"][0]
        lengths = sorted(map(len, corpus.documents))
        self.assertEqual((shown["tokens"], shown["documents"], shown["loss_tokens"]), (sum(lengths), 2, sum(map(sum, corpus.loss))))
        self.assertEqual((shown["shortest"], shown["median"], shown["longest"]), (lengths[0], lengths[0], lengths[1]))
        self.assertEqual(shown["longer_than_context"], 1)
        self.assertEqual(shown["left_out"][0]["what"], "empty documents")
        text = self.auto.apply_chat_template(CHAT, tokenize=False)
        self.assertEqual("".join(part["text"] for part in shown["first_document"]), text)
        self.assertEqual("".join(part["text"] for part in shown["first_document"] if part["carries_loss"]),
                         "Software, 🙂 naïvely.<|im_end|>\nYou are welcome<|im_end|>\n")
        text = self.show(self.out, "--tokenizer", self.place)
        self.assertIn("assistant\n[[Software, 🙂 naïvely.<|im_end|>\n]]<|im_start|>user", text)

    def test_files_that_others_have_written(self):
        self.file("nano.bin", array("H", [5, 6, EOS, 7, EOS]).tobytes())
        shown = self.show(self.folder / "nano.bin", "--tokenizer", self.place)
        self.assertRegex(shown, r"documents +2\n")
        self.assertRegex(self.show(self.folder / "nano.bin"), r"nanoGPT's(.|\n)*documents +not known")
        self.assertEqual(list(self.folder.glob("*.documents")), [], "looking writes nothing")

    def test_text_and_json_lines_are_counted(self):
        path = self.lines({"text": "a"}, {"text": ""}, {"prompt": "a", "completion": "b"}, {"messages": CHAT})
        folder = self.file("in/a.txt", "hello").parent
        shown = json.loads(self.show(path, folder, "--output", "json"))["files"]
        self.assertEqual(shown[0]["documents"], {"text": 1, "prompt and completion": 1, "messages": 1})
        self.assertEqual(shown[0]["bytes"], path.stat().st_size)
        self.assertEqual(shown[0]["left_out"], [{"what": "empty documents", "count": 1, "first": f"{path}:2"}])
        self.assertEqual((shown[1]["documents"], shown[1]["bytes"]), ({"text": 1}, 5))

    def test_what_cannot_be_shown_is_refused(self):
        self.assert_fails(run("data", "show", "nowhere.bin"), 65, "nowhere.bin does not exist")
        self.assert_fails(run("data", "show", "nowhere.txt"), 65, "cannot read nowhere.txt")
        self.tokenize(self.file("a.txt", "Hello"))
        self.assert_fails(run("data", "show", self.out, "--tokenizer", "bytes"), 65, "token")
        Path(f"{self.out}.json").write_text("[]")
        self.assert_fails(run("data", "show", self.out), 65, "a.bin.json is no report")
        Path(f"{self.out}.documents").unlink()
        self.assert_fails(run("data", "show", self.out), 65, "a.bin.documents is missing")


if __name__ == "__main__":
    unittest.main()
