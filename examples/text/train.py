"""Train a BERT-like encoder to tell what each name in a Python function is: semantic highlighting.

A row is the first 64 tokens of a function of Python's standard library, torch, sympy or SQLAlchemy,
all here already. Every name that is no keyword has a role, which the parser gave: what is defined, a
parameter, an argument's keyword, a called function or method, an attribute, a name that is assigned,
one that reads a parameter, or one that reads something else. To tell a parameter's use, a model must
look back at the definition. All other tokens are labelled -100, which means: left out. Whole files go
to train, selection or test.

Leaves model.pt (a checkpoint: a dict with the state_dict in it) and data/ (train, selection and
test .npz) beside this file.
"""

import argparse
import ast
import io
import sysconfig
import time
import tokenize
import warnings
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import LENGTH, VOCABULARY, build, build_large

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE = 2, 32, 1e-3
ROWS = {"train": 4000, "selection": 1000, "test": 1000}  # over all sources
PER_FILE = 20  # functions of a file, so that the rows are of many
PAD, COMMON = 0, VOCABULARY // 2  # rarer words share the other half of the vocabulary by a hash
DEFINED, PARAMETER, KEYWORD, FUNCTION, METHOD, ATTRIBUTE, ASSIGNED, READ_PARAMETER, READ_OTHER = range(9)
LEFT_OUT = -100
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
Row = tuple[list[str], list[int]]


def sources() -> list[list[Path]]:
    """The .py files of each source, in an order that is the same each time."""
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for package in ("torch", "sympy", "sqlalchemy"):
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"this example needs {package}, which petra-deploy itself installs")
        folders.append(Path(spec.submodule_search_locations[0]))
    unwanted = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3", "__pycache__"}
    return [
        sorted(p for p in folder.rglob("*.py") if not unwanted & set(p.relative_to(folder).parts) and _fits(p))
        for folder in folders
    ]


def _fits(path: Path) -> bool:
    return 2_000 < path.stat().st_size < 60_000


def functions(path: Path) -> list[Row]:
    """The words and labels of a file's first functions, up to LENGTH tokens of each."""
    try:
        text = path.read_text(encoding="ascii")  # then the parser's columns are the tokenizer's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in SKIPPED]
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return []
    place = {token.start: index for index, token in enumerate(tokens)}
    found: list[Row] = []
    for node in ast.walk(tree):
        if len(found) == PER_FILE:
            break
        if not isinstance(node, ast.FunctionDef):
            continue
        start = place[node.lineno, node.col_offset]
        piece = [t for t in tokens[start : start + LENGTH] if t.start < (node.end_lineno, node.end_col_offset)]
        if len(piece) >= LENGTH // 2:
            roles = roles_of(node)
            after_def = [False, *(token.string in ("def", "class") for token in piece[:-1])]
            labels = [DEFINED if new else roles.get(t.start, LEFT_OUT) for t, new in zip(piece, after_def, strict=True)]
            found.append(([_word(token) for token in piece], labels))
    return found


def roles_of(function: ast.FunctionDef) -> dict[tuple[int, int], int]:
    """The role of each name by its line and column."""
    named = function.args
    parameters = {a.arg for a in (*named.posonlyargs, *named.args, *named.kwonlyargs, named.vararg, named.kwarg) if a}
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    roles = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            roles[node.lineno, node.col_offset] = PARAMETER
        elif isinstance(node, ast.keyword) and node.arg:
            roles[node.lineno, node.col_offset] = KEYWORD
        elif isinstance(node, ast.Attribute) and node.end_lineno and node.end_col_offset:
            column = node.end_col_offset - len(node.attr)
            roles[node.end_lineno, column] = METHOD if id(node) in called else ATTRIBUTE
        elif isinstance(node, ast.Name):
            read = READ_PARAMETER if node.id in parameters else FUNCTION if id(node) in called else READ_OTHER
            roles[node.lineno, node.col_offset] = read if isinstance(node.ctx, ast.Load) else ASSIGNED
    return roles


def _word(token: tokenize.TokenInfo) -> str:
    kinds = {tokenize.STRING: "<string>", tokenize.NUMBER: "<number>", tokenize.NEWLINE: "<line>",
             tokenize.INDENT: "<in>", tokenize.DEDENT: "<out>"}  # fmt: skip
    return kinds.get(token.type, token.string)


def splits() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    rows: dict[str, list[Row]] = {name: [] for name in ROWS}
    seen: set[tuple[str, ...]] = set()  # a function that occurs twice is taken once, so that no split repeats another
    for files in sources():
        order = generator.permutation(len(files))
        cuts = {"train": order[: len(order) * 6 // 10], "selection": order[len(order) * 6 // 10 : len(order) * 8 // 10]}
        cuts["test"] = order[len(order) * 8 // 10 :]
        for name, part in cuts.items():
            pieces: list[Row] = []
            for index in part:
                for row in functions(files[index]):
                    if tuple(row[0]) not in seen:
                        seen.add(tuple(row[0]))
                        pieces.append(row)
                if len(pieces) >= ROWS[name] // 4:
                    break
            rows[name] += pieces[: ROWS[name] // 4]
    counts = Counter(word for words, _ in rows["train"] for word in words)
    number = {word: i + 1 for i, (word, _) in enumerate(counts.most_common(COMMON - 1))}
    return {name: encode([some[i] for i in generator.permutation(len(some))], number) for name, some in rows.items()}


def encode(rows: list[Row], number: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.full((len(rows), LENGTH), PAD, dtype=np.int64)
    labels = np.full((len(rows), LENGTH), LEFT_OUT, dtype=np.int64)
    for row, (words, roles) in enumerate(rows):
        ids[row, : len(words)] = [number.get(w) or COMMON + zlib.crc32(w.encode()) % COMMON for w in words]
        labels[row, : len(words)] = roles
    return ids, (ids != PAD).astype(np.int64), labels


def fit(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    per_epoch = len(ids) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(ids))[: per_epoch * BATCH].view(per_epoch, BATCH):
            loss = F.cross_entropy(model(ids[rows], mask[rows]).transpose(1, 2), labels[rows], ignore_index=LEFT_OUT)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches; the splits stay")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--large", action="store_true", help="six layers of width 384")
    given = parser.parse_args()
    start = time.monotonic()
    torch.manual_seed(given.seed)
    parts = splits()
    (given.out / "data").mkdir(parents=True, exist_ok=True)
    for name, (ids, mask, labels) in parts.items():
        np.savez(given.out / "data" / f"{name}.npz", ids=ids, mask=mask, target=labels)
    model = build_large() if given.large else build()
    fit(model, *map(torch.from_numpy, parts["train"]))
    torch.save({"model_state_dict": model.state_dict(), "epoch": EPOCHS}, given.out / "model.pt")
    ids, mask, labels = map(torch.from_numpy, parts["test"])
    with torch.no_grad():
        guessed = torch.cat([model(*part).argmax(2) for part in zip(ids.split(100), mask.split(100), strict=True)])
    right = (guessed == labels)[labels >= 0].float().mean()
    print(f"{right:.4f} of the names in {len(labels)} test rows are told right, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
