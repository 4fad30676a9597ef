"""The samples of `fusedbun train`, read a second time in Python: whole documents, in the order of the run (launcher/data)."""
import struct

import numpy

MASK = (1 << 64) - 1


def mixed(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def place(index, samples, seed):
    """Which sample of an epoch is sample `index` of the run."""
    half = max(1, ((samples - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    key = mixed(mixed(seed) ^ (index // samples))
    at = index % samples
    while True:
        left, right = at >> half, at & low
        for round_number in range(6):
            left, right = right, left ^ (mixed(mixed(key ^ round_number) ^ right) & low)
        at = left << half | right
        if at < samples:
            return at


class PackedSamples:
    """A .bin of `fusedbun data tokenize`, as sequences of whole documents; longer ones are cut."""

    def __init__(self, path, context):
        magic, = struct.unpack("<i", open(path, "rb").read(4))
        self.tokens = numpy.memmap(path, numpy.uint16 if magic == 20240520 else numpy.uint32, "r", 1024)
        words = numpy.fromfile(path + ".documents", "<u8")
        documents, spans = int(words[3]), int(words[4])
        begins = words[6:7 + documents].astype(numpy.int64)
        self.carries = numpy.ones(len(self.tokens), bool)
        if spans:
            self.carries[:] = False
            for begin, end in words[7 + documents:].reshape(spans, 2).astype(numpy.int64):
                self.carries[begin:end] = True
        self.context, self.sequences, left = context, [], 0
        for begin, end in zip(begins[:-1], begins[1:]):
            places = min(int(end - begin) - 1, context)
            if places < 1:
                continue
            if not self.sequences or places > left:
                self.sequences.append([])
                left = context
            self.sequences[-1].append((int(begin), places))
            left -= places

    def __len__(self):
        return len(self.sequences)

    def sequence(self, number):
        """Tokens, targets (-100: none) and positions."""
        rows = numpy.zeros((3, self.context), numpy.int64)
        rows[1], at = -100, 0
        for begin, count in self.sequences[number]:
            part = numpy.asarray(self.tokens[begin:begin + count + 1], numpy.int64)
            rows[0, at:at + count] = part[:-1]
            rows[1, at:at + count] = numpy.where(self.carries[begin + 1:begin + count + 1], part[1:], -100)
            rows[2, at:at + count] = numpy.arange(count)
            at += count
        rows[2, at:] = numpy.arange(self.context - at)
        return rows
