"""Wrong uses of each script: a flag that is missing or has a wrong value, and what a command has to say to it."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import re
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

ROOT = Path(__file__).parents[2]
# Words that begin what to do, after a colon, a semicolon, a comma or a bracket.
_VERBS = (
    "see|give|name|choose|check|copy|make|run|delete|write|say|use|add|drop|put|get|take|install|"
    "pip|lower|raise|fit|measure|start|let|leave|set|sign|fill|mend|move|replace|rename|restore|"
    "wait|allow|keep|free|correct|export|repair|convert|point|save|label|compress|crop|merge|ask"
)
_ADVICE = re.compile(
    rf"(?:[:;,] |[(])(?:or |and |then |so |perhaps )?(?:{_VERBS}|it needs|it says)\b"
    "|must be|has to|did you mean"
)
_SECONDS = 120


def gives_advice(sentence: str) -> bool:
    """Return whether a sentence says what to do."""
    return _ADVICE.search(sentence) is not None


class Value(NamedTuple):
    """A flag's right value, and its kind: "in" (a path), "out" (a path), "number", "name" or "config"."""

    kind: str
    right: str


class Use(NamedTuple):
    """A wrong use: the words after the script's name, and the flags, keys or words that are wrong."""

    words: tuple[str, ...]
    wrong: tuple[str, ...]


class End(NamedTuple):
    """How a command ended: its exit status, and its standard error."""

    status: int
    said: str


# Right values by script, and by its first word where that decides; "" is a word without a flag. INPUTS is the directory
# of `prepare`, NEW a path where nothing is, SHA256 that of the weights.
_CONFIG = Value("config", f"{ROOT}/configs/demo.py")
_EVALUATION = Value("config", f"{ROOT}/configs/eval.py:folder,linear")
_NEW, _NUMBER = Value("out", "NEW"), Value("number", "1")


_FEW = {f"config.labels.{kind}_clusters": Value("number", "2") for kind in ("comment", "reaction")}


def _input(name: str) -> Value:
    return Value("in", f"INPUTS/{name}")


COMMANDS: dict[str, dict[str, Value]] = {
    "demo.py": {"output": _NEW, "posts": _NUMBER, "labeled": Value("number", "2"), "seed": _NUMBER},
    "label.py fit": {
        "config": _CONFIG,
        "posts": _input("posts/posts.jsonl"),
        "output": _NEW,
        "workers": _NUMBER,
        **_FEW,
    },
    "label.py run": {
        "config": _CONFIG,
        "posts": _input("posts/posts.jsonl"),
        "labeler": _input("labeler"),
        "output": _NEW,
        "exclude": _input("ids.txt"),
    },
    "label.py relabel": {
        "config": _CONFIG,
        "labeler": _input("labeler"),
        "output": _input("shards"),
        "exclude": _input("ids.txt"),
    },
    "label.py hash": {"": _input("images/a/0.jpg")},
    "train.py": {
        "config": _CONFIG,
        "config.data.shards": _input("shards"),
        "workdir": _NEW,
        "config.training.steps": _NUMBER,
        "config.training.batch_size": Value("number", "4"),
        "config.training.init_from": _input("encoder"),
    },
    "evaluate.py": {
        "config": _EVALUATION,
        "encoder": _input("encoder"),
        "data": _input("images"),
        "output": _NEW,
        "leak-check": _input("shards"),
        "config.batch_size": _NUMBER,
    },
    "extract.py": {
        "encoder": _input("encoder"),
        "images": _input("images"),
        "output": Value("out", "NEW.npz"),
        "batch_size": _NUMBER,
        "image_size": Value("number", "8"),
    },
    "explain.py": {
        "encoder": _input("encoder"),
        "head": _input("result.json"),
        "images": _input("images"),
        "output": _NEW,
        "most": _NUMBER,
        "split": Value("number", "0"),
    },
    "neighbors.py": {
        "encoder": _input("encoder"),
        "features": _input("features.npz"),
        "query": _input("images/a/0.jpg"),
        "k": _NUMBER,
        "images": _input("images"),
        "output": Value("out", "NEW.html"),
    },
    "predict.py": {
        "encoder": _input("encoder"),
        "labeler": _input("labeler"),
        "images": _input("images"),
        "output": Value("out", "NEW.jsonl"),
        "top": _NUMBER,
    },
    "report.py": {
        "results": _input("results"),
        "reference": Value("name", "a"),
        "labeler": _input("labeler"),
        "shards": _input("shards"),
        "runs": _input("run"),
        "output": _NEW,
        "show-duplicates": _NUMBER,
    },
    "reproduce.py": {
        "experiment": Value("name", "table3"),
        "workdir": Value("out", "INPUTS/study"),
        "evaluation": Value("name", "linear.iterations=5"),
        "pretraining": Value("name", "training.steps=5"),
    },
    "convert.py": {
        "source": Value("name", "torchvision"),
        "arch": Value("name", "resnet18"),
        "weights": _input("weights.safetensors"),
        "output": _NEW,
        "sha256": Value("name", "SHA256"),
        "max_gigabytes": _NUMBER,
    },
    "convert.py --to=timm": {"encoder": _input("random"), "output": _NEW},
    "import_posts.py": {
        "from": Value("name", "table"),
        "input": _input("table.jsonl"),
        "output": _NEW,
        "map": Value("name", "post_id=id"),
    },
}
_WRONG: dict[str, tuple[str, ...]] = {
    "in": (
        *(
            "",
            "INPUTS/nowhere",
            "INPUTS/garbage.bin",
            "INPUTS/empty",
            "INPUTS/empty.jsonl",
            "ftp://host/x",
            "/dev/null",
        ),
        *("INPUTS/labeler", "INPUTS/encoder", "INPUTS/images", "INPUTS/results", "INPUTS/ids.txt", "INPUTS/damaged"),
        *("INPUTS/posts", "INPUTS/shards/manifest.json", "a" * 300, "INPUTS/posts/posts.jsonl/x", "s3://"),
    ),
    "out": (
        *("", "INPUTS/ids.txt", "INPUTS/ids.txt/x", "INPUTS/images", "ftp://host/x", "/proc/x/y", "a" * 300),
        *("INPUTS/labeler", "gs://", "/dev/null/x"),
    ),
    "number": ("x", "-1", "", "1e30", "9" * 40, "nan", "1.5", "0x10", "True", "１２"),
    "name": ("", "no such", "a=b=c", "-", "*", "=", "x" * 300, "\N{PILE OF POO}"),
    "config": (
        *("", "INPUTS/nowhere.py", "INPUTS/ids.txt", "INPUTS/empty", "INPUTS/syntax.py", "INPUTS/no_config.py"),
        *("INPUTS/raises.py", f"{ROOT}/configs/demo.py:x", f"{ROOT}/configs/eval.py", f"{ROOT}/configs/eval.py:x,y"),
        *(f"{ROOT}/configs/eval.py:folder,linear,nothing", "INPUTS/other_type.py"),
    ),
}
# More flags with keys of a config.
_KEYS = (
    *("config.nothing=1", "config.labels.comment_clusters=0", "config.labels.comment_clusters=x", "config.labels=3"),
    *("config.training.batch_size=0", "config.data.crop_area=(2,1)", "config.model.name=nothing", "config.seed=-1"),
    *("config.linear.l2=()", "config.training.optimizer=adam", "config.labels.vectors=x", "config.splits=0"),
)


def prepare(inputs: Path) -> None:
    """Write what the commands read, and files that they can't."""
    import hostile_files

    inputs.mkdir(parents=True)
    writers: dict[str, Callable[[Path], object]] = {
        "shards": hostile_files.READERS["shards"].write,
        "results": hostile_files.READERS["results"].write,
        "run": hostile_files.READERS["run"].write,
    }
    for name, write in writers.items():
        (inputs / "made" / name / name).mkdir(parents=True)
        write(inputs / "made" / name / name)
        for path in (inputs / "made" / name).iterdir():
            if not (inputs / path.name).exists():
                shutil.move(path, inputs / path.name)
    for number in range(16):
        path = inputs / "images" / "ab"[number % 2] / f"{number // 2}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hostile_files.picture(number))
    _train(inputs)
    shutil.copytree(inputs / "encoder", inputs / "damaged")
    for path in (inputs / "damaged").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    (inputs / "empty").mkdir()
    (inputs / "study").mkdir()
    contents = {
        "ids.txt": b"p1\n",
        "garbage.bin": bytes(range(256)) * 20,
        "empty.jsonl": b"",
        "table.jsonl": b'{"id": "1"}\n',
        "syntax.py": b"def get_config(:\n",
        "no_config.py": b"x = 1\n",
        "raises.py": b"def get_config():\n    return 1 / 0\n",
        "other_type.py": b"def get_config():\n    return 3\n",
    }
    for name, content in contents.items():
        (inputs / name).write_bytes(content)


def _train(inputs: Path) -> None:
    """Train an encoder on the shards and a linear head on its features, so that the right values fit together."""
    from vise_jax import config, interop
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.evaluation import measure
    from vise_jax.inference import extract
    from vise_jax.training import pretrain

    settings = runpy.run_path(str(ROOT / "configs" / "demo.py"))["get_config"]()
    settings.data.update(shards=str(inputs / "shards"), threads=1)
    # Any number of devices that the tests have shares it.
    settings.training.update(batch_size=4, steps=1)
    shutil.rmtree(inputs / "encoder", ignore_errors=True)
    shutil.move(pretrain.train(settings, inputs / "trained"), inputs / "encoder")
    (random_weights := Encoder.random("resnet18", 0)).save(inputs / "random")
    interop.export(random_weights, "torchvision", inputs / "weights.safetensors")
    encoder, images = Encoder.load(inputs / "encoder"), datasets.open_unlabeled(inputs / "images")
    reading = {"batch_size": 8, "threads": 1, "max_image_pixels": 1_000_000}
    extract.export(encoder, images, encoder.preprocessing, inputs / "features.npz", **reading)
    evaluation = config.evaluation()
    evaluation.update(task="folder", protocol="linear", threads=1, splits=1)
    _, measured = measure.measure(evaluation, str(inputs / "encoder"), inputs / "images", inputs / "measured", "a")
    shutil.copy(measured, inputs / "result.json")
    for head in measured.parent.glob("*.safetensors"):
        shutil.copy(head, inputs / head.name.replace(measured.stem, "result"))


def uses(command: str, count: int, seed: int = 0) -> Iterator[Use]:
    """Yield `count` wrong uses of a command, in an order that the seed draws."""
    right = COMMANDS[command]

    def words(changed: dict[str, str | None], *more: str) -> tuple[str, ...]:
        values = {name: value.right for name, value in right.items()} | changed
        given = tuple(f"--{name}={value}" if name else value for name, value in values.items() if value is not None)
        return (*command.split()[1:], *given, *more)

    every = [Use(words({name: None}), (name,)) for name in right]
    every += [Use(words({name: wrong}), (name,)) for name, value in right.items() for wrong in _WRONG[value.kind]]
    every += [Use(words({}, "--nothing=1"), ("nothing",)), Use(words({}, "word"), ("word",))]
    every.append(Use(tuple(command.split()[1:]), tuple(right)))
    if "config" in right:
        every += [Use(words({}, f"--{key}"), (key.split("=")[0],)) for key in _KEYS]
    random.Random(seed).shuffle(every)
    # With two wrong flags there are enough for every script.
    names = sorted(right)
    draw = random.Random(seed)
    while len(every) < count and len(names) > 1:
        pair = draw.sample(names, 2)
        every.append(Use(words({name: draw.choice(_WRONG[right[name].kind]) for name in pair}), tuple(pair)))
    yield from every[:count]


def problems(use: Use, end: End) -> list[str]:
    """Return what is wrong with how a wrong use ended: it has to say what is wrong, where, and what to do."""
    said = end.said.strip()
    last = said.splitlines()[-1] if said else ""
    found = []
    if "Traceback" in said or end.status not in (0, 1, 2):
        found.append("a traceback")
    elif end.status:
        sentence = re.match(r"\w+\.py: (.+)", last)
        if not sentence:
            found.append("no sentence")
        else:
            found += [] if gives_advice(sentence[1]) else ["no advice"]
            found += [] if _says_where(use, sentence[1]) else ["not where"]
    return found


def _says_where(use: Use, sentence: str) -> bool:
    """Return whether a sentence names a wrong flag, key or word, or the last part of the path that it was given."""
    places = set()
    for wrong in use.wrong:
        places |= {wrong, *wrong.split(".")[wrong.startswith("config.") :]}
        values = [word.partition("=")[2] for word in use.words if word.startswith(f"--{wrong}=")]
        places |= {place for value in values for place in (value[:100], re.split("[/:,]", value)[-1][:100])}
    if "" in use.wrong:
        # A word without a flag. One that is missing or empty has a name only.
        words = {word for word in use.words if word and not word.startswith("--")} - {"hash"}
        places |= {place for word in words for place in (word, word.split("/")[-1])} or {"PHOTO"}
    return any(place in sentence for place in places - {""})


class Runner:
    """Runs scripts in processes that have imported everything.

    Args:
        directory: an empty one for inputs and outputs.
    """

    def __init__(self, directory: Path):
        os.environ |= {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
        self._directory = directory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tensorflow", "vise_jax.evaluation.measure", "vise_jax.training.pretrain", "vise_jax.reporting.study"]
        )
        process = self._context.Process(target=prepare, args=(directory / "inputs",))
        process.start()
        process.join()
        assert process.exitcode == 0
        weights = directory / "inputs" / "weights.safetensors"
        self._sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        shutil.copytree(directory / "inputs", directory / "unchanged")

    def right(self, command: str) -> End:
        """Run a script with the right values, and return how it ended."""
        words = (f"--{name}={value.right}" if name else value.right for name, value in COMMANDS[command].items())
        return self.run(command, Use((*command.split()[1:], *words), ()))

    def run(self, command: str, use: Use) -> End:
        """Run a script, and return how it ended; after two minutes, as -1."""
        new = self._directory / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        names = {"INPUTS": str(self._directory / "inputs"), "NEW": str(new / "output"), "SHA256": self._sha256}
        words = [re.sub("|".join(names), lambda match: names[match[0]], word) for word in use.words]
        log = self._directory / "log"
        process = self._context.Process(target=_script, args=(command.split()[0], words, log, new))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return End(-1, f"{_SECONDS} seconds")
        if process.exitcode == 0:
            # It may have written into a directory of them.
            shutil.rmtree(self._directory / "inputs")
            shutil.copytree(self._directory / "unchanged", self._directory / "inputs")
        return End(int(process.exitcode), log.read_text(errors="replace"))


def _script(name: str, words: list[str], log: Path, directory: Path) -> None:
    os.chdir(directory)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    # Those of the program that started this process.
    for flag in list(flags.FLAGS.flags_by_module_dict().get("__mp_main__", [])):
        delattr(flags.FLAGS, flag.name)
    sys.argv = [str(ROOT / "scripts" / name), *words]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)
