"""What a kernel reads and writes in its loops, array by array, from its PTX."""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

ENTRY = re.compile(r"\.entry (\w+)\(.*?\n}", re.DOTALL)
LABEL = re.compile(r"(\$\w+):")
INSTRUCTION = re.compile(r"(?:@!?%\w+\s+)?([a-z][\w.:]*)\s*([^;]*);")
REGISTER = re.compile(r"%[\w.]+")
PARAMETER = re.compile(r"\w+_param_(\d+)")
ADDRESS = re.compile(r"\[([%\w]+)(?:\+(-?\d+))?\]")
#: Memory that is not global is named; what is named neither way may be global.
ACCESS = re.compile(r"(ld|st)\.(?!param|shared|local|const)(?:[\w:]+\.)*?(?:v([24])\.)?[busf](\d+)$")


def kernels(text):
    """The PTX of each kernel, by mangled name."""
    return {found[1]: found[0] for found in ENTRY.finditer(text)}


@dataclass(frozen=True)
class Array:
    """A pointer among the parameters: it stands ``offset`` bytes into parameter ``parameter``, or into each entry of a
    table there."""

    parameter: int
    offset: int


@dataclass(frozen=True)
class Access:
    """``width`` bytes from ``offset`` of what the registers in ``place`` add up to."""

    kind: str
    width: int
    place: tuple
    offset: int
    arrays: frozenset

    @property
    def bytes(self):
        return set(range(self.offset, self.offset + self.width))


class Code:
    """The instructions of a kernel in blocks, and where each register is set."""

    def __init__(self, text):
        self.blocks, self.tables, labels = [[]], {}, {}
        for line in text.partition("{")[2].splitlines():
            line = line.strip()
            if label := LABEL.match(line):
                name, line = label[1], line[label.end() :].strip()
                if line.startswith(".branchtargets"):
                    self.tables[name] = re.findall(r"\$\w+", line)
                    continue
                labels[name] = len(self.blocks)
                self.blocks.append([])
            if found := INSTRUCTION.match(line):
                self.blocks[-1].append((found[1], found[2].strip(), line.startswith("@")))
                if found[1].startswith(("bra", "brx", "ret", "exit")):
                    self.blocks.append([])
        self.successors = [self._successors(i, labels) for i in range(len(self.blocks))]
        self.definitions, self.firsts = defaultdict(list), {}
        for block in self.blocks:
            for operation, operands, _ in block:
                if not operation.startswith(("st.", "bra", "brx", "bar", "red.")):
                    target, _, sources = operands.partition(",") if operands[:1] != "{" else operands.partition("},")
                    for lane, register in enumerate(REGISTER.findall(target)):
                        self.definitions[register].append((operation, sources.strip(), lane))

    def _successors(self, index, labels):
        following = [index + 1] if index + 1 < len(self.blocks) else []
        if not self.blocks[index]:
            return following
        operation, operands, guarded = self.blocks[index][-1]
        if operation.startswith("bra"):
            return [labels[operands]] + following * guarded
        if operation.startswith("brx"):
            return [labels[label] for label in self.tables[operands.split(", ")[-1]]] + following * guarded
        return following * guarded if operation.startswith(("ret", "exit")) else following

    def looped(self):
        """The blocks that can be reached from themselves."""
        reached, before = [0] * len(self.blocks), None
        while reached != before:
            before = list(reached)
            for index in reversed(range(len(self.blocks))):
                for successor in self.successors[index]:
                    reached[index] |= reached[successor] | 1 << successor
        return [block for index, block in enumerate(self.blocks) if reached[index] >> index & 1]

    @cache  # noqa: B019
    def sum_of(self, operand):
        """An operand as a sum: registers that are no sums themselves, and a constant."""
        if re.fullmatch(r"-?\d+", operand):
            return (), int(operand)
        definitions = self.definitions[operand]
        if len(definitions) == 1:
            operation, sources, _ = definitions[0]
            if operation.startswith(("mov.", "cvta.", "add.s64", "add.u64")) and "{" not in sources:
                parts = [self.sum_of(source) for source in sources.split(", ")]
                return tuple(sorted(sum((p[0] for p in parts), ()))), sum(p[1] for p in parts)
        return (self._first(operand),), 0

    @cache  # noqa: B019
    def _first(self, register):
        """The first register that is made as this one is: an address is often computed more than once."""
        if len(self.definitions[register]) != 1:
            return register
        operation, sources, lane = self.definitions[register][0]
        sources = REGISTER.sub(lambda source: self._first(source[0]), sources)
        return self.firsts.setdefault((operation, sources, lane), register)

    def _address(self, operands):
        base, offset = ADDRESS.search(operands).groups(default="0")
        terms, constant = self.sum_of(base)
        return terms, constant + int(offset)

    def arrays_of(self, terms):
        """The pointers among the parameters from which a sum may come."""
        found, seen, left = set(), set(), list(terms)
        while left:
            register = left.pop()
            if register in seen:
                continue
            seen.add(register)
            for operation, sources, lane in self.definitions[register]:
                if operation.startswith("ld.param") and operation.endswith("64"):
                    places, offset = self._address(sources)
                    found |= {Array(int(p[1]), offset + 8 * lane) for p in map(PARAMETER.fullmatch, places) if p}
                elif operation.startswith(("mov.", "cvta.", "add.", "sub.", "selp.", "mad.")):
                    left += [term for source in sources.split(", ") for term in self.sum_of(source)[0]]
        return frozenset(found)

    def accesses(self):
        """What loops read and write of global memory."""
        for block in self.looped():
            for operation, operands, _ in block:
                if found := ACCESS.match(operation):
                    terms, offset = self._address(operands)
                    width = int(found[2] or 1) * int(found[3]) // 8
                    yield Access(found[1], width, terms, offset, self.arrays_of(terms))
