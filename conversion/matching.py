"""Finds which parameter of a released PVC is which of ours, by names and shapes alone.

The released PVC-InternVL2-8B has InternVL2's names for what it took from InternVL2, and names of its own,
published nowhere, for what is new: temporal attention, its AdaLN and gate in the last layers of the ViT, and
AdaLN in the projector. In this order,

    key map      what a person settles
    InternVL     the names that InternVL has (`internvl_name`)
    structure    what is left of a temporal layer or of the projector: by words of its name (gamma, shift,
                 embed), by a shape that one Linear alone has, or as the sibling of a Linear so found.
                 Numbers (0 / 2, fc1 / fc2) or in / out order the two Linears of an MLP; shapes and all
                 layers must agree

A shape that several Linears share decides nothing, nor do words against each other, and nothing is found by
elimination: what is not settled, left over or missing is refused by name. Reading tensors and writing
checkpoints are left to `plan.py` and `files.py`.

A scope is one temporal layer, or the projector. A module is a Linear or a vector of a scope; its role is what
it is for (gamma, out ...), its place is one module of ours.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# ---- what is known

INTERNVL_NAMES = {  # InternVL's -> ours; regular expressions of whole names
    r"(vision_model\.embeddings\.(?:class_embedding|position_embedding))": r"model.\1",
    r"(vision_model\.embeddings\.patch_embedding\.(?:weight|bias))": r"model.\1",
    r"(vision_model\.encoder\.layers\.\d+\.ls[12])": r"model.\1",
    r"(vision_model\.encoder\.layers\.\d+\.norm[12]\.(?:weight|bias))": r"model.\1",
    r"(vision_model\.encoder\.layers\.\d+\.attn\.(?:qkv|proj)\.(?:weight|bias))": r"model.\1",
    r"(vision_model\.encoder\.layers\.\d+\.attn\.[qk]_norm\.weight)": r"model.\1",
    r"(vision_model\.encoder\.layers\.\d+\.mlp\.fc[12]\.(?:weight|bias))": r"model.\1",
    r"mlp1\.0\.(weight|bias)": r"model.projector.norm.\1",
    r"mlp1\.1\.(weight|bias)": r"model.projector.mlp.0.\1",
    r"mlp1\.3\.(weight|bias)": r"model.projector.mlp.2.\1",
    r"language_model\.model\.(.+)": r"model.language_model.\1",
    r"language_model\.(?:output|lm_head)\.weight": r"lm_head.weight",
}

LAYER_ROLES = {  # role -> its places, first to last
    "qkv": ("temporal_attn.qkv",),
    "out": ("temporal_attn.proj",),
    "time": ("temporal_norm.time_embed.0", "temporal_norm.time_embed.2"),
    "gamma": ("temporal_norm.gamma.0", "temporal_norm.gamma.2"),
    "beta": ("temporal_norm.beta.0", "temporal_norm.beta.2"),
    "gate": ("temporal_gate",),
}
PROJECTOR_ROLES = {
    "time": ("norm.time_embed.0", "norm.time_embed.2"),
    "gamma": ("norm.gamma.0", "norm.gamma.2"),
    "beta": ("norm.beta.0", "norm.beta.2"),
    "mlp": ("mlp.0", "mlp.2"),
}

WORDS = {  # whole words: "timescale" is not "scale"
    "gamma": {"gamma", "scale", "weight"},
    "beta": {"beta", "shift", "bias"},
    "time": {"te", "temb", "tembed", "emb", "embed", "embedder", "embedding", "embeddings"},
    "qkv": {"qkv", "wqkv"},
    "gate": {"gate", "alpha", "ls", "layerscale"},
}
WEAK_WORDS = {  # said of many things (time_attn, gamma_proj, mlp1): they count where no other word does
    "time": {"time", "timestep", "timesteps"},
    "out": {"proj", "projection", "out", "output", "o", "wo", "dense"},
    "mlp": {"mlp", "ffn", "proj", "projection", "projector"},
}
SEPARATE = {"q", "k", "v", "kv", "wq", "wk", "wv", "query", "key", "value"}
NORM = {"norm", "ln", "layernorm", "ada", "adaln"}
FIRST, SECOND = {"in", "input", "first", "up"}, {"out", "output", "second", "down"}

AFFINE = "looks like the affine of a LayerNorm, and the LayerNorm inside PVC's AdaLN has none"
HELP = (
    "--key-map FILE settles by hand what both sides have: a JSON object, names there to names here.\n"
    'Both may be prefixes that end in ".", and "*" in both stands for a number: {\n'
    '  "vision_model.encoder.layers.*.a.": "model.vision_model.encoder.layers.*.temporal_norm.gamma."\n}'
)


def internvl_name(name: str) -> str | None:
    """Our name for InternVL's `name`; None where InternVL has no parameter of that name."""
    for pattern, ours in INTERNVL_NAMES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None


# ---- the public interface


@dataclass(frozen=True)
class Match:
    """`source`, a parameter of the checkpoint, is `target`, one of ours, for `reason`, a short sentence."""

    source: str
    target: str
    reason: str


class UnmatchedParameters(ValueError):
    """Parameters that are ambiguous, left over or missing.

    Attributes:
        sources, targets: all their names, in the checkpoint and in PVC.
    """

    def __init__(self, message: str, sources: list[str], targets: list[str]):
        super().__init__(message)
        self.sources, self.targets = sources, targets


def match_parameters(source: Shapes, target: Shapes, key_map: Mapping[str, str] | None = None) -> list[Match]:
    """Which parameter of `target` each parameter of `source` is, one to one, in the order of `source`.

    Args:
        source: names and shapes of a released PVC.
        target: names and shapes of `PVCForConditionalGeneration`.
        key_map: what is settled by hand, as `read_key_map` gives it.

    Raises:
        UnmatchedParameters: where any parameter of either side is left; it names each, with its shape.
        ValueError: where the key map does not fit the two sides.
    """
    matching = _Matching(source, target)
    matching.add_by_hand(key_map or {})
    matching.add_internvl()
    matching.add_by_structure()
    matching.check_complete()
    return [matching.found[name] for name in source]


def read_key_map(path: str | PathLike) -> dict[str, str]:
    """The key map of a JSON file: an object of names of the checkpoint to names of PVC.

    Both names of an entry may be prefixes that end in "."; each "*" of the first stands for a number, put in
    the place of the "*" of the second. Where several entries fit a name, the longest goes first. The bias of
    a weight may be left out.

    Raises:
        ValueError: where it is not JSON, or not an object of strings, or has a name twice.
        OSError: where the file cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        pairs = json.loads(content, object_pairs_hook=_Pairs)
    except ValueError as error:  # of the syntax or of the encoding
        raise ValueError(f"key map {path} is not JSON: {error}") from error

    if not isinstance(pairs, _Pairs) or not all(isinstance(target, str) for _, target in pairs):
        raise ValueError(
            f"key map {path} is not a JSON object of strings, names of the checkpoint to names of PVC"
        )

    for side, names in zip(("sources", "targets"), zip(*pairs)):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f"key map {path} has {', '.join(twice)} more than once among its {side}")
    _check_entries(dict(pairs))
    return dict(pairs)


class _Pairs(list):
    """The entries of a JSON object, with those of the same name."""


def _check_entries(key_map: Mapping[str, str]):
    for entry, target in key_map.items():
        if entry.endswith(".") != target.endswith(".") or entry.count("*") != target.count("*"):
            raise ValueError(
                f'key map entry "{entry}": "{target}": expected two names, or two prefixes that end in ".", '
                'with as many "*" each'
            )


# ---- names

LAYER = r"((?:encoder|model)\.layers\.)(\d+)(?=\.)"


def _words(name: str) -> list[str]:
    """The words and numbers of a name: `adaLN_gamma.fc1` has ada, ln, gamma, fc, 1."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _order(one: str, other: str) -> int:
    """Order of two names by the first word in which they differ: numbers, or words such as in and out.

    Below 0 where `one` comes first, above 0 where `other` does, 0 where the word does not tell.
    """
    for a, b in zip(_words(one), _words(other)):
        if a.isdigit() and b.isdigit() and a != b:
            return int(a) - int(b)
        if a != b:
            return (a in SECOND and b in FIRST) - (a in FIRST and b in SECOND)
    return 0


def _common_words(one: str, other: str) -> int:
    return len(commonprefix([_words(one), _words(other)]))


def _scope(name: str) -> tuple[str, str]:
    """Number of the ViT's layer, "projector" or "" for the rest; and the name inside it."""
    if match := re.match(r"(?:model\.)?vision_model\.encoder\.layers\.(\d+)\.", name):
        return match[1], name[match.end() :]
    if re.match(r"(?:model\.)?(?:vision_model|language_model)\.|lm_head\.", name):
        return "", name
    return "projector", name.removeprefix("model.projector.")


def _stem(name: str) -> str:
    """The name of a module from that of its weight or bias."""
    return re.sub(r"[._](?:weight|bias)$", "", name)


def _by_number(name: str) -> str:
    """Sorts names by the values of the numbers in them."""
    return re.sub(r"\d+", lambda number: number[0].zfill(9), name)


def _pattern(text: str) -> str:
    """Names with the number of the ViT's or LLM's layer left open."""
    return re.sub(LAYER, r"\1*", text)


@dataclass
class _Module:
    """The parameters of a scope whose names differ in `weight` and `bias` alone.

    Attributes:
        name: inside the scope, without `weight` and `bias`.
        keys: full names of its parameters: "weight", "bias", or "" for a bare parameter.
        shapes: their shapes, likewise.
    """

    name: str
    keys: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return self.shapes.get("weight", self.shapes.get("", ()))

    @property
    def is_linear(self) -> bool:
        return "weight" in self.shapes and len(self.shape) == 2

    @property
    def is_vector(self) -> bool:
        return len(self.shapes) == 1 and len(self.shape) == 1


def _modules(shapes: Shapes) -> dict[str, dict[str, _Module]]:
    """The modules of each scope, by name."""
    scopes: dict[str, dict[str, _Module]] = {}
    for key, shape in shapes.items():
        scope, inside = _scope(key)
        # "_" too: torch's MultiheadAttention has in_proj_weight
        parts = re.fullmatch(r"(.+?)(?:[._](weight|bias))?", inside)
        assert parts is not None
        name, leaf = parts.groups("")
        module = scopes.setdefault(scope, {}).setdefault(name, _Module(name))
        module.keys[leaf], module.shapes[leaf] = key, shape
    return scopes


# ---- the role of a module

Places = Mapping[str, list[_Module]]  # role -> ours, first to last


class _Reading(NamedTuple):
    """The role of a module, and why."""

    module: _Module
    role: str
    why: str


class _Refused(Exception):
    """Why a module has no role, or no place in it."""


def _by_words(module: _Module) -> _Reading | None:
    """The role that words of a Linear's name say; None where no word says one."""
    words = _words(module.name)
    if separate := SEPARATE.intersection(words):
        raise _Refused(f"its name says {min(separate)!r}, but q, k and v are one Linear in PVC, q first")

    said: dict[str, str] = {}
    for word in words:
        said |= {role: word for role in WORDS if word in WORDS[role]}
        if word in WORDS["gamma"] | WORDS["beta"]:
            said.pop("time", None)  # said of what this is part of: time_embed_norm.gamma

    if len(said) > 1:
        raise _Refused(f"its words {' and '.join(map(repr, said.values()))} contradict each other")
    return next((_Reading(module, role, f"its name says {word!r}") for role, word in said.items()), None)


def _roles_of_shape(shape: Shape, places: Places) -> list[str]:
    """The roles that have a place of this shape, once for each such place."""
    return [role for role in places for place in places[role] if place.shape == shape]


def _by_words_and_shape(module: _Module, places: Places) -> _Reading | None:
    """The role of a Linear by words, or by a shape that one place alone has; refused where they disagree."""
    said, fitting = _by_words(module), _roles_of_shape(module.shape, places)
    if said and said.role not in fitting:
        raise _Refused(f"{said.why}, but no {said.role} has its shape")
    if said is None and len(fitting) == 1:
        return _Reading(module, fitting[0], "no other Linear has its shape")
    return said


def _gate(module: _Module, places: Places) -> _Reading:
    """The one vector is the gate; it may also be called scale or gamma, as in a LayerScale."""
    words = set(_words(module.name))
    named, called = words & WORDS["gate"], words & {"gamma", "scale"}
    is_affine = not module.is_vector or (words & NORM and not named)
    if len(module.shape) != 1 or is_affine:
        raise _Refused(AFFINE if len(module.shape) == 1 else "neither a Linear nor a vector")
    is_of_time = words & (WORDS["time"] | WEAK_WORDS["time"])
    if words & WORDS["beta"] or not (named or called and not is_of_time):
        raise _Refused("a vector, but its name does not say that it is a gate")
    return _Reading(module, "gate", f"a vector, and its name says {min(named or called)!r}")


def _siblings(
    readings: Mapping[str, _Reading], unread: Iterable[_Module], places: Places
) -> Iterator[_Reading]:
    """The other Linear of each MLP of which one was read.

    It shares the longest beginning of the name, and differs by a number or a word such as in and out.
    """
    for role in places:
        known = [reading.module for reading in readings.values() if reading.role == role]
        if len(places[role]) != 2 or len(known) != 1:
            continue
        name = known[0].name
        others = [module for module in unread if _order(name, module.name)]
        common = max((_common_words(name, module.name) for module in others), default=0)
        nearest = [module for module in others if _common_words(name, module.name) == common]
        if common and len(nearest) == 1:
            yield _Reading(nearest[0], role, f"it stands beside {name}")


def _by_weak_words(module: _Module, roles: Iterable[str]) -> _Reading:
    """The role that the last such word of a Linear's name says."""
    for word in reversed(_words(module.name)):
        for role in roles:
            if word in WEAK_WORDS.get(role, ()):
                return _Reading(module, role, f"its name says {word!r} and nothing against it")
    raise _Refused("no word of the name says what it is, and several have its shape")


def _read(modules: Iterable[_Module], places: Places, open_roles: Iterable[str]):
    """The roles of the modules of a scope, by name; and why others have none, by name."""
    readings: dict[str, _Reading] = {}
    refused: dict[str, str] = {}

    def read(module: _Module, rule, of):
        try:
            if reading := rule(module, of):
                readings[module.name] = reading
        except _Refused as why:
            refused[module.name] = str(why)

    for module in modules:
        read(module, _by_words_and_shape if module.is_linear else _gate, places)
    unread = [module for module in modules if module.name not in readings and module.name not in refused]
    for reading in list(_siblings(readings, unread, places)):
        readings[reading.module.name] = reading
    for module in unread:
        if module.name not in readings:
            read(module, _by_weak_words, open_roles)
    return readings, refused


def _in_order(members: list[_Module], open_places: list[_Module], places: Places) -> list[_Module]:
    """The modules of one role, first to last, of which there must be as many as it has open places."""
    names, shapes = [module.name for module in members], [place.shape for place in open_places]
    if len(members) != len(open_places):
        raise _Refused(f"{', '.join(names)}, where {len(open_places)} are expected")

    # two are ordered by their names, else by their shapes
    if len(members) == 2:
        order = _order(*names)
        if order == 0 and all(len(_roles_of_shape(shape, places)) == 1 for shape in shapes):
            order = -1 if members[0].shape == shapes[0] else 1
        if order == 0:
            raise _Refused(f"{' and '.join(names)}, but nothing says which is first")
        members = members if order < 0 else members[::-1]

    if [module.shape for module in members] != shapes:
        found = " and ".join(f"{module.name} {module.shape}" for module in members)
        raise _Refused(f"{found} in this order, where {' and '.join(map(str, shapes))} is expected")

    return members


# ---- matching


class _Matching:
    """What has been found, and what each rule adds to it."""

    def __init__(self, source: Shapes, target: Shapes):
        self.source = {name: tuple(source[name]) for name in sorted(source, key=_by_number)}
        self.target = {name: tuple(shape) for name, shape in target.items()}
        self.found: dict[str, Match] = {}
        self.taken: dict[str, str] = {}  # target -> source
        self.notes: dict[str, str] = {}  # why a name of either side has no match

    def fits(self, source: str, target: str) -> bool:
        return self.source[source] == self.target.get(target)

    def add(self, match: Match) -> bool:
        """Adds a match if both sides are open and have one shape."""
        are_open = match.source not in self.found and match.target not in self.taken
        if not are_open or not self.fits(match.source, match.target):
            return False
        self.found[match.source] = match
        self.taken[match.target] = match.source
        return True

    def add_by_hand(self, key_map: Mapping[str, str]):
        _check_entries(key_map)
        problems = []
        for entry in sorted(key_map, key=len, reverse=True):
            pattern = re.escape(entry).replace(r"\*", r"(\d+)") + ("" if entry.endswith(".") else r"\Z")
            hits = [hit for name in self.source if (hit := re.match(pattern, name))]

            if not hits:
                problems.append(f"no parameter of the checkpoint fits {entry!r}")
            for hit in hits:
                start, *parts = key_map[entry].split("*")
                target = start + "".join(number + part for number, part in zip(hit.groups(), parts))
                match = Match(hit.string, target + hit.string[hit.end() :], f"key map: {entry}")
                if match.source not in self.found and not self.add(match):
                    problems.append(self._why_not(match))

        if problems:
            raise ValueError("the key map does not fit:\n  " + "\n  ".join(problems))

        # a bias follows its weight
        for match in list(self.found.values()):
            bias, target = (
                re.sub(r"(?<=[._])weight$", "bias", name) for name in (match.source, match.target)
            )
            if bias in self.source:
                self.add(Match(bias, target, f"the bias of {match.source}"))

    def _why_not(self, match: Match) -> str:
        if match.target not in self.target:
            return f"{match.source} is sent to {match.target}, but PVC has no such parameter"
        if match.target in self.taken:
            return f"{match.source} is sent to {match.target}, and so is {self.taken[match.target]}"
        shapes = self.source[match.source], self.target[match.target]
        return f"{match.source} {shapes[0]} is sent to {match.target}, whose shape is {shapes[1]}"

    def add_internvl(self):
        known = {name: target for name in self.source if (target := internvl_name(name))}
        mlp = ("mlp1.1.weight", "mlp1.3.weight")
        is_internvl_mlp = all(name in known and self.fits(name, known[name]) for name in mlp)
        for name, target in known.items():
            if name.startswith("mlp1.") and not is_internvl_mlp:
                continue  # its numbers are not InternVL's
            if not self.add(Match(name, target, "InternVL's name")) and target in self.target:
                self.notes[name] = f"InternVL's name for {target} {self.target[target]}"

    def add_by_structure(self):
        sources = _modules({name: shape for name, shape in self.source.items() if name not in self.found})
        targets = _modules(self.target)
        matches: list[Match] = []

        for scope, modules in sources.items():
            roles = PROJECTOR_ROLES if scope == "projector" else LAYER_ROLES if scope else {}
            ours = targets.get(scope, {})
            places = {role: [ours[name] for name in roles[role]] for role in roles if roles[role][0] in ours}
            if places:
                matches += self._match_scope(list(modules.values()), places)

        for match in self._alike_in_all_layers(matches):
            self.add(match)

    def _match_scope(self, modules: list[_Module], places: Places) -> Iterator[Match]:
        open_places = {
            role: [place for place in places[role] if set(place.keys.values()) - self.taken.keys()]
            for role in places
        }
        readings, refused = _read(modules, places, [role for role in places if open_places[role]])

        for role in places:
            members = [reading.module for reading in readings.values() if reading.role == role]
            try:
                ordered = _in_order(members, open_places[role], places)
            except _Refused as why:
                refused |= dict.fromkeys([module.name for module in members], f"taken for {role}: {why}")
                continue

            for module, place in zip(ordered, open_places[role]):
                yield from self._match_module(module, place, f"{role}: {readings[module.name].why}")

        for module in modules:
            if module.name in refused:
                self.notes |= dict.fromkeys(module.keys.values(), refused[module.name])

    def _match_module(self, module: _Module, place: _Module, reason: str) -> Iterator[Match]:
        if not module.is_linear:
            (source,), (target,) = module.keys.values(), place.keys.values()
            yield Match(source, target, reason)
            return
        for leaf, key in place.keys.items():
            if leaf in module.keys:
                yield Match(module.keys[leaf], key, reason)
            else:
                self.notes[key] = f"{module.keys['weight']} would fit, but it has no {leaf}"

    def _alike_in_all_layers(self, matches: list[Match]) -> Iterator[Match]:
        """Those whose target has one name in all layers, but for the layer's number."""
        names: dict[str, set[str]] = {}
        for match in matches:
            names.setdefault(_pattern(match.target), set()).add(_pattern(match.source))
        for match in matches:
            if len(names[_pattern(match.target)]) == 1:
                yield match
            else:
                differing = " and ".join(sorted(names[_pattern(match.target)]))
                self.notes[match.source] = f"layers differ in what {match.target} is: {differing}"

    def check_complete(self):
        sources = [name for name in self.source if name not in self.found]
        targets = [name for name in self.target if name not in self.taken]
        if not sources and not targets:
            return

        left, missing = {}, {}
        for name in sources:
            left[name] = self.notes.get(name, "PVC has nothing like it")
            if candidates := [_stem(target) for target in targets if self._is_candidate(name, target)]:
                left[name] += f"; could be {', '.join(candidates)}"

        for name in targets:
            missing[name] = self.notes.get(name, "nothing was found for them")

        message = (
            f"{len(sources)} parameters of the checkpoint are not matched\n{_listing(left, self.source)}"
            f"{len(targets)} parameters of PVC are not matched\n{_listing(missing, self.target)}{HELP}"
        )
        raise UnmatchedParameters(message, sources, targets)

    def _is_candidate(self, source: str, target: str) -> bool:
        if not self.fits(source, target) or source.endswith("bias") != target.endswith("bias"):
            return False
        return "" != _scope(source)[0] == _scope(target)[0]


def _listing(notes: Mapping[str, str], shapes: Shapes) -> str:
    """Names and shapes under their notes; names of several layers on one line."""
    blocks: dict[str, dict[tuple, list[str]]] = {}
    for name, note in notes.items():
        lines = blocks.setdefault(_pattern(note), {})
        lines.setdefault((_pattern(name), shapes[name]), []).append(name)

    text = ""
    for note, lines in blocks.items():
        text += f"  {note}\n"
        for (_, shape), (first, *others) in lines.items():
            layers = [found[2] for name in others if (found := re.search(LAYER, name))]
            text += f"    {first} {shape}{', and in layers ' if layers else ''}{', '.join(layers)}\n"
    return text
