"""The pages on the package: every public name of the package, by part of the course, with its signature, what its docstring and its comments say, and the chapter that builds it.

griffe reads the modules without importing them. Nothing of this is kept in the repository: `render.py` has the pages written into `_proc/api/`."""
import ast
import io
import tokenize
from collections.abc import Container
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent, shorten

import griffe

root = Path(__file__).parents[1]


def parts_of(config: dict, modules: Container[str]) -> dict[str, tuple[str, list[str]]]:
    "For each page: the part of the course that it is about, and the notebooks of that part that make a module."
    parts = {item["section"]: [name for name in item["contents"] if name in modules] for item in config["website"]["sidebar"]["contents"] if isinstance(item, dict)}
    return {f"api/{part.rpartition('· ')[2].lower().replace(' ', '_')}.qmd": (part, notebooks) for part, notebooks in parts.items() if notebooks}


def write(proc: Path, config: dict, modules: dict[str, str], titles: dict[str, str]) -> None:
    "Write the pages into `proc`; each notebook has its module and its title."
    package = griffe.load("llm_course", search_paths=[root], allow_inspection=False)
    parts = parts_of(config, modules)
    home = {f"llm_course.{modules[name]}": Path(page).name for page, (_, notebooks) in parts.items() for name in notebooks}
    (proc/"api").mkdir(exist_ok=True)
    for page, (part, notebooks) in parts.items():
        front = f'---\ntitle: "The package: {part}"\ndescription: "What the modules of this part offer, and which chapter builds it."\nrepo-actions: false\n---\n'
        sections = [section(package[modules[name]], name, titles[name], home) for name in notebooks]
        (proc/page).write_text("\n".join([front, *filter(None, sections)]), "utf-8", newline="\n")


def public(module: griffe.Module) -> dict[str, griffe.Object | griffe.Alias]:
    "What a module offers: the names in its `__all__`, but for the checks of parts and the variables of types."
    found = {name: module.members[name] for name in map(str, module.exports or ()) if not name.startswith("_")}
    return {name: one for name, one in found.items() if one.is_alias or not (is_check(one) or str(getattr(one, "value", "")).startswith("TypeVar("))}


def is_check(one: griffe.Object) -> bool:
    return one.is_function and any(str(decorator.value).startswith("check_of(") for decorator in one.decorators)


def section(module: griffe.Module, notebook: str, title: str, home: dict[str, str]) -> str:
    "What a module offers, as Markdown."
    if not (names := public(module)): return ""
    promise = module.docstring.value if module.docstring else ""
    lines = [f"## {module.path} {{#{below(module)}}}\n\n{promise} Built in [{title}](../{notebook}).\n"]
    passed_on = [one.target_path.rpartition(".") for one in names.values() if one.is_alias]
    links = [f"[`{name}`]({home[path]}#{path.removeprefix('llm_course.')}.{name})" for path, _, name in passed_on]
    if links: lines.append(f"It passes on {', '.join(links)}, so that all can be imported from here.\n")
    return "\n".join(lines + [entry(one, notebook) for one in names.values() if not one.is_alias])


def below(module: griffe.Module) -> str:
    "A module's name below the package, such as `engine.commands`."
    return module.path.removeprefix("llm_course.")


def entry(one: griffe.Object, notebook: str) -> str:
    "One public name: its signature, its meaning, its parameters, its methods, and a link to where it is built."
    head = f"### {one.name} {{#{below(one.module)}.{one.name}}}\n"
    if one.is_attribute: return f"{head}\n{block(f'{one.name} = ' + shorten(str(one.value), 120))}\n\n{comment(one.source)} [Built here](../{notebook}).\n"
    built = f"[Built here](../{notebook}#{one.name.lower()})."
    return "\n".join([head, block(signature(one)), "", f"{doc(one)} {built}", "", parameters(one), *map(method, methods(one))])


def signature(one: griffe.Function | griffe.Class) -> str:
    "A name with its parameters as they were written, on one line or one below the other."
    stars = {"variadic positional": "*", "variadic keyword": "**"}
    words, star = [], False
    for p in taken(one):
        if p.kind.value == "keyword-only" and not star: words.append("*")
        star = star or p.kind.value in ("keyword-only", "variadic positional")
        annotation = f": {p.annotation}" if p.annotation is not None else ""
        default = "" if p.default is None or p.kind.value in stars else f" = {p.default}" if annotation else f"={p.default}"
        words.append(stars.get(p.kind.value, "") + p.name + annotation + default)
    end = f" -> {one.returns}" if one.is_function and one.returns is not None else ""
    flat = f"{one.name}({', '.join(words)}){end}"
    return flat if len(flat) <= 100 or not words else f"{one.name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"


def taken(one: griffe.Function | griffe.Class) -> list[griffe.Parameter]:
    "The parameters that a caller gives."
    return [p for p in one.parameters if p.name not in ("self", "cls")]


def parameters(one: griffe.Function | griffe.Class) -> str:
    "A table of what each parameter means, and what comes back."
    said = meanings(one)
    rows = [(name, said[key]) for key, name in [*((p.name, f"`{p.name}`") for p in taken(one)), ("return", "*returns*")] if said.get(key)]
    return "".join(["| parameter | meaning |\n|---|---|\n", *(f"| {name} | {meaning.replace('|', chr(92) + '|')} |\n" for name, meaning in rows)]) if rows else ""


def meanings(one: griffe.Function | griffe.Class) -> dict[str, str]:
    "The comment beside each parameter; a dataclass may have its fields from others."
    if one.is_class and "dataclass" in one.labels: return {name: comment(member.source) for name, member in one.all_members.items() if member.is_attribute}
    if one.is_class: return meanings(one.all_members["__init__"]) if "__init__" in one.all_members else {}
    source = dedent(one.source)
    said, node = comments(source), ast.parse(source).body[0]
    last = node.returns.end_lineno if node.returns else None   # a comment there says what comes back
    ends = {a.arg: a.end_lineno for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.end_lineno != last} | {"return": last}
    return {name: said[line] for name, line in ends.items() if line in said}


def comments(source: str) -> dict[int, str]:
    "The comment on each line."
    return {token.start[0]: token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}


def comment(source: str) -> str:
    "The last comment in a few lines, or nothing."
    return next(reversed(comments(dedent(source)).values()), "")


def methods(one: griffe.Object) -> list[griffe.Function]:
    "The methods of a class that say what they do."
    return [member for name, member in one.members.items() if not name.startswith("_") and member.is_function and member.docstring] if one.is_class else []


def method(one: griffe.Function) -> str: return f"\n`.{one.name}`\n\n{block(signature(one))}\n\n{doc(one)}\n\n{parameters(one)}"


def doc(one: griffe.Object) -> str: return cleandoc(one.docstring.value) if one.docstring else ""


def block(source: str) -> str: return f"```python\n{source}\n```"
